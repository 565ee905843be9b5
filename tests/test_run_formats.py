"""Run folders of earlier formats are still read: by --config and by --resume."""

import json
from pathlib import Path
from typing import Any

import pytest

import mbconv
from mbconv.errors import UserError
from mbconv.training import folder
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.override import changed
from mbconv.training.recipe import Phase, Recipe
from mbconv.training.recipes import finetune
from mbconv.weights.file import tensor_hash
from small import write_classes, write_model

EXPECTED = changed(finetune(30, 128, epochs=3), ["batch_size=30"])
GOLDEN = Path(__file__).parent / "golden" / "run_config1.json"
PLAIN = Machine(threads=1, workers=0)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbconv.training.setup.choose_machine", lambda *_: PLAIN)


def test_a_config_of_format_1_is_read() -> None:
    assert json.loads(GOLDEN.read_text())["format"] == 1
    config = folder.read_config(GOLDEN)
    assert config["format"] == folder.FORMAT == 2
    recipe = Recipe.from_dict(config["recipe"])
    assert recipe == EXPECTED
    assert recipe.phases == (Phase(96, 1), Phase(128, 2))
    assert recipe.transfer.frozen_stages == 4
    assert Machine.from_dict(config["machine"]).workers == 0


def test_training_by_a_config_of_format_1(tmp_path: Path) -> None:
    data, start = write_classes(tmp_path / "data"), write_model(tmp_path / "m.safetensors")
    run = mbconv.train(start, data, tmp_path / "run", config=GOLDEN, quiet=True)
    written = json.loads((run.path / "config.json").read_text())
    assert written["format"] == 2
    assert written["recipe"] == EXPECTED.to_dict()


def flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as format 1 had it."""
    rest = {name: recipe[name] for name in ("name", "phases", "batch_size")}
    names = {
        "optimizer": ("learning_rate", "weight_decay"),
        "schedule": ("warmup",),
        "augmentation": ("crop_scale", "flip"),
        "loss": ("label_smoothing",),
        "regularization": ("drop_path", "ema_decay"),
        "transfer": ("head_resolution", "head_penalty", "frozen_stages", "norms"),
    }
    phases = [{"resolution": p["resolution"], "epochs": p["epochs"]} for p in rest["phases"]]
    grouped = {n: recipe[group][n] for group, own in names.items() for n in own}
    return {**rest, **grouped, "phases": phases}


def test_a_run_of_format_1_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, start = write_classes(tmp_path / "data"), write_model(tmp_path / "m.safetensors")
    wishes: dict[str, Any] = {"epochs": 3, "resolution": 32, "quiet": True}
    whole = mbconv.train(start, data, tmp_path / "whole", **wishes)
    step = Trainer.step

    def stops(self: Trainer, batch: Any, index: int, seed: int) -> float:
        if index == 2:
            raise KeyboardInterrupt
        return step(self, batch, index, seed)

    monkeypatch.setattr(Trainer, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        mbconv.train(start, data, tmp_path / "cut", **wishes)
    monkeypatch.setattr(Trainer, "step", step)
    path = tmp_path / "cut/config.json"
    config = json.loads(path.read_text())
    old = config | {"format": 1, "recipe": flat(config["recipe"])}
    assert set(old["recipe"]) == set(json.loads(GOLDEN.read_text())["recipe"])
    path.write_text(json.dumps(old))
    resumed = mbconv.resume(tmp_path / "cut", quiet=True)
    hashes = [tensor_hash(mbconv.load(run.path).state_dict()) for run in (whole, resumed)]
    assert hashes[0] == hashes[1]


def test_a_config_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(GOLDEN.read_text()) | {"format": 3}))
    with pytest.raises(UserError, match="newer mbconv"):
        folder.read_config(path)
