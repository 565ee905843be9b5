"""What the API says of itself against what it does, by requests drawn from its description."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from server import serving
from small import write_model

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model = write_model(tmp_path_factory.mktemp("model") / "small.safetensors")
    with serving(model, "--allow-urls") as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=25, deadline=None)
def test_it_does_what_it_describes(case: Any) -> None:
    case.call_and_validate()
