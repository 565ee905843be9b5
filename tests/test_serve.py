"""The API in this process: answers, batches, limits, refusals."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from file_server import served
from images import encoded, photo
from mbconv.errors import UserError
from mbconv.export.run import export_model
from mbconv.measure.gradcam import grad_cam, overlay
from mbconv.runtime.artifact import Form
from mbconv.runtime.predictor import Predictor
from mbconv.serve import batcher as batching
from mbconv.serve import urls
from mbconv.serve.app import create_app
from mbconv.serve.holding import Holding
from mbconv.serve.limits import Limits
from small import write_model

Files = list[tuple[str, tuple[str, bytes, str]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Predictor(model), limits=Limits(upload=100_000))) as client:
        yield client


def png(seed: int) -> bytes:
    return encoded(photo(seed), "PNG")


def files(*contents: bytes) -> Files:
    return [("files", (f"{n}.png", c, "image/png")) for n, c in enumerate(contents)]


def test_answers_are_predictors(client: TestClient, model: Path) -> None:
    contents = [png(1), encoded(photo(2)), png(3)]
    got = client.post("/predict?top=3", files=files(*contents))
    assert got.status_code == 200
    results = got.json()["results"]
    assert [result["source"] for result in results] == ["0.png", "1.png", "2.png"]
    for result, expected in zip(results, Predictor(model).predict(contents, 3), strict=True):
        assert [g["label"] for g in result["predictions"]] == list(expected.labels)
        assert [g["index"] for g in result["predictions"]] == list(expected.indices)
        scores = [g["score"] for g in result["predictions"]]
        assert scores == pytest.approx(list(expected.scores), abs=1e-5)
        assert result["error"] is None
        assert result["milliseconds"] > 0
    alone = client.post("/predict", content=contents[0], headers={"Content-Type": "image/png"})
    assert alone.json()["results"][0]["predictions"][:3] == results[0]["predictions"]
    assert len(alone.json()["results"][0]["predictions"]) == 4


def test_a_broken_picture_among_good_ones(client: TestClient) -> None:
    got = client.post("/predict", files=files(png(1), png(2)[:3000], b"", png(3)))
    assert got.status_code == 200
    errors = [result["error"] for result in got.json()["results"]]
    assert errors == [None, "cut off before its end", "empty", None]
    got = client.post("/predict", files=files(b"", b"text"))
    assert got.status_code == 422
    assert got.json()["detail"] == (
        "None of the 2 pictures can be read. 0.png cannot be read: empty."
    )
    assert [r["error"] for r in got.json()["results"]] == [
        "empty",
        "not a picture in a known format",
    ]


def test_refusals_are_sentences(client: TestClient) -> None:
    bomb = encoded(Image.new("1", (8000, 8000)), "PNG")
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    without = {"Content-Type": "multipart/form-data"}
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx'
    cases: list[tuple[int, str, dict[str, Any]]] = [
        (413, "larger than 0.1 MB", {"files": files(bytes(100_001))}),
        (413, "32 pictures at most", {"files": files(*[b"x"] * 33)}),
        (413, "request is larger than 0.4 MB", {"files": files(*[bytes(90_000)] * 5)}),
        (422, "64 megapixels, above the limit of 50", {"files": files(bomb)}),
        (422, "has no file", {"content": b"--b--\r\n", "headers": boundary}),
        (400, "cut off", {"content": part, "headers": boundary}),
        (400, "is no form", {"content": b"nonsense", "headers": boundary}),
        (
            400,
            "names no boundary",
            {"content": b"", "headers": without},
        ),
        (415, "not as text/plain", {"content": b"", "headers": {"Content-Type": "text/plain"}}),
        (415, "without a content type", {"content": b""}),
        (422, "top: ", {"files": files(png(1)), "params": {"top": 0}}),
        (403, "--allow-urls", {"json": {"urls": ["http://example.org/a.jpg"]}}),
        (422, "names no pictures", {"json": {"urls": []}}),
        (422, "names no pictures", {"json": [1]}),
    ]
    for status, words, request in cases:
        got = client.post("/predict", **request)
        assert (got.status_code, words in got.json()["detail"]) == (status, True), got.text
        assert got.json()["detail"].endswith((".", "}"))
    assert client.get("/nothing").json()["detail"].startswith("There is nothing at /nothing")
    assert client.get("/predict").status_code == 405
    assert client.get("/health").json()["waiting"] == 0
    assert client.post("/predict", files=files(png(1))).status_code == 200


def test_heat_maps(client: TestClient, model: Path) -> None:
    predictor = Predictor(model)
    for index in (None, 2):
        query = "" if index is None else f"?index={index}"
        got = client.post(f"/explain{query}", files=files(png(5)))
        assert got.headers["content-type"] == "image/jpeg"
        seen = Image.fromarray(predictor.prepare(png(5)))
        expected = overlay(seen, grad_cam(predictor.model, png(5), index))
        assert got.content == encoded(expected, quality=85)
        assert got.content != encoded(seen, quality=85)
    for query, content, words in (
        ("?index=4", png(1), "has 4 classes"),
        ("", b"x", "0.png cannot be read: not a picture"),
    ):
        got = client.post(f"/explain{query}", files=files(content))
        assert got.status_code == 422
        assert words in got.json()["detail"]
    assert client.post("/explain", files=files(png(1), png(2))).status_code == 422


def test_what_is_told_of_the_state(client: TestClient) -> None:
    client.post("/predict", files=files(png(1), b"x"))
    about = client.get("/health").json()
    assert (about["status"], about["model"], about["classes"]) == ("ok", "small", 4)
    assert (about["resolution"], about["runtime"], about["explains"]) == (32, "PyTorch", True)
    figures = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in figures.splitlines() if line[0] != "#")
    assert float(values['mbconv_pictures_total{outcome="answered"}']) >= 1
    assert float(values['mbconv_pictures_total{outcome="unreadable"}']) >= 1
    assert float(values['mbconv_requests_total{status="200"}']) >= 2
    assert float(values["mbconv_upload_bytes"]) == float(values["mbconv_pictures_waiting"]) == 0
    assert float(values["process_resident_memory_bytes"]) > 1e8


def test_pages_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/docs", "/page.css", "/page.js", "/icon.svg"):
        got = client.get(path)
        assert got.status_code == 200
        assert "default-src 'none'" in got.headers["content-security-policy"]
        outside = got.text.replace("http://www.w3.org/2000/svg", "")
        assert "://" not in outside.replace(str(client.base_url), "")
    assert "Up to 0.1 MB" in client.get("/").text
    page = client.get("/docs").text
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page


class Gate:
    """A Predictor whose reading waits until the gate is opened."""

    def __init__(self, model: Path) -> None:
        self.predictor = Predictor(model, threads=2)
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        prepare = self.predictor.prepare

        def waiting(picture: Any, **options: Any) -> Any:
            if self.armed:
                self.entered.release()
                assert self.open.wait(20)
            return prepare(picture, **options)

        self.armed = False
        self.predictor.prepare = waiting  # type: ignore[method-assign]


def test_a_full_queue_says_when_to_come_again(model: Path) -> None:
    gate = Gate(model)
    app = create_app(gate.predictor, limits=Limits(queue=2))
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        gate.armed = True
        first = [pool.submit(client.post, "/predict", files=files(png(n))) for n in range(2)]
        for _ in range(2):
            assert gate.entered.acquire(timeout=20)
        refused = client.post("/predict", files=files(png(3)))
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        gate.open.set()
        assert [f.result().status_code for f in first] == [200, 200]
        assert client.post("/predict", files=files(png(3))).status_code == 200
        assert client.post("/predict", files=files(*[png(1)] * 3)).status_code == 413  # never fits


def test_who_waits_too_long_is_told_so(model: Path) -> None:
    gate = Gate(model)
    with TestClient(create_app(gate.predictor, limits=Limits(seconds=0.3))) as client:
        gate.armed = True
        assert client.post("/predict", files=files(png(1))).status_code == 503
        gate.open.set()
        assert client.post("/predict", files=files(png(1))).status_code == 200
        assert client.get("/health").json()["waiting"] == 0


def test_the_server_survives_a_failing_network(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(model)
    with TestClient(create_app(predictor), raise_server_exceptions=False) as client:

        def broken(pictures: Any) -> Any:
            raise RuntimeError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(predictor, "infer_all", broken)
            failed = client.post("/predict", files=files(png(1)))
        assert (failed.status_code, "its log says why" in failed.text) == (500, True)
        assert client.post("/predict", files=files(png(1))).status_code == 200
        assert 'mbconv_requests_total{status="500"} 1.0' in client.get("/metrics").text


def test_a_picture_alone_waits_for_nobody(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "LINGER", 30.0)
    with TestClient(create_app(Predictor(model))) as client:
        started = time.monotonic()
        got = client.post("/predict", files=files(png(1)))
        assert time.monotonic() - started < 10
        assert got.json()["results"][0]["batch"] == 1


def test_pictures_of_several_clients_share_a_batch(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "LINGER", 30.0)
    gate = Gate(model)
    with TestClient(create_app(gate.predictor)) as client, ThreadPoolExecutor(3) as pool:
        gate.armed = True
        asked = [pool.submit(client.post, "/predict", files=files(png(n))) for n in range(3)]
        while client.get("/health").json()["waiting"] < 3:
            time.sleep(0.01)
        gate.open.set()
        assert [f.result().json()["results"][0]["batch"] for f in asked] == [3, 3, 3]


def test_uploads_of_all_clients_together_are_bounded() -> None:
    limits = Limits(upload=100)
    holding = Holding(limits)
    with holding.request() as one, holding.request() as other:
        one.add(400)
        with pytest.raises(Exception, match="413: The request is larger"):
            one.add(1)
        for _ in range(2):
            other.add(200)
        with holding.request() as third, holding.request() as fourth:
            third.add(400)
            fourth.add(400)
            with holding.request() as late, pytest.raises(Exception, match="503: The server"):
                late.add(1)
        with holding.request() as later:
            later.add(1)
    assert holding.bytes == 0


def test_limits_are_positive() -> None:
    with pytest.raises(UserError, match="upload is 0; it must be positive"):
        Limits(upload=0)
    assert Limits(queue=5).pictures == 5


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


def test_urls(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for only where allowed, and only at public addresses."""
    limits = Limits(upload=50_000)
    content = {"/a.png": png(1), "/large.png": bytes(50_001)}
    with (
        TestClient(create_app(Predictor(model), limits=limits, allow_urls=True)) as client,
        served(content) as server,
    ):
        asked = {"urls": [f"{server.url}/a.png", "file:///etc/passwd", "http://"]}
        got = client.post("/predict", json=asked)
        assert got.status_code == 422
        errors = [result["error"] for result in got.json()["results"]]
        assert errors[:2] == ["its address is not a public one", "it is no http or https URL"]
        assert not server.log
        import socket

        monkeypatch.setattr(urls, "connect_to_public", socket.create_connection)
        names = ["/a.png", "/large.png", "/none.png"]
        got = client.post("/predict", json={"urls": [server.url + name for name in names]})
        results = got.json()["results"]
        assert [r["error"] for r in results] == [
            None, "it is larger than 50.0 kB", "its server answered 404",
        ]  # fmt: skip
        assert results[0]["source"] == f"{server.url}/a.png"
        (expected,) = Predictor(model).predict([png(1)])
        assert results[0]["predictions"][0]["index"] == expected.indices[0]


