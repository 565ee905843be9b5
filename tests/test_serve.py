"""The API in this process: answers, refusals, pages, artifacts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from images import encoded, photo
from mbconv.export.run import export_model
from mbconv.measure.gradcam import grad_cam, overlay
from mbconv.runtime.artifact import Form
from mbconv.runtime.predictor import Predictor
from mbconv.serve.app import create_app
from mbconv.serve.limits import Limits
from server import files, png


@pytest.fixture(scope="module")
def client(small_model: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Predictor(small_model), limits=Limits(upload=100_000))) as client:
        yield client


def test_answers_are_predictors(client: TestClient, small_model: Path) -> None:
    contents = [png(1), encoded(photo(2)), png(3)]
    got = client.post("/predict?top=3", files=files(*contents))
    assert got.status_code == 200
    results = got.json()["results"]
    assert [result["source"] for result in results] == ["0.png", "1.png", "2.png"]
    for result, expected in zip(results, Predictor(small_model).predict(contents, 3), strict=True):
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


def test_heat_maps(client: TestClient, small_model: Path) -> None:
    predictor = Predictor(small_model)
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


def test_an_artifact(small_model: Path, tmp_path: Path) -> None:
    """OpenVINO compiles for each batch size: only a few sizes are used. No heat maps."""
    exported = export_model(
        small_model, tmp_path / "small.xml", form=Form(runtime="openvino"), pictures=False
    )
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


@pytest.mark.slow
def test_an_artifact_that_takes_pictures_of_any_size(small_model: Path, tmp_path: Path) -> None:
    form = Form(runtime="openvino")
    exported = export_model(small_model, tmp_path / "small.xml", form=form, pictures=True)
    contents = [png(1), encoded(photo(2, 70, 200)), png(1)]
    with TestClient(create_app(Predictor(exported.paths["pictures"]))) as client:
        results = client.post("/predict", files=files(*contents)).json()["results"]
    for result, expected in zip(results, Predictor(small_model).predict(contents), strict=True):
        assert result["batch"] == 1
        best = {guess["index"]: guess["score"] for guess in result["predictions"]}
        assert best[expected.indices[0]] == pytest.approx(expected.scores[0], abs=0.02)
