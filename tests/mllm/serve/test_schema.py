"""Schemathesis: whatever the served schema lets it think of, no 5xx, and every answer as the schema says."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks

from tests.mllm.serve.conftest import WAIT

OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/v1/images/generations", "POST"),
    ("/v1/images/edits", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/health", "GET"),
]


def _explore(url: str, path: str, method: str, examples: int) -> None:
    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    # That valid requests are accepted is not in the schema: images must be images, and prompts have limits.
    without = CHECKS.get_by_names(["positive_data_acceptance"])
    strategies = [schema[path][method].as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategies[0] | strategies[1] if method == "POST" else strategies[0])
    def check(case):
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"  # any other is answered 404, and nothing else would be tried
        case.call_and_validate(excluded_checks=without, timeout=WAIT)

    check()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_some_requests(served, path, method):
    _explore(served.url, path, method, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_many_requests(served, path, method):
    _explore(served.url, path, method, 1000)
