"""Finding pictures, predicting them in order, and printing what came out."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.arch.zoo import get_spec
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet, build
from mbconv.preprocessing import Preprocessing
from mbconv.report.predictions import write_predictions
from mbconv.runtime import predictor as predictor_module
from mbconv.runtime.pictures import find_pictures
from mbconv.runtime.predictor import Output, Picture, Prediction, Predictor


@pytest.fixture(scope="module")
def model() -> MBConvNet:
    torch.manual_seed(0)
    blocks = Block(channels=8, stride=2, gate="se"), Block(channels=8)
    spec = Spec(
        stages=(Stage(blocks=blocks),), stem_channels=8, head_channels=16,
        num_classes=7, drop_path=0.5, dropout=0.5,
    )  # fmt: skip
    network = build(spec)
    network.preprocessing = Preprocessing(resolution=32, resize=36)
    with torch.no_grad():  # statistics that are not the identity, so that eval mode matters
        network.train()(torch.randn(16, 3, 32, 32))
    return network.eval()


def noise(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pictures of very different sizes, so that threads finish out of order."""
    root = tmp_path_factory.mktemp("pictures")
    for seed in range(11):
        side = 900 if seed % 3 == 0 else 40
        noise(seed, side, side).save(root / f"{seed:02}.png")
    return root


