"""Runs whose network grows: what learns when, what comes along, and exact resuming."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import mbconv
from grown import calibrated, in_stage, relative
from launch import TESTS, ended, torchrun
from mbconv.arch.cost import cost
from mbconv.arch.scale import scale
from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec
from mbconv.cli import main
from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.growing.obstacles import obstacles
from mbconv.growing.smaller import smaller
from mbconv.training import session, setup, stages
from mbconv.training.budget import fit_budget
from mbconv.training.console import Reporter
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.networks import Networks, begin, check_growth
from mbconv.training.override import changed
from mbconv.training.recipe import Phase, Recipe, Transfer
from mbconv.training.recipes import find_recipe
from mbconv.weights import file as model_file
from small import SMALL, weights, write_classes, write_model

LARGE = in_stage(scale(SMALL, width=1.5, depth=2.0), 3, kernel=5).replace(name="large")
PLAIN = Machine(threads=1, workers=0)
STEPS = 6  # an epoch: 30 of 36 pictures in batches of 5
OPTIONS = ["--recipe", "grow", "--epochs", "4", "--resolution", "32", "--set", "batch_size=5"]


def growing(*networks: Any, **options: Any) -> Recipe:
    """An epoch for each network."""
    return Recipe(name="t", phases=tuple(Phase(32, 1, network=n) for n in networks), **options)


# -- which networks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        ("efficientnet_b1", "efficientnet_b0"),
        ("efficientnet_lite1", "efficientnet_lite0"),
        ("mobilenetv2_100", "mobilenetv2_075"),
        ("efficientnet_lite0", "efficientnet_lite0_w0.714_d0.5"),
        ("efficientnetv2_s", "efficientnetv2_s_w0.714_d0.5"),
    ],
)
def test_the_smaller_relative_grows_into_its_network(name: str, relative: str) -> None:
    spec = get_spec(name).replace(num_classes=7, bn_momentum=0.3)
    found = smaller(spec)
    assert found.name == relative
    assert not obstacles(found, spec)
    assert 0.1 < cost(found, spec.resolution).macs / cost(spec).macs < 0.8
    assert (found.num_classes, found.bn_momentum) == (7, 0.3)


def test_a_network_without_a_smaller_relative_says_so() -> None:
    least = SMALL.replace(stages=SMALL.stages[:1], head_channels=8)
    with pytest.raises(UserError, match=r"No smaller relative of small is known .* phases\.0"):
        smaller(least)


def test_every_phase_gets_its_network() -> None:
    recipe = Networks(LARGE).resolved(growing("smaller", None, SMALL, None))
    assert [p.network for p in recipe.phases] == [smaller(SMALL), SMALL, SMALL, LARGE]
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Networks(LARGE).resolved(recipe) == recipe
    plain = growing(None, None)
    assert Networks(LARGE).resolved(plain) == plain


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (growing(SMALL, LARGE, SMALL, None), "only grow, but phase 3 trains small .* after large"),
        (
            growing(SMALL.replace(activation="relu"), None),
            r"small of phase 1 cannot grow into large of phase 2 .*: stem activation is .*nearest "
            r"that it can become has 0\.04M",
        ),
        (growing(None, SMALL), "The last phase trains small, but the run is to end with large"),
        (growing("efficientnet_b9", None), "There is no network 'efficientnet_b9'"),
        (
            growing(SMALL, None, transfer=Transfer(frozen_stages=1)),
            "frozen_stages is 1, and what is new in frozen stages would never learn",
        ),
    ],
)
def test_networks_that_do_not_grow_are_refused(recipe: Recipe, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Networks(LARGE).resolved(recipe)


def test_two_starts_and_too_few_epochs_are_refused() -> None:
    with pytest.raises(UserError, match=r"--grow-from starts .* phases\.0\.network=runs/b0"):
        check_growth(growing(SMALL, None), "runs/b0")
    with pytest.raises(UserError, match="1 epoch leaves no room to grow"):
        check_growth(find_recipe("grow")(1000, 224, epochs=1), None)
    with pytest.raises(UserError, match="No phase of this grow names a network"):
        check_growth(replace(growing(None, None), name="grow"), None)
    with pytest.raises(UserError, match="network is 3; it must be a name, a file or a spec"):
        Phase(32, 1, network=3)  # type: ignore[arg-type]
    check_growth(growing(None), "runs/b0")


def test_the_first_network_has_its_published_weights() -> None:
    classes = ("a", "b", "c")
    asked = find_recipe("grow", pretrained=True)(300, 128, epochs=4)
    start = begin(asked, "efficientnet_lite1", classes, None, 0)
    assert (start.pretrained, start.source) == (True, "efficientnet_lite0")
    assert start.network.labels == classes
    stem = mbconv.load("efficientnet_lite0").stem.conv.weight
    assert torch.equal(start.network.stem.conv.weight, stem)
    recipe = start.resolved(asked)
    assert recipe.name == "grow_pretrained"
    assert recipe.transfer.frozen_stages == 0
    assert [p.network for p in recipe.phases] == [start.network.spec, start.whole.spec]
    assert start.describe(recipe) == [
        "  grows into efficientnet_lite1, 4.14M parameters, before epoch 3"
    ]
    again = begin(recipe, "efficientnet_lite1", classes, {"starts_from": start.source}, 0)
    assert torch.equal(again.network.stem.conv.weight, stem)
    assert again.resolved(recipe) == recipe
    fresh = replace(recipe, phases=(replace(recipe.phases[0], network=SMALL), *recipe.phases[1:]))
    with pytest.raises(UserError, match="small of phase 1 cannot grow into efficientnet_lite1"):
        begin(fresh, "efficientnet_lite1", classes, None, 0).resolved(fresh)


def test_the_stem_of_pretrained_weights_is_whitened_for_whoever_asks() -> None:
    own = setup.Settings(recipe="scratch_small")
    asked = setup.Settings(recipe="scratch_small", changes=("transfer.whiten_stem=true",))
    assert setup.choose_recipe(own, 128, 300, pretrained=False).transfer.whiten_stem
    assert not setup.choose_recipe(own, 128, 300, pretrained=True).transfer.whiten_stem
    assert setup.choose_recipe(asked, 128, 300, pretrained=True).transfer.whiten_stem


def test_recipes_from_scratch_leave_published_weights_alone(tmp_path: Path) -> None:
    classes = ("a", "b", "c")
    published = mbconv.load("efficientnet_lite0")
    recipe = find_recipe("scratch_small", pretrained=True)(300, 128)
    start = begin(recipe, "efficientnet_lite0", classes, None, 0)
    assert not start.pretrained
    assert not torch.equal(start.network.stem.conv.weight, published.stem.conv.weight)
    model_file.save(published, tmp_path / "own.pt")
    for model in (published, tmp_path / "own.pt"):  # whoever names weights wants them
        given = begin(recipe, model, classes, None, 0)
        assert given.pretrained
        assert torch.equal(given.network.stem.conv.weight, published.stem.conv.weight)
    grows = find_recipe("grow", pretrained=True)(300, 128, epochs=4)
    assert begin(grows, "efficientnet_lite1", classes, None, 0).source == "efficientnet_lite0"
    fresh = changed(grows, ["transfer.fresh=true"])
    assert begin(fresh, "efficientnet_lite1", classes, None, 0).source is None


def test_a_budget_counts_what_larger_networks_cost() -> None:
    whole = get_spec("efficientnet_b1")

    def make(resolution: int, epochs: int) -> Recipe:
        return Networks(whole).resolved(find_recipe("grow")(1000, resolution, epochs=epochs))

    first = make(224, 4)
    b0, b1 = (
        cost(p.network, p.resolution).macs for p in first.phases if isinstance(p.network, Spec)
    )
    work = [first.work(phase) for phase in first.phases]
    assert work[0] == first.phases[0].resolution ** 2
    assert work[1] / work[0] == pytest.approx(b1 / b0)
    assert b1 / b0 > (224 / 160) ** 2
    sizes = {"train": 1000, "val": 100}
    found = fit_budget(make, first, 1e6, 1000.0, sizes)
    seconds = sum(p.epochs * found.work(p) for p in found.phases) * 1050 / 1e6
    assert 0.75 * 1000 < seconds < 1000 * 7 / 8
    assert found.epochs < fit_budget(lambda r, e: find_recipe("scratch")(1000, r, epochs=e),
                                     first, 1e6, 1000.0, sizes).epochs  # fmt: skip


# -- growth in place ---------------------------------------------------------------------------


def trained(source: Spec, target: Spec, optimizer: str = "adamw") -> Trainer:
    """A trainer of `source` behind three steps of its epoch; the next is for `target`."""
    recipe = growing(source, target)
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, name=optimizer))
    trainer = Trainer(calibrated(source), recipe, PLAIN, total=6)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    for index in range(3):
        trainer.step(Batch(pixels, torch.arange(8) % 4, ()), index, seed=0)
    return trainer


FUSED = in_stage(SMALL, 3, kind="fused")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop_tf", "lamb"])
def test_growth_in_place_keeps_the_function_and_brings_everything(
    tmp_path: Path, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = scale(FUSED, width=1.5, depth=2.0).replace(name="wide")
    trainer = trained(FUSED, target, optimizer)
    old, average, averaged = trainer.model, trainer.ema, trainer.averaged.n_averaged.clone()
    before = dict(trainer.optimizer.state)
    rate = trainer.rate(3)
    stages.grow_if_due(tmp_path, trainer, 2, 0, Reporter())
    assert trainer.model is old  # not before its time
    stages.grow_if_due(tmp_path, trainer, 3, 0, Reporter())
    assert trainer.model.spec.hash == target.hash
    x = torch.randn(4, 3, 32, 32)
    assert relative(old.eval(), trainer.model.eval(), x) < 1e-4
    assert relative(average.eval(), trainer.ema.eval(), x) < 1e-4
    assert relative(average, trainer.model, x) > 1e-3  # the two are not the same
    assert trainer.averaged.n_averaged == averaged == 3
    assert trainer.rate(3) == rate
    bias = trainer.model.head.classifier.bias
    for key, value in before[old.head.classifier.bias].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(trainer.optimizer.state[bias][key], value)
    for parameter, kept in trainer.optimizer.state.items():
        for value in kept.values():
            if isinstance(value, torch.Tensor) and value.ndim == 4:
                # Fused optimizers pair them as they lie in memory.
                assert value.stride() == parameter.stride()
    told = capsys.readouterr().out
    assert f"stage 2: small has grown into wide, {cost(target).params:,} parameters, 32 px" in told
    assert f"moments of {len(before)} tensors came along" in told
    pixels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    loss = trainer.step(Batch(pixels, torch.arange(8) % 4, ()), 3, seed=0)
    assert 0 < loss < 10


# -- whole runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, the network that is asked for and the one that it grows from."""
    root = tmp_path_factory.mktemp("grow")
    write_classes(root / "data", each=12)
    (root / "large.json").write_text(LARGE.to_json())
    (root / "small.json").write_text(SMALL.to_json())
    write_model(root / "small.safetensors")
    return root


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbconv.training.setup.choose_machine", lambda *_: PLAIN)


