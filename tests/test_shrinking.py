"""Removal by measurement: what goes, what takes over, and what the command leaves behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import mbconv
from grown import calibrated, in_stage, relative
from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.growing.layout import tensor_shapes
from mbconv.growing.transfer import grow
from mbconv.shrinking import trial
from mbconv.shrinking.change import HEAD, Change, changes, module_after, smaller
from mbconv.shrinking.cut import Surgeon
from mbconv.shrinking.plan import Option, choose
from mbconv.shrinking.refit import Moments, elimination, refitted
from mbconv.shrinking.statistics import statistics
from mbconv.shrinking.trial import Answers, effect_of, effects
from small import SMALL, write_classes, write_model

WIDE = in_stage(in_stage(SMALL, 3, expand=4, kernel=5), 2, expand=4, gate_base="expanded")
HIDDEN = WIDE.replace(head_hidden=6, head_hidden_norm=True, padding="same")


def narrow(module: str, before: int, after: int) -> Change:
    return Change(module=module, kind="channels", before=before, after=after)


def surgeon_of(model: mbconv.MBConvNet, pictures: int = 24) -> Surgeon:
    torch.manual_seed(5)
    batches = torch.randn(pictures, 3, 32, 32).split(8)
    return Surgeon(model, statistics(model, batches))


def test_what_can_go() -> None:
    found = list(changes(WIDE, 8))
    kinds = {(c.module, c.kind) for c in found}
    assert ("stages.2.1", "block") in kinds  # the only one with an identity shortcut and company
    assert {module for module, kind in kinds if kind == "block"} == {"stages.2.1"}
    assert ("stages.0.0", "channels") not in kinds  # it has no expansion
    widths = {c.after for c in found if (c.module, c.kind) == ("stages.2.0", "channels")}
    assert widths == {56, 48, 32}  # of 64
    assert {c.module for c in found if c.kind == "kernel"} == {"stages.2.0", "stages.2.1"}
    assert (HEAD, "channels") in kinds


@pytest.mark.parametrize("spec", [WIDE, HIDDEN, in_stage(WIDE, 2, gate="scse"),
                                  in_stage(WIDE, 3, kind="fused", kernel=3)])  # fmt: skip
def test_every_change_makes_a_smaller_network_that_runs(spec: Spec) -> None:
    surgeon = surgeon_of(calibrated(spec))
    x = torch.randn(1, 3, 32, 32)
    for change in changes(spec, 8):
        made = surgeon.apply([change])
        assert made.spec == smaller(spec, change)
        assert cost(made.spec).params < cost(spec).params
        assert Spec.from_json(made.spec.to_json()) == made.spec
        assert bool(made(x).isfinite().all())


def test_gates_keep_their_squeezed_width() -> None:
    for base in ("input", "expanded"):
        spec = in_stage(WIDE, 2, gate_base=base)
        made = smaller(spec, narrow("stages.1.0", 32, 16))
        name = "stages.1.0.gate.reduce.bias"
        assert tensor_shapes(made)[name] == tensor_shapes(spec)[name]


def test_blocks_behind_a_removed_one_move_up() -> None:
    gone = Change(module="stages.1.1", kind="block", before=1, after=0)
    names = ["stages.1.0", "stages.1.2", "stages.2.2", HEAD]
    assert [module_after(n, gone) for n in names] == [
        "stages.1.0",
        "stages.1.1",
        "stages.2.2",
        HEAD,
    ]


def test_the_first_to_go_is_the_least_missed() -> None:
    torch.manual_seed(0)
    rows = torch.randn(400, 7) @ torch.randn(7, 7)
    weight, moments = torch.randn(3, 7), Moments()
    moments.add(rows)

    def missed(without: int) -> float:
        kept = torch.tensor([c for c in range(7) if c != without])
        fitted, fall = refitted(weight, moments, kept)
        return float((rows @ weight.T - rows[:, kept] @ fitted.T - fall).square().mean())

    assert elimination(weight, moments.covariance, 1)[0] == min(range(7), key=missed)


def test_a_copy_is_made_good_exactly() -> None:
    torch.manual_seed(0)
    rows, weight, moments = torch.randn(200, 4).double(), torch.randn(3, 5).double(), Moments()
    rows = torch.cat([rows, rows[:, 2:3]], 1)
    moments.add(rows)
    order = elimination(weight, moments.covariance, 4)
    assert order[0] in (2, 4)
    kept = torch.tensor([c for c in range(5) if c != order[0]])
    fitted, _ = refitted(weight, moments, kept)
    assert torch.allclose(rows[:, kept] @ fitted.T, rows @ weight.T, atol=1e-4)


@pytest.mark.parametrize("base", [WIDE, HIDDEN], ids=["wide", "hidden"])
def test_grown_channels_and_rims_go_for_nothing(base: Spec) -> None:
    small = in_stage(in_stage(base, 3, expand=2, kernel=3), 2, expand=2)
    source = calibrated(small)
    source.preprocessing = source.preprocessing.at(32)
    large = grow(source, base)
    surgeon = surgeon_of(large)
    cuts = [narrow("stages.2.0", 64, 32), narrow("stages.1.0", 32, 16),
            Change(module="stages.2.1", kind="kernel", before=5, after=3)]  # fmt: skip
    made = surgeon.apply(cuts)
    assert relative(large, made, torch.randn(4, 3, 32, 32)) < 2e-3
    lost = surgeon.apply([narrow("stages.2.0", 64, 24)])  # one too many
    assert relative(large, lost, torch.randn(4, 3, 32, 32)) > 2e-3


def test_a_trial_is_what_the_removal_will_cost() -> None:
    model = calibrated(WIDE)
    surgeon = surgeon_of(model)
    x = torch.randn(12, 3, 32, 32)
    answers = [Answers(part, torch.zeros(6, dtype=torch.int64), model(part).detach())
               for part in x.split(6)]  # fmt: skip
    tried = list(changes(WIDE, 8))
    whole, each = effects(model, surgeon, tried, answers)
    assert whole.divergence == pytest.approx(0, abs=1e-9)
    for change, effect in zip(tried, each, strict=True):
        alone = effect_of(surgeon.apply([change]), answers)
        assert effect.divergence == pytest.approx(alone.divergence, rel=1e-3, abs=1e-7)
        assert effect.loss == pytest.approx(alone.loss, rel=1e-3)
    assert max(effect.divergence for effect in each) > 1e-5


def test_choosing_takes_the_cheapest_for_what_they_save() -> None:
    def option(module: str, after: int, cost: float, saved: float) -> Option:
        return Option(change=narrow(module, 64, after), cost=cost, loss=0.0, saved=saved)

    options = [option("a", 48, 0.1, 0.1), option("a", 32, 0.9, 0.2), option("b", 48, 0.2, 0.1),
               option("c", 48, 9.0, 0.1), option("d", 48, -1.0, -0.1)]  # fmt: skip
    assert [o.change.module for o in choose(options, 0.15)] == ["a", "b"]
    last = choose(options, 0.25)
    assert [(o.change.module, o.change.after) for o in last] == [("b", 48), ("a", 32)]
    assert len(choose(options, 5.0)) == 3  # everything that saves


def test_timed_savings_are_shares() -> None:
    model = calibrated(WIDE)
    tried = [c for c in changes(WIDE, 8) if c.kind == "block"]
    (saved,) = trial.timed_savings(model, surgeon_of(model), tried, 32)
    assert 0 < saved < 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data"), classes=4, each=12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    root = tmp_path_factory.mktemp("run")
    model = write_model(root / "wide.safetensors", WIDE)
    recipe = ["transfer.frozen_stages=0", "transfer.norms=train", "optimizer.learning_rate=0.01"]
    mbconv.train(model, pictures, root / "run", epochs=3, resolution=32, changes=recipe, quiet=True)
    return root / "run"


def run(*words: str | Path) -> str:
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command(tmp_path: Path, trained: Path) -> None:
    out = tmp_path / "lean.safetensors"
    given = ["shrink", trained, "--to", "0.8", "--by", "params", "--multiple", "4",
             "--pictures", "8"]  # fmt: skip
    shown = run(*given, "--out", out)
    lean, source = mbconv.load(out), mbconv.load(trained)
    share = cost(lean.spec).params / cost(source.spec).params
    assert 0.6 < share <= 0.8
    assert f"{share:.1%} of the parameters" in shown
    assert "which decided nothing: a loss of" in shown
    assert lean.labels == source.labels
    assert lean.preprocessing == source.preprocessing
    assert lean.provenance is not None
    assert lean.provenance["removed"]
    mbconv.grow(lean, replace(lean.spec, num_classes=5))  # like any other
    plan = json.loads(run(*given, "--json"))
    assert plan["goal"] == 0.8
    assert plan["reached"] == share
    assert Spec.from_dict(plan["target"]) == lean.spec
    rounds = [step["round"] for step in plan["steps"]]
    assert rounds == sorted(rounds)
    assert all(step["module"] == HEAD or step["before"] > step["after"] for step in plan["steps"])


def test_shrinking_in_milliseconds_stops_at_its_goal(trained: Path) -> None:
    done = mbconv.shrink(trained, to=0.9, by="ms", multiple=4)
    assert done.plan is not None
    assert done.plan.reached <= 0.9
    assert done.plan.steps[-1].left == done.plan.reached
    assert done.comparison is not None
    assert done.comparison.n > 0


def test_fine_tuning_is_taught_by_the_source(tmp_path: Path, trained: Path) -> None:
    out = tmp_path / "lean"
    shown = run("shrink", trained, "--to", "0.8", "--by", "macs", "--multiple", "4", "--finetune",
                "--epochs", "1", "--out", out)  # fmt: skip
    assert f"{out}: accuracy" in shown
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"]["name"] == "further"
    assert config["teacher"] == "small"
    assert (out / "teacher.safetensors").is_file()
    assert config["base"]["shrunk_from"] == "small"
    learnt = json.loads((out / "data.json").read_text())["splits"]
    assert learnt == json.loads((trained / "data.json").read_text())["splits"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "1.5", "--plan"], "between 0 and 1"),
        (["--to", "0.01", "--by", "params", "--plan"], "Nothing is left that can be removed"),
        (["--to", "0.5"], "Give --out"),
        (["--to", "0.5", "--plan", "--epochs", "3"], "give that too"),
        (["--to", "efficientnet_b9", "--plan"], "There is no network"),
    ],
)
def test_mistakes_get_a_sentence(words: list[str], told: str, trained: Path) -> None:
    done = CliRunner().invoke(main, ["shrink", str(trained), *words])
    assert done.exit_code == 2
    assert told in done.output


def test_a_run_is_not_overwritten(trained: Path) -> None:
    words = ["shrink", str(trained), "--to", "0.8", "--finetune", "--out", str(trained)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "already holds a run" in done.output


def test_a_model_file_knows_no_pictures(trained: Path) -> None:
    with pytest.raises(UserError, match="Only a run folder knows its own"):
        mbconv.shrink(trained / "model.safetensors", to=0.5)
