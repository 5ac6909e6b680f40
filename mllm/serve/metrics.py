"""What Prometheus reads at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..decode.engine import Engine, Handle

BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)


class Metrics:
    """Of one server; tokens a second are rate(mllm_tokens_total[1m])."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.tokens = Counter("mllm_tokens", "Ids and image positions", ["kind"], registry=self.registry)
        self.seconds = Histogram(
            "mllm_request_seconds", "From request to end", ["path", "status"], buckets=BUCKETS, registry=self.registry
        )
        self.first = Histogram(
            "mllm_first_piece_seconds", "From request to first piece", buckets=BUCKETS, registry=self.registry
        )
        for name, count in (("waiting", lambda: engine.waiting), ("running", lambda: engine.running)):
            gauge = Gauge(f"mllm_{name}", f"Requests {name} in the engine", registry=self.registry)
            gauge.set_function(count)

    def count(self, handle: Handle) -> None:
        """At the end of a request."""
        self.tokens.labels("prompt").inc(handle.program.prompt_tokens)
        self.tokens.labels("generated").inc(handle.program.tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)
