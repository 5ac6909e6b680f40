"""Serve a model: an API that OpenAI's clients speak, and a page to try it in a browser.

python -m scripts.serve --model scenes
python -m scripts.serve --model scenes --host 0.0.0.0 --api-key-file key.txt

The page is at /, the API at /v1, Prometheus' metrics at /metrics. SIGTERM and Ctrl-C end it, after what runs.
Of requests, only sizes and times are logged; nothing that is sent is written to disk.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scripts._errors import Parser, cli, stop_at_once
from scripts._load import load_model

# torch, transformers and fastapi are imported inside functions: they take seconds, in which wrong options should
# already be told and Ctrl-C be heard.
if TYPE_CHECKING:
    from PIL import Image

EXAMPLES = 6


def read_key(file: Path | None) -> str | None:
    """The API key: the one line of a file."""
    if file is None:
        return None
    try:
        key = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text: --api-key-file holds one line, the key") from error
    if not key or len(key.split()) != 1:
        raise ValueError(f"{file} holds no key: write one line without spaces into it")
    return key


def example_images() -> list[Image.Image]:
    """A few held-out scenes; none where their font is missing."""
    from data_recipes.scenes.world import SKILLS, World

    try:
        world = World()
        return [world.render(world.scene(7, "held_out", skill)) for skill in list(SKILLS)[:EXAMPLES]]
    except ValueError as error:
        print(f"no example images: {error}", file=sys.stderr)
        return []


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--name", help="what clients call the model (default: the last part of --model)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    add("--port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    add("--api-key-file", type=Path, metavar="FILE", help="a file with the key that clients must send")
    add("--remote-images", action="store_true", help="fetch images at http(s) addresses of public hosts; never paths")
    add("--max-rows", type=int, default=16, help="rows of a batch; a drawing takes two (default: %(default)s)")
    add("--max-queue", type=int, default=64, help="requests that wait for a place (default: %(default)s)")
    add("--max-body-mb", type=float, default=20, help="of a request (default: %(default)s)")
    add("--max-pixels", type=int, default=16_000_000, help="of an image sent (default: %(default)s)")
    add("--max-prompt", type=int, default=8000, help="characters of all messages (default: %(default)s)")
    add("--max-n", type=int, default=8, help="images drawn for a request (default: %(default)s)")
    add("--timeout", type=float, default=120, help="seconds for a request (default: %(default)s)")
    add("--grace", type=float, default=30, help="seconds to finish what runs at the end (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in ("max_queue", "max_body_mb", "max_pixels", "max_prompt", "max_n", "timeout", "grace"):
        value = getattr(args, name)
        if not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value} is not above 0: a limit leaves room for something")
    if args.max_rows < 2:
        raise ValueError(f"--max-rows {args.max_rows} is below 2, the rows of a drawing")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    key = read_key(args.api_key_file)
    with stop_at_once():
        try:
            from mllm.serve.app import LOOPBACK, Limits, Remote, create_app
            from mllm.serve.run import listen, serve
        except ModuleNotFoundError as error:
            raise ValueError(f'{error.name} is not installed: pip install -e ".[serve]"') from error
        from mllm.decode.engine import Engine
    with listen(args.host, args.port) as listener:
        limits = Limits(
            body=int(args.max_body_mb * 2**20),
            pixels=args.max_pixels,
            prompt=args.max_prompt,
            n=args.max_n,
            queue=args.max_queue,
            seconds=args.timeout,
            grace=args.grace,
        )
        model, processor = load_model(args.model)
        name, hosts = args.name or Path(args.model).resolve().name, LOOPBACK if args.host in LOOPBACK else None
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        logging.getLogger("mllm.serve").setLevel(logging.INFO)
        engine = Engine(model, processor, args.max_rows, args.max_queue)
        try:
            remote = Remote(limits.body) if args.remote_images else None
            gate = create_app(engine, name, limits, key, hosts, example_images(), remote)
            host = f"[{args.host}]" if ":" in args.host else args.host
            where = f"http://{host}:{listener.getsockname()[1]}"
            print(f"{name} at {where}: the page; the API at {where}/v1; Ctrl-C ends it", flush=True)
            if hosts is None and key is None:
                print("anybody who reaches this address may use it: --api-key-file asks for a key", file=sys.stderr)
            serve(gate, listener)
        finally:
            engine.close(timeout=0)


if __name__ == "__main__":
    cli(main)
