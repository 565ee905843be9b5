"""What the API says of itself against what it does, by requests drawn from its description."""

from typing import Any

import pytest
from hypothesis import settings

from server import Server

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.fixture(scope="module")
def api(small_server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{small_server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=25, deadline=None)
def test_it_does_what_it_describes(case: Any) -> None:
    case.call_and_validate()
