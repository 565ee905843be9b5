"""Pictures of several clients: common batches, a bounded queue, bounded memory."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mbconv.errors import UserError
from mbconv.runtime.predictor import Predictor
from mbconv.serve import batcher as batching
from mbconv.serve.app import create_app
from mbconv.serve.holding import Holding
from mbconv.serve.limits import Limits
from server import files, png


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


def test_a_full_queue_says_when_to_come_again(small_model: Path) -> None:
    gate = Gate(small_model)
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


def test_who_waits_too_long_is_told_so(small_model: Path) -> None:
    gate = Gate(small_model)
    with TestClient(create_app(gate.predictor, limits=Limits(seconds=0.3))) as client:
        gate.armed = True
        assert client.post("/predict", files=files(png(1))).status_code == 503
        gate.open.set()
        assert client.post("/predict", files=files(png(1))).status_code == 200
        assert client.get("/health").json()["waiting"] == 0


def test_the_server_survives_a_failing_network(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(small_model)
    with TestClient(create_app(predictor), raise_server_exceptions=False) as client:

        def broken(pictures: Any) -> Any:
            raise RuntimeError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(predictor, "infer_all", broken)
            failed = client.post("/predict", files=files(png(1)))
        assert (failed.status_code, "its log says why" in failed.text) == (500, True)
        assert client.post("/predict", files=files(png(1))).status_code == 200
        assert 'mbconv_requests_total{status="500"} 1.0' in client.get("/metrics").text


def test_one_thread_computes_from_the_first_warm_up_on(small_model: Path) -> None:
    """OpenMP throttles its barriers where helpers of several threads outnumber the cores."""
    predictor, infer, seen = Predictor(small_model), Predictor.infer, set[int]()

    def watched(pixels: Any) -> Any:
        seen.add(threading.get_ident())
        return infer(predictor, pixels)

    predictor.infer = watched  # type: ignore[method-assign]
    with TestClient(create_app(predictor)) as client:
        assert len(seen) == 1, "warmed up"
        assert client.post("/predict", files=files(png(1), png(2))).status_code == 200
    assert len(seen) == 1


def test_a_network_that_cannot_be_warmed_up_ends_the_start(small_model: Path) -> None:
    predictor = Predictor(small_model)

    def broken(pixels: Any) -> Any:
        raise RuntimeError("no memory")

    predictor.infer = broken  # type: ignore[method-assign]
    before = threading.active_count()
    with (
        pytest.raises(RuntimeError, match="no memory"),
        TestClient(create_app(predictor)),
    ):
        pass
    assert threading.active_count() <= before, "no thread is left behind"


def test_a_picture_alone_waits_for_nobody(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "LINGER", 30.0)
    with TestClient(create_app(Predictor(small_model))) as client:
        started = time.monotonic()
        got = client.post("/predict", files=files(png(1)))
        assert time.monotonic() - started < 10
        assert got.json()["results"][0]["batch"] == 1


def test_pictures_of_several_clients_share_a_batch(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "LINGER", 30.0)
    gate = Gate(small_model)
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


def test_a_client_that_leaves_does_not_hold_the_queue(small_model: Path) -> None:
    """What nobody waits for any more is passed over, and counted out."""
    gate = Gate(small_model)
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
