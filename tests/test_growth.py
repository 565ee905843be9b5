"""A run that starts from another run's network, grown."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import mbconv
from grown import calibrated, in_stage, relative
from mbconv.cli import main
from mbconv.growing.plan import plan
from mbconv.growing.transfer import grow
from mbconv.training import folder
from mbconv.training.growth import _moment, carry_over, grown
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.recipes import RECIPES
from small import SMALL, write_classes, write_model

LARGE = in_stage(mbconv.scale(SMALL, width=1.5, depth=2.0), 3, kernel=5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data"), classes=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    root = tmp_path_factory.mktemp("run")
    model = write_model(root / "small.safetensors")
    mbconv.train(model, pictures, root / "run", epochs=2, resolution=32, recipe="further",
                 quiet=True)  # fmt: skip
    return root / "run"


def trainer_of(network: mbconv.MBConvNet) -> Trainer:
    recipe = RECIPES["further"](40, 32, epochs=1)
    return Trainer(network, recipe, Machine(workers=0, channels_last=False), total=4)


def test_weights_average_and_moments_come_along(source: Path) -> None:
    trainer = trainer_of(grown(source, LARGE, seed=3))
    told = carry_over(trainer, source, seed=3)
    assert told is not None
    assert "their average, moments of" in told
    state = torch.load(source / "last" / "state.pt", weights_only=True)
    x = torch.randn(3, 3, 40, 36)
    old = folder.network_of(folder.read_config(source / "config.json"))
    old.load_state_dict(state["model"])
    assert relative(old.eval(), trainer.model.eval(), x) < 1e-4
    averaged = {n.removeprefix("module."): t for n, t in state["averaged"].items() if "." in n}
    old.load_state_dict(averaged)
    assert relative(old, trainer.ema.eval(), x) < 1e-4
    assert relative(old, trainer.model, x) > 1e-4  # the two are not the same
    assert trainer.averaged.n_averaged == state["averaged"]["n_averaged"]
    kept = trainer.optimizer.state[trainer.model.head.classifier.bias]
    assert kept["step"] == state["step"]
    order = [p for group in trainer_of(old).optimizer.param_groups for p in group["params"]]
    sizes = [p.shape for p in order]
    place = sizes.index(trainer.model.head.classifier.bias.shape)
    assert torch.equal(kept["exp_avg"], state["optimizer"]["state"][place]["exp_avg"])


def test_moments_move_as_gradients_do() -> None:
    """Over the copies of a channel, shares of a gradient add up to the old one's."""
    target = in_stage(in_stage(SMALL, 3, expand=4), 2, channels=32)
    wanted, old = plan(SMALL, target), calibrated(SMALL).double()
    new = grow(old, target)
    x, labels = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.arange(6) % 4
    for network in (old, new):
        F.cross_entropy(network(x), labels).backward()
    before, after = (dict(network.named_parameters()) for network in (old, new))
    for move in wanted.moves:
        if move.name not in after or not move.rows or move.name.startswith("head.classifier"):
            continue
        assert move.source is not None
        past, now = before[move.source].grad, after[move.name].grad
        moved = _moment(past, move, "exp_avg")
        assert moved.shape == now.shape
        width = len(past)
        both = [torch.stack([t[k::width].sum(0) for k in range(width)]) for t in (moved, now)]
        assert torch.allclose(*both, rtol=1e-6, atol=1e-10), move.name
        squares = _moment(past.square(), move, "exp_avg_sq")
        assert torch.allclose(squares, moved.square())


def test_the_command(tmp_path: Path, source: Path, pictures: Path) -> None:
    target = tmp_path / "large.json"
    target.write_text(LARGE.to_json())
    words = ["train", pictures, "--grow-from", source, "--model", target, "--epochs", "1",
             "--resolution", "32", "--out", tmp_path / "run"]  # fmt: skip
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert f"grown from {source} after" in done.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["grown_from"] == str(source)
    assert config["recipe"]["name"] == "further"
    assert config["base"]["grown_from"] == "small"
    assert mbconv.load(tmp_path / "run").spec.hash == LARGE.hash


def test_other_classes_take_the_kept_network_alone(source: Path) -> None:
    network = grown(source, LARGE, seed=0)
    network.reset_classifier(4)
    network.labels = ("a", "b", "c", "d")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trainer = trainer_of(network)
    assert carry_over(trainer, source, seed=0) is None
    assert all(torch.equal(t, before[n]) for n, t in trainer.model.state_dict().items())
    assert carry_over(trainer, source / "model.safetensors", seed=0) is None


def test_a_smaller_network_is_refused(tmp_path: Path, source: Path, pictures: Path) -> None:
    target = tmp_path / "less.json"
    target.write_text(in_stage(SMALL, 3, channels=16).to_json())
    words = ["train", pictures, "--grow-from", source, "--model", target, "--out", tmp_path / "run"]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 2
    assert "cannot grow into" in done.output
    assert not (tmp_path / "run" / "config.json").exists()
