"""Every source is as good as a folder: audit, evaluation, training, resuming, the commands."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import mbconv
from mbconv.cli import main
from mbconv.data.audit import audit
from mbconv.data.augmentation import Augmentation
from mbconv.data.loader import Batch, Draw, Pictures, training_batches
from mbconv.data.pack import pack
from mbconv.data.source import Dataset, scan
from mbconv.errors import UserError
from mbconv.measure.accuracy import collect
from mbconv.runtime.predictor import Predictor
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.recipe import Optimizer, Phase, Recipe
from packed import write_csv, write_folder, write_shards, write_tar
from small import SMALL, weights, write_classes, write_model


def as_table(root: Path) -> Path:
    return write_csv(root)


def as_packed(root: Path) -> Path:
    pack(scan(write_folder(root / "in")), root / "out", shard_size=20_000)
    return root / "out"


def as_saved(root: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    made = {}
    for split in ("train", "test"):
        files = sorted((write_folder(root / "in") / split).rglob("*.jpg"))
        columns = {"image": [str(f) for f in files], "label": [f.parent.name for f in files]}
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["shoe", "hat"])}
        made[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    datasets.DatasetDict(made).save_to_disk(root / "saved")
    return root / "saved"


SOURCES: list[Callable[[Path], Path]] = [write_folder, as_table, write_shards, as_packed, as_saved]
of_all_kinds = pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)


def images(dataset: Dataset) -> Counter[tuple[str, bytes]]:
    """Split and pixels of every picture."""
    from mbconv.data.decode import decode

    return Counter(
        (split, decode(sample.path).tobytes())
        for split, samples in dataset.splits.items()
        for sample in samples
    )


@of_all_kinds
def test_the_same_pictures(make: Callable[[Path], Path], tmp_path: Path) -> None:
    found = scan(make(tmp_path / "made"))
    folder = scan(write_folder(tmp_path / "folder"))
    assert sorted(found.classes) == ["hat", "shoe"]
    assert images(found) == images(folder)
    checked, expected = audit(found), audit(folder)
    assert (checked.class_counts, checked.sizes, checked.modes, checked.near) == (
        expected.class_counts, expected.sizes, expected.modes, expected.near)  # fmt: skip
    assert checked.unreadable == []


@of_all_kinds
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_evaluation_counts_every_picture_once(
    make: Callable[[Path], Path], threads: int, tmp_path: Path
) -> None:
    dataset = scan(make(tmp_path))
    torch.manual_seed(0)
    network = mbconv.build(SMALL.replace(num_classes=2))
    for batch_size in (1, 3, 16):
        predictor = Predictor(network, batch_size=batch_size, threads=threads)
        collected = collect(predictor, list(dataset))
        assert len(collected.logits) == len(collected.targets) == len(dataset) == 16
        rows = zip(collected.paths, collected.targets.tolist(), strict=True)
        assert list(rows) == [(sample.path, sample.label) for sample in dataset]
        record = mbconv.evaluate(predictor, dataset, split="train")
        assert record.n == sum(row["n"] for row in record.detail["per_class"]) == 12
        assert np.sum(record.detail["confusion"]) == 12


@of_all_kinds
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_training_sees_every_picture_once(
    make: Callable[[Path], Path], workers: int, tmp_path: Path
) -> None:
    samples = scan(make(tmp_path)).splits["train"]
    pictures = Pictures(samples, Augmentation(crop_scale=0.5))
    draws = [
        [Draw(i, 32, (1, 1)) for i in row] for row in ([3, 0, 7, 11, 9], [1, 2, 4, 5, 6, 8, 10])
    ]
    batches = list(training_batches(pictures, draws, workers=workers))
    assert [b.labels.tolist() for b in batches] == [
        [samples[draw.picture].label for draw in row] for row in draws
    ]
    assert not any(batch.failures for batch in batches)
    alone = [np.stack([np.asarray(pictures[draw][0]) for draw in row]) for row in draws]
    for batch, expected in zip(batches, alone, strict=True):
        np.testing.assert_array_equal(batch.pixels.numpy(), expected)


def test_workers_that_are_spawned_read_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows and macOS: what a worker needs is pickled."""
    from torch.utils import data

    samples = scan(write_shards(tmp_path)).splits["train"]
    pictures = Pictures(samples, Augmentation(crop_scale=0.5, flip=False))
    loader = data.DataLoader(
        pictures,
        batch_sampler=[[Draw(0, 32, (1, 1)), Draw(5, 32, (1, 1))]],
        num_workers=1,
        collate_fn=pictures.collate,
        multiprocessing_context="spawn",
    )
    (batch,) = loader
    assert batch.labels.tolist() == [samples[0].label, samples[5].label]