def words(root: Path, out: Path, *more: object, first: str = "small.json") -> list[str]:
    """Of `mbconv`, for a run in `out`."""
    network = f"phases.0.network={root / first}"
    given = ["train", root / "data", "--model", root / "large.json", "--out", out, *OPTIONS,
             "--set", network, *more]  # fmt: skip
    return [str(word) for word in given]


@pytest.fixture(scope="module")
def whole(root: Path) -> tuple[Path, str]:
    """The run that nobody disturbs, and what it told."""
    out = root / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mbconv.training.setup.choose_machine", lambda *_: PLAIN)
        done = CliRunner().invoke(main, words(root, out))
    assert done.exit_code == 0, done.output
    return out, done.output


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_grows(whole: tuple[Path, str]) -> None:
    run, told = whole
    assert "grows into large, 0.04M parameters, before epoch 3" in told
    assert "stage 2: small has grown into large" in told
    assert "epoch 2/4, small, 32 px" in told
    lines = metrics(run)
    assert [(line["stage"], line["network"]) for line in lines] == [(1, "small")] * 2 + [
        (2, "large")
    ] * 2
    three = (spec.replace(num_classes=3) for spec in (SMALL, LARGE))
    assert [line["params"] for line in lines[1:3]] == [cost(spec).params for spec in three]
    kept = mbconv.load(run)
    assert kept.spec.hash == LARGE.replace(num_classes=3).hash
    assert kept.labels == ("class0", "class1", "class2")
    config = json.loads((run / "config.json").read_text())
    assert config["spec_name"] == "large"
    assert [p["network"]["name"] for p in config["recipe"]["phases"]] == ["small", "large"]
    page = (run / "report.html").read_text()
    assert "small (0.01 million parameters), the network itself learns" in page
    assert "large (0.04 million parameters), the network itself learns" in page