def test_an_artifact(model: Path, tmp_path: Path) -> None:
    """OpenVINO compiles for each batch size: only a few sizes are used. No heat maps."""
    exported = export_model(model, tmp_path / "small.xml", form=Form(runtime="openvino"))
    predictor = Predictor(exported.paths["tensor"])
    contents = [png(n) for n in range(7)]
    with TestClient(create_app(predictor)) as client:
        got = client.post("/predict", files=files(*contents))
        results = got.json()["results"]
        assert {result["batch"] for result in results} <= {1, 4}
        for result, expected in zip(results, predictor.predict(contents), strict=True):
            assert result["predictions"][0]["index"] == expected.indices[0]
        assert client.post("/explain", files=files(png(1))).status_code == 404
        assert not client.get("/health").json()["explains"]
        assert client.get("/health").json()["runtime"] == "OpenVINO, float32"
        assert "Heat maps need a run or a model file" in client.get("/").text
    whole = Predictor(exported.paths["pictures"])
    with TestClient(create_app(whole)) as client:
        got = client.post("/predict", files=files(png(1), encoded(photo(2, 70, 200))))
        for result, expected in zip(got.json()["results"], results[1:3], strict=True):
            assert result["batch"] == 1
            assert len(result["predictions"]) == len(expected["predictions"])


def test_a_client_that_leaves_does_not_hold_the_queue(model: Path) -> None:
    """What nobody waits for any more is passed over, and counted out."""
    gate = Gate(model)
    app = create_app(gate.predictor)
    with TestClient(app) as client:
        gate.armed = True

        async def leave() -> None:
            sent = False

            async def receive() -> dict[str, Any]:
                nonlocal sent
                if sent:
                    await asyncio.sleep(60)
                sent = True
                return {"type": "http.request", "body": png(1), "more_body": False}

            async def send(message: Any) -> None:
                raise AssertionError("nobody is there")

            scope = {
                "type": "http", "method": "POST", "path": "/predict", "query_string": b"",
                "headers": [(b"content-type", b"image/png")], "http_version": "1.1",
            }  # fmt: skip
            task = asyncio.ensure_future(app(scope, receive, send))
            while not gate.entered.acquire(blocking=False):
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        assert client.portal is not None
        client.portal.call(leave)
        gate.open.set()
        deadline = time.monotonic() + 10
        while client.get("/health").json()["waiting"]:
            assert time.monotonic() < deadline
        assert json.loads(client.post("/predict", files=files(png(1))).text)["results"]