# -- whole runs -----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = Optimizer(learning_rate=0.01)
    recipe = Recipe(name="t", phases=(Phase(32, 2),), batch_size=10, optimizer=optimizer)
    monkeypatch.setattr("mbconv.training.setup.choose_recipe", lambda *_: recipe)
    monkeypatch.setattr(
        "mbconv.training.setup.choose_machine", lambda *_: Machine(threads=1, workers=0)
    )


def test_a_packed_folder_trains_as_the_folder(quick: None, tmp_path: Path) -> None:
    model, data = write_model(tmp_path / "m.safetensors"), write_classes(tmp_path / "data")
    pack(scan(data), tmp_path / "shards", shard_size=30_000)
    runs = [mbconv.train(model, tmp_path / d, tmp_path / f"run {d}", quiet=True)
            for d in ("data", "shards")]  # fmt: skip
    assert weights(runs[0].path) == weights(runs[1].path)
    assert runs[0].record.value == runs[1].record.value
    splits = [json.loads((run.path / "data.json").read_text())["splits"] for run in runs]
    assert splits[0] == splits[1]
    for run in runs:  # what it learnt from is known again, wherever it lies
        record = mbconv.evaluate(run.path, run.path.parent / run.path.name.split()[1], split="all")
        assert record.detail["trained_on"] == len(splits[0]["train"])
    mistakes = [m for run in runs for m in run.record.detail["mistakes"]]
    assert all("thumbnail" in mistake for mistake in mistakes)


@pytest.mark.parametrize("kind", ["table", "pattern", "saved"])
def test_an_interrupted_run_goes_on(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model, data = write_model(tmp_path / "m.safetensors"), write_classes(tmp_path / "data")
    if kind == "table":
        rows = [
            f"data/{p.relative_to(data).as_posix()},{p.parent.name}" for p in data.rglob("*.png")
        ]
        (tmp_path / "list.csv").write_text("\n".join(("file,class", *rows)))
        source = "list.csv"
    elif kind == "saved":
        datasets = pytest.importorskip("datasets")
        files = sorted(data.rglob("*.png"))
        columns = {"image": [str(p) for p in files], "label": [p.parent.name for p in files]}
        table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        table.save_to_disk(tmp_path / "saved")
        source = "saved"
    else:
        pack(scan(data), tmp_path / "shards", shard_size=60_000)
        count = len(list((tmp_path / "shards").glob("*.tar")))
        source = f"shards/all-{{000000..{count - 1:06d}}}.tar"
    monkeypatch.chdir(tmp_path)
    whole = mbconv.train(model, source, tmp_path / "whole", quiet=True)
    step = Trainer.step

    def interrupted(self: Trainer, batch: Batch, index: int, seed: int) -> float:
        if index == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index, seed)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mbconv.train(model, source, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(Trainer, "step", step)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = mbconv.resume(tmp_path / "cut", quiet=True)
    assert weights(whole.path) == weights(resumed.path)
    assert json.loads((whole.path / "config.json").read_text())["data"] == source
    page = (whole.path / "report.html").read_text()
    assert "PICTURE.jpg" in page  # no shell knows what the names mean
    saved = json.loads((whole.path / "data.json").read_text())
    assert saved["source"] == str(tmp_path / source)


def test_a_source_that_changed_is_said(quick: None, tmp_path: Path) -> None:
    model, data = write_model(tmp_path / "m.safetensors"), write_classes(tmp_path / "data")
    pack(scan(data), tmp_path / "shards")
    run = mbconv.train(model, tmp_path / "shards", tmp_path / "run", quiet=True)
    (shard,) = (tmp_path / "shards").glob("*.tar")
    picture = next(data.rglob("*.png")).read_bytes()
    files = {f"{i}.png": picture for i in range(4)} | {
        f"{i}.cls": b"%d" % (i % 2) for i in range(4)
    }
    write_tar(shard, files)
    with pytest.raises(UserError, match=r"shards lacks class0/.*png, which this run uses"):
        mbconv.resume(run.path, quiet=True)


# -- Hugging Face's library -----------------------------------------------------------------------


def test_hugging_face_by_name_and_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = [Image.fromarray(np.full((40, 40, 3), 20 * i, np.uint8)) for i in range(8)]
    kinds = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a", "never"])}
    rows = {"img": pixels, "label": [0, 0, 1, 1, -1, 0, 1, 0]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    (tmp_path / "hub").mkdir()
    table.to_parquet(tmp_path / "hub" / "train.parquet")
    found = scan(f"hf:{tmp_path / 'hub'}")
    assert found.classes == ("b", "a")  # the set's own order; one that has no picture is left out
    assert list(found.splits) == ["all"]
    assert len(found) == 7
    assert found.source == f"hf:{tmp_path / 'hub'}"
    table.save_to_disk(tmp_path / "one")
    assert [scan(tmp_path / "one").classes, len(scan(tmp_path / "one"))] == [("b", "a"), 7]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", "b"]}, r"needs a column of images .* it has text \(Value\)"),
        ({"label": [1, 2]}, "needs a column of images"),
    ],
)
def test_hugging_face_columns(columns: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=message):
        scan(tmp_path / "saved")


