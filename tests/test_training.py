"""Training runs from end to end on a small network: equal, resumable, nothing half-written."""

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mbconv
from mbconv.data.decode import decode
from mbconv.data.loader import Batch, Pictures
from mbconv.errors import UserError
from mbconv.training import budget, session
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.override import changed
from mbconv.training.recipe import Phase, Recipe
from mbconv.training.recipes import find_recipe
from small import SMALL, weights, write_classes, write_model

PLAIN = Machine(threads=1, workers=0)
SHORT = Recipe(name="t", phases=(Phase(32, 1),))


def no_trials(*_: Any) -> Machine:
    return PLAIN


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks learn fastest on one thread and without a measurement before."""
    monkeypatch.setattr("mbconv.training.setup.choose_machine", no_trials)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "data")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "small.safetensors")


def test_a_run_leaves_what_it_promises(data: Path, model: Path, tmp_path: Path) -> None:
    seen = []
    run = mbconv.train(
        model,
        data,
        tmp_path / "run",
        epochs=3,
        resolution=32,
        on_epoch=lambda network, line: seen.append(line["epoch"]),
        quiet=True,
    )
    assert seen == [0, 1, 2, 3]
    assert {p.name for p in run.path.iterdir()} - {"tensorboard"} == {
        "config.json", "data.json", "metrics.jsonl", "evaluation.jsonl", "model.safetensors",
        "last", "report.html",
    }  # fmt: skip
    lines = [json.loads(s) for s in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == seen
    assert [line["phase"] for line in lines] == ["head", "full", "full", "full"]
    splits = json.loads((run.path / "data.json").read_text())["splits"]
    assert {name: len(paths) for name, paths in splits.items()} == {
        "train": 30, "val": 3, "test": 3,
    }  # fmt: skip
    assert not set(splits["train"]) & {*splits["val"], *splits["test"]}
    assert run.record.detail["split"] == "test"
    loaded = mbconv.load(run.path)
    assert loaded.labels == ("class0", "class1", "class2")
    assert loaded.preprocessing.resolution == 32
    best = max(line["val_ema"] for line in lines)
    kept = lines[loaded.provenance["epoch"]]
    assert loaded.provenance["val_top1"] == kept["val_ema"]
    assert session.is_kept(kept["val_ema"], best, n=3)
    assert mbconv.evaluate(run.path, data, split="all").value > 0.9  # a colour a class is learnt


def test_equal_configs_give_equal_runs(data: Path, model: Path, tmp_path: Path) -> None:
    mbconv.train(model, data, tmp_path / "a", epochs=2, resolution=32, seed=3, quiet=True)
    config = tmp_path / "a/config.json"
    mbconv.train(model, data, tmp_path / "b", config=config, quiet=True)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    first, second = (json.loads((tmp_path / r / "config.json").read_text()) for r in "ab")
    assert first["recipe"] == second["recipe"]
    assert first["machine"] == second["machine"]
    mbconv.train(model, data, tmp_path / "c", epochs=2, resolution=32, seed=4, quiet=True)
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_a_named_recipe_and_single_fields(data: Path, model: Path, tmp_path: Path) -> None:
    changes = ["optimizer.clip=2", "regularization.ema_decay=0.5"]
    run = mbconv.train(
        model, data, tmp_path / "run", recipe="scratch_small", changes=changes, epochs=2,
        resolution=32, flip=False, quiet=True,
    )  # fmt: skip
    recipe = Recipe.from_dict(json.loads((run.path / "config.json").read_text())["recipe"])
    assert (recipe.name, recipe.epochs, recipe.batch_size) == ("scratch_small", 2, 30)
    assert (recipe.optimizer.clip, recipe.regularization.ema_decay) == (2.0, 0.5)
    assert recipe.augmentation.flip is False
    own = changed(recipe, ["name=mine"])
    again = mbconv.train(model, data, tmp_path / "again", recipe=own, quiet=True)
    assert weights(again.path) == weights(run.path)
    with pytest.raises(UserError, match="give only that"):
        mbconv.train(model, data, tmp_path / "x", recipe=own, epochs=3, quiet=True)
    with pytest.raises(UserError, match="did you mean scratch"):
        mbconv.train(model, data, tmp_path / "x", recipe="scrath", quiet=True)
    with pytest.raises(UserError, match=r"optimizer\.clip"):
        mbconv.train(model, data, tmp_path / "x", changes=["clip=1"], quiet=True)
    assert not (tmp_path / "x").exists()


def test_a_classifier_from_zero_starts_at_the_logarithm_of_the_classes(
    data: Path, model: Path, tmp_path: Path
) -> None:
    losses = []
    for zero in ("true", "false"):
        changes = ["transfer.head_resolution=null", f"transfer.zero_head={zero}",
                   "optimizer.learning_rate=1e-30"]  # fmt: skip
        run = mbconv.train(
            model, data, tmp_path / zero, epochs=1, resolution=32, changes=changes, quiet=True
        )
        losses.append(json.loads((run.path / "metrics.jsonl").read_text())["train_loss"])
    assert losses[0] == pytest.approx(math.log(3), rel=1e-5)
    assert losses[1] != pytest.approx(math.log(3), rel=1e-3)


@pytest.mark.parametrize("name", ["efficientnet_tf", "efficientnetv2_progressive",
                                  "resnet_strikes_back_a2"])  # fmt: skip
def test_recipes_of_papers_train(data: Path, model: Path, tmp_path: Path, name: str) -> None:
    """On a few pictures, in the order of phases that the recipe has."""
    run = mbconv.train(
        model, data, tmp_path / "run", recipe=name, epochs=4, resolution=48, quiet=True
    )
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["train_loss"]) for line in lines)
    phases = find_recipe(name)(30, 48, epochs=4).phases
    sides = [phase.resolution for phase in phases for _ in range(phase.epochs)]
    assert [line["resolution"] for line in lines] == sides
    recipe = json.loads((run.path / "config.json").read_text())["recipe"]
    assert (recipe["batch_size"], recipe["optimizer"]["micro_batch"]) == (30, 32)


def test_what_stays_is_told(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = ["transfer.frozen_stages=1"]
    mbconv.train(model, data, tmp_path / "run", epochs=1, resolution=32, changes=frozen)
    network = mbconv.load(tmp_path / "run")
    learning = sum(p.numel() for part in (network.stages[1:], network.head)
                   for p in part.parameters())  # fmt: skip
    total = sum(p.numel() for p in network.parameters())
    told = f"stem and first stage frozen, batch-norm statistics stay: {learning:,} of {total:,} "
    assert told in capsys.readouterr().out


# Everything that draws numbers or keeps a state of its own.
EVERYTHING = (
    "phases=[{\"resolution\": 32, \"epochs\": 1}, "
    "{\"resolution\": 40, \"epochs\": 2, \"magnitude\": 5, \"mixup\": 0.4, \"dropout\": 0.3}]",
    "optimizer.name=rmsprop_tf", "optimizer.clip=1", "optimizer.micro_batch=5",
    "schedule.kind=one_cycle", "augmentation.policy=randaugment", "augmentation.erasing=0.5",
    "augmentation.cutmix=1", "loss.kind=bce", "loss.balance=sampling",
    "regularization.drop_path=0.3", "transfer.layer_decay=0.8",
)  # fmt: skip


@pytest.mark.parametrize(
    ("stop_at", "changes"),
    [(1, ()), (2, ()), (4, ()), (2, EVERYTHING), (3, ("optimizer.name=lamb",))],
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int,
    changes: tuple[str, ...],
) -> None:  # fmt: skip
    recipe = changed(SHORT, ["phases.0.epochs=3", "batch_size=12", *changes])
    monkeypatch.setattr("mbconv.training.setup.choose_recipe", lambda *_: recipe)
    whole = mbconv.train(model, data, tmp_path / "whole", quiet=True)
    step = Trainer.step

    def interrupted(self: Trainer, batch: Batch, index: int, seed: int) -> float:
        if index == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index, seed)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mbconv.train(model, data, tmp_path / "cut", quiet=True)
    state = torch.load(tmp_path / "cut/last/state.pt", weights_only=True)
    assert state["step"] == stop_at + 1  # the step that was running was finished
    monkeypatch.setattr(Trainer, "step", step)
    resumed = mbconv.resume(tmp_path / "cut", quiet=True)
    assert weights(whole.path) == weights(resumed.path)
    lines = (resumed.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert resumed.record.value == whole.record.value


def test_a_newer_network_is_kept_unless_it_is_clearly_worse() -> None:
    assert session.is_kept(0.5, 0.0, n=300)
    assert session.is_kept(0.9, 0.9, n=300)
    assert session.is_kept(0.885, 0.9, n=300)  # the standard error is 0.0173
    assert not session.is_kept(0.88, 0.9, n=300)
    assert session.is_kept(0.88, 0.9, n=100)


def test_a_picture_that_breaks_after_the_audit_is_left_out_and_named(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fit = session.Session.start_weights

    def then_break(self: session.Session, pictures: Pictures) -> None:
        fit(self, pictures)
        self.dataset.splits["train"][0].path.write_bytes(b"gone")

    monkeypatch.setattr(session.Session, "start_weights", then_break)
    mbconv.train(model, data, tmp_path / "run", epochs=1, resolution=32)
    out = capsys.readouterr().out
    assert "left out: " in out
    assert "class0" in out


@pytest.mark.skipif(sys.platform != "linux", reason="the cache needs Linux")
def test_the_heads_fit_leaves_its_pictures_for_the_first_epoch(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, there = session.Session.learn, []

    def look(self: session.Session, pictures: Pictures) -> None:
        assert pictures.cache is not None
        there.extend(pictures.cache.find(i) is not None for i in range(len(pictures.samples)))
        learn(self, pictures)

    monkeypatch.setattr(session.Session, "learn", look)
    mbconv.train(model, data, tmp_path / "run", epochs=2, resolution=32, quiet=True)
    assert there
    assert all(there)


def test_unreadable_files_stop_nothing(data: Path, model: Path, tmp_path: Path) -> None:
    (data / "class0" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    run = mbconv.train(model, data, tmp_path / "run", epochs=1, resolution=32, quiet=True)
    saved = json.loads((run.path / "data.json").read_text())
    assert [item["path"] for item in saved["audit"]["unreadable"]] == ["class0/broken.jpg"]
    assert not any("class0/broken.jpg" in paths for paths in saved["splits"].values())


def test_mistakes_get_a_sentence_and_leave_nothing(data: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for wishes, words in (
        ({"epochs": 1, "budget": 60.0}, "either epochs or a budget"),
        ({"epochs": 0}, "above zero"),
        ({"resolution": 8}, "at least 32"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"config": tmp_path / "none.json"}, "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            mbconv.train(model, data, out, quiet=True, **wishes)
        assert not out.exists(), words
    mbconv.train(model, data, out, epochs=1, resolution=32, quiet=True)
    with pytest.raises(UserError, match="already holds a run"):
        mbconv.train(model, data, out, quiet=True)
    for path in (out / "last").iterdir():  # the newest and the one before it
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="broken or belongs to another"):
        mbconv.resume(out, quiet=True)
    with pytest.raises(UserError, match="no run to take it from"):
        mbconv.resume(tmp_path / "nowhere", quiet=True)


def test_a_run_ends_before_its_budget_does(
    data: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An epoch that turns out longer than planned is not followed by one that would not fit."""
    recipe = Recipe(name="t", phases=(Phase(32, 30),), batch_size=12)
    monkeypatch.setattr("mbconv.training.plan.fit_budget", lambda *_: recipe)
    monkeypatch.setattr("mbconv.training.plan.pixel_rate", lambda *_: 1.0)
    monkeypatch.setattr(budget, "FINISH", 59.0)
    run = mbconv.train(model, data, tmp_path / "run", budget=60.0, device="cpu")
    assert "stopping here" in capsys.readouterr().out
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) < 30
    assert (run.path / "report.html").exists()


