"""A step that is not finite: it stops at once, names its origin, and can be computed again."""

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import mbconv
from mbconv.cli import main
from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.training.diagnosis import FILE, Diverged, Trace, trace
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.recipe import Phase, Recipe
from mbconv.training.replay import replay
from small import SMALL, write_classes, write_model

PLAIN = Machine(threads=1, workers=0)
RECIPE = Recipe(name="t", phases=(Phase(32, 1),))


def batch(seed: int = 0) -> Batch:
    drawn = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=drawn)
    return Batch(pixels, torch.arange(8) % 4, ())


def made() -> Trainer:
    torch.manual_seed(0)
    return Trainer(mbconv.build(SMALL), RECIPE, PLAIN, total=4)


def breaks(module: torch.nn.Module, *, backward: bool = False) -> None:
    """Make the module's output, or the gradient that comes back to it, infinite."""
    if backward:
        module.register_forward_hook(
            lambda m, x, y: y.register_hook(lambda g: g * math.inf) and None
        )
    else:
        module.register_forward_hook(lambda m, x, y: y * math.inf)


def test_the_layer_is_named_and_nothing_is_changed() -> None:
    trainer = made()
    trainer.step(batch(), 0, seed=5)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    average = {name: value.clone() for name, value in trainer.ema.state_dict().items()}
    breaks(trainer.model.stages[1][0].depthwise)
    with pytest.raises(Diverged) as caught:
        trainer.step(batch(1), 1, seed=5)
    words = str(caught.value)
    assert "The loss is no longer a finite number at step 2" in words
    assert "first layer whose output is not finite is stages.1.0.depthwise." in words
    assert "lower learning rate" in words
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in trainer.ema.state_dict().items():
        assert torch.equal(value, average[name]), name
    step = caught.value.step
    assert (step["index"], step["seed"]) == (1, 5)
    assert torch.equal(step["pixels"], batch(1).pixels)


def test_broken_weights_are_named() -> None:
    trainer = made()
    with torch.no_grad():
        trainer.model.head.classifier.bias.fill_(float("inf"))
    with pytest.raises(UserError, match="were not finite even before") as caught:
        trainer.step(batch(), 0, seed=0)
    assert "The weights head.classifier.bias were" in str(caught.value)


def test_a_gradient_that_breaks_is_named() -> None:
    trainer = made()
    breaks(trainer.model.stages[1][0], backward=True)
    with pytest.raises(UserError, match="A gradient is no longer a finite number at step 1") as e:
        trainer.step(batch(), 0, seed=0)
    assert "first such gradient is that of stages.1.0.project" in str(e.value)


def test_the_sentence_follows_the_order_of_the_step() -> None:
    good = {"a": 1.0, "b": 2.0}
    assert "weights b" in Trace(1.0, {"a": 1.0, "b": math.nan}, good, good).culprit()
    assert "finite is a" in Trace(math.nan, good, {"a": math.inf, "b": math.nan}, good).culprit()
    assert "it is the loss" in Trace(math.nan, good, good, good).culprit()
    both = {"a": math.nan, "b": math.nan}
    assert "that of b" in Trace(1.0, good, good, both).culprit()
    assert "MBCONV_KERNELS=plain" in Trace(1.0, good, good, good).culprit()


def test_a_trace_has_every_layer_and_leaves_no_hooks() -> None:
    trainer = made()
    trainer.seed(0, 0)
    loss = trainer.backward(batch()).item()
    found = trace(trainer, batch(), 0, seed=0)
    assert found.loss == pytest.approx(loss, rel=1e-4)
    assert {"stem.conv", "stages.1.0.gate.reduce", "head.classifier"} <= set(found.outputs)
    names = list(found.outputs)
    assert names.index("stem.conv") < names.index("stages.2.1.project") < names.index("head.conv")
    assert set(found.gradients) == {name for name, _ in trainer.model.named_parameters()}
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_a_run_keeps_the_step_and_replays_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbconv.training.setup.choose_machine", lambda *_: PLAIN)
    data, start = write_classes(tmp_path / "data"), write_model(tmp_path / "start.safetensors")
    run = tmp_path / "run"
    changes = ["batch_size=10", "optimizer.name=sgd", "optimizer.learning_rate=1e30",
               "transfer.frozen_stages=0"]  # fmt: skip
    with pytest.raises(UserError, match=f"mbconv replay {run}"):
        mbconv.train(start, data, run, epochs=2, resolution=32, changes=changes, quiet=True)
    assert (run / FILE).is_file()
    step, found = replay(run)
    assert step >= 2
    assert not math.isfinite(found.loss)
    assert "not finite" in found.culprit()
    done = CliRunner().invoke(main, ["replay", str(run)])
    assert done.exit_code == 0, done.output
    assert f"step {step}: loss" in done.output
    assert found.culprit() in done.output
    assert any(line.startswith("stem.conv ") for line in done.output.splitlines())
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"]["optimizer"]["learning_rate"] == 1e30
    (run / FILE).write_bytes(b"broken")
    with pytest.raises(UserError, match="is broken or belongs to another"):
        replay(run)
    (run / FILE).unlink()
    with pytest.raises(UserError, match="nothing to replay"):
        replay(run)