def test_hugging_face_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match="cannot be loaded"):
        scan(f"hf:{tmp_path / 'nothing'}")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"mbconv\[datasets\]"):
        scan("hf:beans")


# -- the commands ---------------------------------------------------------------------------------


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@of_all_kinds
def test_data_check_and_eval_take_all(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = make(tmp_path / "made")
    network = mbconv.build(SMALL.replace(num_classes=2))
    network.labels = ("hat", "shoe")
    mbconv.save(network, tmp_path / "m.safetensors")
    checked = run("data", "check", source, "--json")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["class_counts"]["train"] == {"hat": 6, "shoe": 6}
    scored = run("eval", tmp_path / "m.safetensors", source, "--json")
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)["n"] == 4
    assert json.loads(scored.stdout)["detail"]["data"] == str(source)


def test_data_pack(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in")
    done = run("data", "pack", source, tmp_path / "out", "--shard-size", "20kB")
    assert done.exit_code == 0, done.output
    assert "16 pictures in " in done.output
    assert len(list((tmp_path / "out").glob("train-*.tar"))) > 1
    again = run("data", "pack", source, tmp_path / "out")
    assert again.exit_code == 2
    assert "is not empty" in again.output
    assert run("data", "pack", source, tmp_path / "x", "--shard-size", "much").exit_code == 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [("256MB", 256_000_000), ("1.5gb", 1_500_000_000), ("64MiB", 64 * 2**20), ("10", 10)],
)
def test_sizes(size: str, expected: int) -> None:
    from mbconv.cli.base import Size

    assert Size().convert(size, None, None) == expected


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("shards/train-{000..009}.tar", "train"),
        ("https://host/shards/{train,val}-{000..009}.tar", "shards"),
        ("photos/list.csv", "list"),
        ("hf:owner/beans:large", "beans"),
        ("{a,b}.tar", "data"),
    ],
)
def test_a_run_is_named_after_its_data(data: str, name: str) -> None:
    from mbconv.cli.classifier import _free_folder

    assert _free_folder(data) == Path("runs", name)


def test_train_names_its_run_after_the_data(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, root = write_model(tmp_path / "m.safetensors"), tmp_path / "sets"
    write_classes(root / "imagenette2-160")
    for source, name in (
        ("imagenette", "imagenette"),
        (f"{root}/imagenette2-160", "imagenette2-160"),
    ):
        done = run("train", source, "--model", model, "--data-root", root, "--device", "cpu")
        assert done.exit_code == 0, done.output
        assert f"predict: mbconv predict {Path('runs', name)} PICTURE" in done.output
    assert run("train", "nothing", "--model", model).exit_code == 2