def test_fresh_weights_say_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(SMALL.to_json())
    run = mbconv.train(spec, data, tmp_path / "run", epochs=1, resolution=32)
    assert "learns from nothing" in capsys.readouterr().out
    config = json.loads((run.path / "config.json").read_text())
    assert config["recipe"]["name"] == "scratch"
    assert config["recipe"]["transfer"]["norms"] == "train"


@pytest.mark.data
def test_hostile_pictures_among_good_ones(data: Path, model: Path, data_root: Path,
                                          tmp_path: Path) -> None:  # fmt: skip
    """Readable ones are used, the others named, and upright ones are upright."""
    for path in (data_root / "hostile").iterdir():
        if path.suffix != ".csv":
            (data / "class1" / path.name).symlink_to(path)
    run = mbconv.train(model, data, tmp_path / "run", epochs=1, resolution=32, quiet=True)
    saved = json.loads((run.path / "data.json").read_text())["audit"]
    assert sorted(Path(item["path"]).name for item in saved["unreadable"]) == [
        "65536-uint32-limit.png", "corrupt-header.jpg", "giant-image.jpg", "truncated.jpg",
        "truncated.png",
    ]  # fmt: skip
    assert saved["exif_rotated"] == 3
    with Image.open(data / "class1" / "Landscape_6.jpg") as stored:
        assert stored.size == (450, 600)
    assert decode(data / "class1" / "Landscape_6.jpg").size == (600, 450)


@pytest.mark.skipif(os.sep != "/", reason="such names exist on POSIX systems only")
def test_names_whose_bytes_are_no_utf8(model: Path, tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", classes=2)
    os.rename(os.fsencode(data / "class1"), os.fsencode(data) + b"/caf\xe9")
    run = mbconv.train(model, data, tmp_path / "run", epochs=1, resolution=32, quiet=True)
    assert json.loads((run.path / "data.json").read_text())["classes"] == ["caf\udce9", "class0"]