class Gone(BaseException):
    """The process ends here, without a word."""


def at_step(number: int) -> tuple[type, str, Callable[..., bool]]:
    return Trainer, "step", lambda trainer, batch, index, seed: index == number


MOMENTS: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "last step before": at_step(2 * STEPS - 1),
    "before growth": (stages, "grow_in_place", lambda *_: True),
    "while the kept one grows": (stages, "grow_kept", lambda *_: True),
    "first step behind": at_step(2 * STEPS),
    "next epoch": at_step(3 * STEPS),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_stops_anywhere_ends_as_one_that_does_not(
    root: Path, tmp_path: Path, whole: tuple[Path, str], moment: str
) -> None:
    place, name, holds = MOMENTS[moment]
    original = getattr(place, name)

    def gone(*given: Any, **options: Any) -> Any:
        if holds(*given, **options):
            raise Gone
        return original(*given, **options)

    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, gone)
        with pytest.raises(Gone):
            main(words(root, out), standalone_mode=False)
    mbconv.resume(out, quiet=True)
    assert weights(out) == weights(whole[0])
    states = [torch.load(run / "last" / "state.pt") for run in (out, whole[0])]
    for one, two in zip(*(state["model"].values() for state in states), strict=True):
        assert torch.equal(one, two)
    own = [{k: v for k, v in line.items() if k not in ("seconds", "img_per_s", "data_wait")}
           for line in metrics(out)]  # fmt: skip
    assert own == [{k: line[k] for k in own[0]} for line in metrics(whole[0])]


