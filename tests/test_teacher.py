"""A teacher's answers in the loss, and a run that has one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import mbconv
from mbconv.cli import main
from mbconv.data.loader import Batch
from mbconv.data.transform import normalise
from mbconv.errors import UserError
from mbconv.preprocessing import Preprocessing
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.recipe import Loss, Phase, Recipe, Regularization
from mbconv.training.teacher import FILE, as_seen_by, find_teacher, taught
from small import SMALL, weights, write_classes, write_model

PLAIN = Machine(workers=0)


def test_the_loss_is_shared_between_labels_and_teacher() -> None:
    torch.manual_seed(0)
    logits, answers, loss = torch.randn(5, 3), torch.randn(5, 3), torch.tensor(2.0)
    p, q = answers.softmax(1), logits.softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(taught(loss, logits, answers, 0.25), 0.75 * loss + 0.25 * divergence)
    assert taught(loss, logits, logits, 1.0) == pytest.approx(0, abs=1e-6)


def test_steps_bring_the_answers_nearer() -> None:
    torch.manual_seed(0)
    student, teacher = mbconv.build(SMALL), mbconv.build(SMALL)
    recipe = Recipe(name="t", phases=(Phase(32, 1),), loss=Loss(teacher=1.0),
                    regularization=Regularization(dropout=0.0, drop_path=0.0))  # fmt: skip
    trainer = Trainer(student, recipe, PLAIN, total=20, teacher=teacher)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    pixels = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    batch = Batch(pixels, torch.arange(16) % 4, ())
    losses = [trainer.step(batch, index, 0) for index in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data"), classes=4)


def test_a_budget_is_planned_from_steps_with_the_teacher(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    teacher = mbconv.load(write_model(tmp_path / "teacher.safetensors"))
    teacher.labels = ("class0", "class1", "class2", "class3")
    teacher.register_forward_hook(lambda *_: asked.append(1))

    def trial(machine: Machine, seconds_per_step: Callable[[Machine], float]) -> Machine:
        seconds = seconds_per_step(machine)
        return replace(machine, trials=({"ms_per_step": 1000 * seconds},))

    monkeypatch.setattr("mbconv.training.setup.measured", trial)
    mbconv.train(
        write_model(tmp_path / "small.safetensors"), pictures, tmp_path / "run", teacher=teacher,
        resolution=32, epochs=1, quiet=True,
    )  # fmt: skip
    assert len(asked) == 3, "one step that warms up and two that are timed; the run has a copy"


def test_an_interrupted_run_goes_on_with_its_teacher(tmp_path: Path, pictures: Path) -> None:
    teacher = mbconv.load(write_model(tmp_path / "teacher.safetensors"))
    teacher.labels = ("class0", "class1", "class2", "class3")
    student = write_model(tmp_path / "small.safetensors")

    def stop(network: mbconv.MBConvNet, line: dict[str, object]) -> None:
        if line["epoch"] == 1:
            raise KeyboardInterrupt

    mbconv.train(student, pictures, tmp_path / "whole", teacher=teacher, resolution=32, epochs=2,
                 recipe="further", quiet=True)  # fmt: skip
    same = {"config": tmp_path / "whole" / "config.json", "quiet": True}  # the machine's choices
    with pytest.raises(KeyboardInterrupt):
        mbconv.train(student, pictures, tmp_path / "cut", teacher=teacher, on_epoch=stop, **same)
    mbconv.resume(tmp_path / "cut", quiet=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    mbconv.train(student, pictures, tmp_path / "again", **same)  # as the config says, teacher too
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["teacher"] == "small"


def test_only_the_config_says_that_there_is_a_teacher(tmp_path: Path) -> None:
    write_model(tmp_path / FILE)  # left by a run that never began
    assert find_teacher(tmp_path, {"teacher": None}) is None
    found = find_teacher(tmp_path, {"teacher": "big"})
    assert found is not None
    assert not found.training
    (tmp_path / FILE).unlink()
    with pytest.raises(UserError, match="the teacher of this run, is gone"):
        find_teacher(tmp_path, {"teacher": "big"})


def test_a_teacher_sees_pictures_as_it_learnt_to() -> None:
    teacher, pixels = mbconv.build(SMALL), torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    own, half = Preprocessing(), Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
    teacher.preprocessing = half
    seen = as_seen_by(teacher, normalise(pixels, own), own)
    assert torch.allclose(seen, normalise(pixels, half), atol=1e-5)
    teacher.preprocessing = own
    x = normalise(pixels, own)
    assert as_seen_by(teacher, x, own) is x


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, pictures: Path) -> None:
    model = write_model(tmp_path / "m.safetensors")
    given = ["train", pictures, "--model", model, "--teacher", model, "--out", tmp_path / "run"]
    done = CliRunner().invoke(main, [str(word) for word in given])
    assert done.exit_code == 2
    assert "The teacher must know the 4 classes" in done.output
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(UserError, match="at most 1"):
        Loss(teacher=1.5)
