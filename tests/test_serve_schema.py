"""What the API says of itself against what it does, by requests drawn from its description."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from server import Server

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.mark.slow
def test_it_does_what_it_describes(small_server: Server) -> None:
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{small_server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {op.path for op in operations} == {"/predict", "/explain", "/health", "/metrics"}
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=25, suppress_health_check=list(HealthCheck))
        def check(case: Any) -> None:
            # Any bytes are described as a file, and few bytes are a picture.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()