def logits_of(outputs: Iterator[Output]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.stack([output.logits for output in outputs if output.logits is not None])


def reference(model: MBConvNet, path: Path) -> torch.Tensor:
    """The logits of one picture through torchvision's transforms."""
    from torchvision.transforms import v2

    p = model.preprocessing
    steps = v2.Compose(
        [
            v2.Resize(p.resize, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(p.resolution),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(p.mean), list(p.std)),
        ]
    )
    with torch.no_grad():
        result: torch.Tensor = model(steps(Image.open(path).convert("RGB"))[None])[0]
    return result


def test_order_is_kept_and_logits_are_those_of_an_independent_path(
    model: MBConvNet, folder: Path
) -> None:
    paths = sorted(folder.iterdir())
    predictions = list(Predictor(model, batch_size=4, threads=4).predict(paths, top_k=3))
    assert [p.source for p in predictions] == [str(path) for path in paths]
    for path, prediction in zip(paths, predictions, strict=True):
        expected = reference(model, path)
        assert prediction.logits is not None
        np.testing.assert_allclose(prediction.logits, expected, atol=0.02)  # a grey level or two
        scores, best = expected.softmax(0).topk(3)
        assert prediction.scores == pytest.approx(scores.tolist(), abs=0.01)
        assert prediction.labels[0] == str(best[0].item())


def test_batch_size_does_not_change_the_logits(model: MBConvNet, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    one = logits_of(Predictor(model, batch_size=1).logits(paths))
    for size in (3, 11, 64):
        many = logits_of(Predictor(model, batch_size=size).logits(paths))
        np.testing.assert_allclose(many, one, atol=1e-5)


def test_all_kinds_of_pictures_are_the_same_picture(model: MBConvNet, tmp_path: Path) -> None:
    image = noise(1)
    image.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    predictor = Predictor(model)
    kinds: list[Picture] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        content,
        image,
        np.asarray(image),
    ]
    outputs = list(predictor.logits(kinds))
    assert [o.source for o in outputs[2:]] == ["picture 3", "picture 4", "picture 5"]
    for output in outputs:
        assert output.logits is not None
        np.testing.assert_array_equal(output.logits, outputs[0].logits)
    assert [o.source for o in predictor.logits(str(tmp_path / "a.png"))] == [kinds[1]]


def test_grey_arrays_and_turned_pictures(model: MBConvNet, tmp_path: Path) -> None:
    grey = np.arange(48 * 40, dtype=np.uint32).reshape(40, 48).astype(np.uint8)
    turned = Image.fromarray(grey).rotate(90, expand=True).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned.save(tmp_path / "t.png", exif=exif)
    opened = Image.open(tmp_path / "t.png")
    upright, from_file, from_image = Predictor(model).logits([grey, tmp_path / "t.png", opened])
    for output in (from_file, from_image):
        assert output.logits is not None
        np.testing.assert_array_equal(output.logits, upright.logits)


def test_a_broken_picture_gets_its_own_line(model: MBConvNet, folder: Path, tmp_path: Path) -> None:
    good = sorted(folder.iterdir())
    cut = tmp_path / "cut.png"
    cut.write_bytes(good[0].read_bytes()[:3000])
    paths = [cut, good[1], good[2], tmp_path / "none.png", good[3], tmp_path]
    alone = logits_of(Predictor(model).logits(good[1:4]))
    for size in (1, 2, 8):
        predictions = list(Predictor(model, batch_size=size).predict(paths))
        assert [p.source for p in predictions] == [str(path) for path in paths]
        assert [p.error is None for p in predictions] == [False, True, True, False, True, False]
        assert (predictions[0].labels, predictions[0].scores) == ((), ())
        kept = np.stack([p.logits for p in predictions if p.logits is not None])
        np.testing.assert_allclose(kept, alone, atol=1e-5)


def test_an_opened_picture_that_is_cut_off(model: MBConvNet, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes((folder / "00.png").read_bytes()[:3000])
    with Image.open(tmp_path / "cut.png") as opened:
        (output,) = Predictor(model).logits([opened])
    assert output.logits is None
    assert output.error


def test_no_more_than_three_batches_are_taken(model: MBConvNet) -> None:
    taken = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal taken
        while True:
            taken += 1
            yield noise(taken)

    predictor = Predictor(model, batch_size=4)
    predictions = predictor.predict(endless())
    assert taken == 0
    for number in range(1, 14):
        assert next(predictions).source == f"picture {number}"
        assert taken <= 4 * ((number - 1) // 4 + 3)


@pytest.mark.parametrize(
    ("busy", "threads", "batch", "expected"),
    [(1.8, 2, 4, 0), (0.9, 2, 4, 4), (1.8, 1, 4, 4), (1.8, 8, 4, 4)],
)
def test_a_processor_reads_ahead_where_cores_are_idle(
    model: MBConvNet, monkeypatch: pytest.MonkeyPatch, busy: float, threads: int, batch: int,
    expected: int,
) -> None:  # fmt: skip
    """Beside slow files (`busy` cores of two while reading), with too few threads, or too few
    pictures for them; else a batch is read when the one before it is computed."""
    clock = iter(range(10**6))
    monkeypatch.setattr(predictor_module, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(predictor_module, "process_time", lambda: busy * float(next(clock)))
    monkeypatch.setattr(predictor_module, "usable_cores", lambda: 2)
    monkeypatch.setattr(Predictor, "_timed", lambda self, picture: (self.prepare(picture), 0.0))
    taken = 0

    def asked() -> Iterator[Image.Image]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield noise(number)

    ahead = []
    outputs = Predictor(model, batch_size=batch, threads=threads).logits(asked())
    for number, output in enumerate(outputs):
        assert output.source == f"picture {number + 1}"
        ahead.append(taken - batch * (number // batch + 1))
    assert max(ahead[batch:]) == expected


def test_what_can_be_called_gives_prepared_pixels(model: MBConvNet, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    predictor = Predictor(model)
    made = (lambda wanted, path=path: Predictor(model).prepare(path) for path in paths)
    np.testing.assert_array_equal(
        logits_of(predictor.logits(made)), logits_of(predictor.logits(paths))
    )


def test_a_mistake_in_the_call_is_raised(model: MBConvNet) -> None:
    with pytest.raises(TypeError):
        list(Predictor(model).predict([np.zeros((8, 8, 3))]))  # floats have no known range


def test_modes_and_gradients_are_as_before(model: MBConvNet, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    expected = logits_of(Predictor(model).logits(paths))
    try:
        model.train()
        model.stem.norm.eval()  # frozen statistics in the midst of training
        statistics = [buffer.clone() for buffer in model.buffers()]
        got = logits_of(Predictor(model).logits(paths))
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert model.training
        assert model.head.dropout.training
        assert not model.stem.norm.training
        assert all(torch.equal(a, b) for a, b in zip(statistics, model.buffers(), strict=True))
        loss = model(torch.randn(2, 3, 32, 32)).sum()
        loss.backward()
        assert isinstance(model.head.classifier.weight.grad, torch.Tensor)
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()


def test_number_formats(model: MBConvNet, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    exact = logits_of(Predictor(model).logits(paths))
    half = logits_of(Predictor(model, dtype=torch.bfloat16).logits(paths))
    assert half.dtype == np.float32
    assert not np.array_equal(half, exact)
    np.testing.assert_allclose(half, exact, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):  # a training loop's must not leak in
        inside = logits_of(Predictor(model).logits(paths))
    np.testing.assert_allclose(inside, exact, atol=1e-5)


def test_labels_top_k_and_another_resolution(model: MBConvNet, folder: Path) -> None:
    path = folder / "01.png"
    (all_of_them,) = Predictor(model).predict([path], top_k=99)
    assert sorted(all_of_them.labels) == [str(i) for i in range(7)]
    assert list(all_of_them.scores) == sorted(all_of_them.scores, reverse=True)
    assert sum(all_of_them.scores) == pytest.approx(1)
    smaller = Predictor(model, preprocessing=model.preprocessing.at(16))
    assert smaller.prepare(path).shape == (16, 16, 3)


@pytest.mark.parametrize(("name", "expected"), [("efficientnet_b0", 16), ("efficientnet_b7", 1)])
def test_the_batch_fits_the_memory(name: str, expected: int) -> None:
    with torch.device("meta"):
        network = MBConvNet(get_spec(name))
    assert Predictor(network).batch_size == 32  # no CPU
    network = network.to_empty(device="cpu")
    assert Predictor(network).batch_size == expected
    assert Predictor(network, batch_size=50).batch_size == 50


def test_wrong_numbers_are_refused(model: MBConvNet) -> None:
    with pytest.raises(UserError, match="batch size is 0"):
        Predictor(model, batch_size=0)
    with pytest.raises(UserError, match="classes to show is 0"):
        Predictor(model).predict([], top_k=0)
    grey = MBConvNet(model.spec.replace(in_channels=1))
    with pytest.raises(UserError, match="takes 1 channels"):
        Predictor(grey)


@pytest.mark.data
def test_hostile_files(model: MBConvNet, data_root: Path) -> None:
    root = data_root / "hostile"
    with (root / "EXPECTED.csv").open() as file:
        outcome = {row["file"]: row["outcome"] for row in csv.DictReader(file)}
    paths = [root / name for name in outcome]
    predictions = list(Predictor(model, batch_size=4).predict(paths))
    assert [Path(p.source).name for p in predictions] == list(outcome)
    read = {Path(p.source).name: p.error is None for p in predictions}
    assert read == {name: what == "read" for name, what in outcome.items()}


def test_find_pictures_in_files_folders_globs_and_standard_input(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "deep/c.webp", "deep/.hidden.png", ".git/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    a, b, c = tmp_path / "a.PNG", tmp_path / "b.jpg", tmp_path / "deep" / "c.webp"
    notes, missing = tmp_path / "notes.txt", tmp_path / "missing.png"
    assert find_pictures([tmp_path]) == [a, b, c]
    assert find_pictures([str(notes), b, missing, b]) == [notes, b, missing, b]
    assert find_pictures([tmp_path / "*.jpg", tmp_path / "*.gif"]) == [b, tmp_path / "*.gif"]
    assert find_pictures([str(tmp_path / "**")]) == [a, b, c]
    lines = io.StringIO(f"{b}\n\n{tmp_path / 'deep'}\r\n")
    assert find_pictures(["-", a], lines) == [b, c, a]


def test_an_existing_name_wins_over_a_pattern(tmp_path: Path) -> None:
    for name in ("photo[1].png", "photo1.png"):
        (tmp_path / name).write_bytes(b"")
    assert find_pictures([tmp_path / "photo[1].png"]) == [tmp_path / "photo[1].png"]


def test_an_empty_folder_among_pictures_stays_visible(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    found = find_pictures([tmp_path / "empty", tmp_path / "a.png"])
    assert found == [tmp_path / "empty", tmp_path / "a.png"]


def test_no_picture_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No picture was given"):
        find_pictures([])
    with pytest.raises(UserError, match="No picture was given"):
        find_pictures(["-"], io.StringIO("\n"))
    with pytest.raises(UserError, match=r"no\.png does not exist"):
        find_pictures([tmp_path / "no.png", tmp_path / "either.png"])
    with pytest.raises(UserError, match=r"holds no picture \(\.avif, "):
        find_pictures([tmp_path])
    picture = io.TextIOWrapper(io.BytesIO(b"\x89PNG\r\n\x1a\n\x00"), encoding="utf-8")
    with pytest.raises(UserError, match="Standard input holds no text"):
        find_pictures(["-"], picture)


PREDICTIONS = [
    Prediction("a.jpg", ("cat", 'the "dog", tied'), (0.98765432, 0.01)),
    Prediction("bro\nken.jpg", (), (), "cut off"),
    Prediction("naïve.jpg", ("été",), (1.0,)),
]


def test_json_lines() -> None:
    file = io.StringIO()
    assert write_predictions(PREDICTIONS, file, format="jsonl") == 1
    rows = [json.loads(line) for line in file.getvalue().splitlines()]
    assert rows[0]["predictions"][0] == {"label": "cat", "score": 0.987654}
    assert rows[1] == {"source": "bro\nken.jpg", "predictions": [], "error": "cut off"}
    assert rows[2]["source"] == "naïve.jpg"


def test_csv() -> None:
    file = io.StringIO()
    assert write_predictions(PREDICTIONS, file, format="csv", top_k=2) == 1
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert list(rows[0]) == ["source", "error", "label_1", "score_1", "label_2", "score_2"]
    assert rows[0]["label_2"] == 'the "dog", tied'
    assert list(rows[1].values()) == ["bro\nken.jpg", "cut off", "", "", "", ""]
    assert list(rows[2].values()) == ["naïve.jpg", "", "été", "1.000000", "", ""]


def test_table_has_a_line_each_and_columns() -> None:
    file = io.StringIO()
    assert write_predictions(PREDICTIONS, file, width=12) == 1
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("a.jpg" + " " * 10 + "98.8% cat")
    assert lines[1] == "bro\\nken.jpg  not read: cut off"
    assert lines[2].startswith("naïve.jpg" + " " * 5 + "100.0% été")


@pytest.mark.parametrize("kind", ["table", "jsonl", "csv"])
def test_lines_come_one_by_one_in_whatever_the_stream_can_encode(kind: str) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    lengths: list[int] = []

    def slowly() -> Iterator[Prediction]:
        for prediction in [*PREDICTIONS, Prediction("\udcff.jpg", ("😀",), (1.0,))]:
            lengths.append(len(raw.getvalue()))
            yield prediction

    write_predictions(slowly(), file, format=kind)  # type: ignore[arg-type]
    assert lengths == sorted(set(lengths))
    if kind == "jsonl":
        last = json.loads(raw.getvalue().splitlines()[-1])
        assert (last["source"], last["predictions"][0]["label"]) == ("\udcff.jpg", "😀")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UserError, match="'xml' is unknown"):
        write_predictions([], io.StringIO(), format="xml")  # type: ignore[arg-type]