@pytest.mark.parametrize("moment", ["growth", "3"])
def test_a_killed_run_goes_on(
    root: Path, tmp_path: Path, whole: tuple[Path, str], moment: str
) -> None:
    """Behind growth, and while the state at the boundary is written."""
    out = tmp_path / "run"
    command = [sys.executable, str(TESTS / "stage_worker.py"), *words(root, out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILL": moment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    mbconv.resume(out, quiet=True)
    assert weights(out) == weights(whole[0])


def test_two_processes_grow_alike(root: Path, tmp_path: Path) -> None:
    """From a file's weights, with statistics that stay, so that shares add up to the batch."""
    more = ("--set", "regularization.dropout=0")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    given = (words(root, out, *more, first="small.safetensors") for out in (alone, shared))
    main(next(given), standalone_mode=False)
    code, output, errors = ended(torchrun(TESTS / "stage_worker.py", *next(given)))
    assert code == 0, errors
    assert output.count("stage 2: small has grown into large") == 1
    assert "pretrained weights" in output
    ends = [mbconv.load(run).state_dict() for run in (alone, shared)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4)
    assert [line["val_ema"] for line in metrics(alone)] == [
        line["val_ema"] for line in metrics(shared)
    ]


def test_a_run_that_ends_early_still_gives_the_last_network(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "fits_another", lambda *_: False)
    monkeypatch.setattr("mbconv.training.plan.fit_budget", lambda make, *_: make(32, 4))
    monkeypatch.setattr("mbconv.training.plan.pixel_rate", lambda *_: 1.0)
    run = mbconv.train(
        root / "large.json", root / "data", tmp_path / "run", budget=600, resolution=32,
        recipe="grow", changes=[f"phases.0.network={root / 'small.json'}"], quiet=True,
    )  # fmt: skip
    assert [line["network"] for line in metrics(run.path)] == ["small"]
    assert run.model.spec.hash == LARGE.replace(num_classes=3).hash
    assert run.record.value == pytest.approx(metrics(run.path)[0]["val_ema"], abs=0.5)
