"""Pictures behind URLs: only where allowed, only from public addresses."""

import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from file_server import served
from mbconv.runtime.predictor import Predictor
from mbconv.serve import urls
from mbconv.serve.app import create_app
from mbconv.serve.limits import Limits
from server import png


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert urls.is_public(address) is public


def test_urls(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for only where allowed, and only at public addresses."""
    limits = Limits(upload=50_000)
    content = {"/a.png": png(1), "/large.png": bytes(50_001)}
    with (
        TestClient(create_app(Predictor(small_model), limits=limits, allow_urls=True)) as client,
        served(content) as server,
    ):
        asked = {"urls": [f"{server.url}/a.png", "file:///etc/passwd", "http://"]}
        got = client.post("/predict", json=asked)
        assert got.status_code == 422
        errors = [result["error"] for result in got.json()["results"]]
        assert errors[:2] == ["its address is not a public one", "it is no http or https URL"]
        assert not server.log
        monkeypatch.setattr(urls, "connect_to_public", socket.create_connection)
        names = ["/a.png", "/large.png", "/none.png"]
        got = client.post("/predict", json={"urls": [server.url + name for name in names]})
        results = got.json()["results"]
        assert [r["error"] for r in results] == [
            None, "it is larger than 50.0 kB", "its server answered 404",
        ]  # fmt: skip
        assert results[0]["source"] == f"{server.url}/a.png"
        (expected,) = Predictor(small_model).predict([png(1)])
        assert results[0]["predictions"][0]["index"] == expected.indices[0]
