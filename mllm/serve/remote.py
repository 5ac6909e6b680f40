"""Fetches images at http(s) addresses of public hosts, and of no others, for a server that allows it."""

import socket
from collections.abc import Callable, Mapping
from ipaddress import IPv6Network, ip_address
from urllib.parse import SplitResult, urlsplit

import anyio
from httpcore2 import URL, AnyIOBackend, AsyncConnectionPool, AsyncNetworkStream, NetworkError, ProtocolError

from .errors import Refusal

PORTS = {"http": 80, "https": 443}
HEADERS = {"accept": "image/*", "user-agent": "mllm"}
SECONDS = 10.0  # for the images of a request, together
GLOBAL_UNICAST = IPv6Network("2000::/3")


def is_address(url: str) -> bool:
    return url.partition("://")[0].lower() in PORTS


def is_public(address: str) -> bool:
    """Whether an IP address is on the internet, and not in this machine or its network."""
    ip = ip_address(address)
    if ip.version == 6:  # those that hold an IPv4 address would lead to it, public or not
        return ip.is_global and ip in GLOBAL_UNICAST and ip.sixtofour is None
    return ip.is_global and not ip.is_multicast


class Remote:
    """Fetches over HTTP, with no proxy, redirect or cookie. The images of a request have at most `max_bytes` and take
    at most `seconds`, together. `allowed` is asked about every IP address of a host."""

    def __init__(self, max_bytes: int, seconds: float = SECONDS, allowed: Callable[[str], bool] = is_public):
        self.max_bytes, self.seconds, self.allowed = max_bytes, seconds, allowed

    async def fetch(self, names: Mapping[str, str], seconds: float) -> dict[str, bytes]:
        """{address: name in errors} -> {address: bytes}, within so many seconds. Raises Refusal: 413, 422, 504."""
        fetched: dict[str, bytes] = {}
        seconds = min(seconds, self.seconds)
        try:
            with anyio.fail_after(seconds):
                for url, name in names.items():
                    fetched[url] = await self._get(url, name, self.max_bytes - sum(map(len, fetched.values())))
        except TimeoutError:
            raise Refusal(504, f"the images at addresses did not arrive within {seconds:.3g} seconds") from None
        return fetched

    async def _get(self, url: str, name: str, left: int) -> bytes:
        parts = parsed(url, name)
        port = parts.port or PORTS[parts.scheme]
        address, content = await self._resolve(parts.hostname, port, name), bytearray()
        target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        asked = URL(scheme=parts.scheme, host=parts.hostname, port=port, target=target)
        try:
            async with (
                AsyncConnectionPool(network_backend=To(address)) as pool,
                pool.stream("GET", asked, headers={"host": parts.netloc, **HEADERS}) as response,
            ):
                if response.status != 200:
                    told = f"{name}: its host answered {response.status} where 200 is an image"
                    raise Refusal(422, f"{told}; redirects are not followed")
                async for chunk in response.aiter_stream():
                    content += chunk
                    if len(content) > left:
                        raise Refusal(413, f"{name}: the images at addresses have more than {self.max_bytes} bytes")
        except (NetworkError, ProtocolError) as error:
            raise Refusal(422, f"{name} cannot be fetched: {error or type(error).__name__}") from error
        return bytes(content)

    async def _resolve(self, host: str, port: int, name: str) -> str:
        """The IP address to connect to. That a host is not there and that it is in here sound the same."""
        try:
            found = [place[0] for *_, place in await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError):
            found = []
        if not found or not all(map(self.allowed, found)):
            raise Refusal(422, f"{name}: {host} has no public address")
        return found[0]


class To(AnyIOBackend):
    """Connects to the IP address that was checked: by now the name may resolve to another."""

    def __init__(self, address: str):
        self.address = address

    async def connect_tcp(self, host: str, port: int, **options) -> AsyncNetworkStream:
        return await super().connect_tcp(self.address, port, **options)


def parsed(url: str, name: str) -> SplitResult:
    """Raises Refusal for what is no address, or has a user's name in it."""
    try:
        parts = urlsplit(url)
        whole = url.isascii() and url.isprintable() and " " not in url and parts.hostname and parts.port != 0
    except ValueError:  # of a port or an IPv6 address
        whole = False
    if not whole:
        raise Refusal(422, f"{name}: not an address such as https://example.org/a.png, with other letters as %C3%A9")
    if "@" in parts.netloc:
        raise Refusal(422, f"{name}: an address with a user or password is not fetched")
    return parts
