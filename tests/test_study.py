"""What a study is made of, and what is said of it; without training anything."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mbconv
from html_page import Page
from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.record import read_records
from mbconv.report.runs import list_runs
from mbconv.report.study import read_study, write_study
from mbconv.study import planning, ready
from mbconv.study.grid import Arm, Grid, cross
from mbconv.study.matching import pass_seconds, same_macs, same_milliseconds
from mbconv.study.plan import Asked, check_same, read_plan
from mbconv.study.ready import STUDIES
from mbconv.study.run import load_study
from mbconv.training.machine import plain_machine
from mbconv.training.override import changed
from mbconv.training.recipe import Recipe
from mbconv.training.recipes import find_recipe
from small import SMALL
from studies import POOLS, fake_study, pools


def names(grid: Grid) -> list[str]:
    return [arm.name for arm in grid.arms]


@pytest.mark.parametrize("base", [mbconv.get_spec("efficientnet_b0").replace(resolution=96), SMALL])
@pytest.mark.parametrize("name", STUDIES)
def test_every_ready_made_study_can_be_trained(
    name: str, base: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "same_milliseconds", same_macs)
    grid = STUDIES[name](base)
    assert ready.question(STUDIES[name]).endswith("?")
    recipes = set()
    for arm in grid.arms:
        assert isinstance(arm.model, Spec)
        assert cost(arm.model, 96).macs > 0
        assert arm.model.resolution == base.resolution
        recipes.add(repr(changed(find_recipe(grid.recipe)(3000, 96, epochs=3), arm.changes)))
    tried = {(arm.model.hash if isinstance(arm.model, Spec) else "", arm.changes)
             for arm in grid.arms}  # fmt: skip
    assert len(tried) >= 2  # something differs
    if len({arm.changes for arm in grid.arms}) > 1:
        assert len(recipes) == len(grid.arms)


def test_the_threads_table() -> None:
    base = mbconv.get_spec("efficientnet_b0")
    grid = STUDIES["activation_x_gate"](base)
    assert len(grid.arms) == 15
    assert grid.baseline == "silu, se"
    by = {arm.name: arm for arm in grid.arms}
    assert isinstance(by["silu, se"].model, Spec)
    assert by["silu, se"].model.hash == base.hash
    plain = by["relu6, none"].model
    assert isinstance(plain, Spec)
    assert {(b.activation, b.gate) for *_, b in plain.blocks()} == {("relu6", None)}


def test_an_arm_that_names_a_model_keeps_its_weights() -> None:
    arms = [Arm(name="spec", model=SMALL), Arm(name="name", model="efficientnet_lite0")]
    grid = Grid(arms=arms)
    asked = Asked(study="mine", data="photos")
    made = [planning._maker(arm, grid, asked, 3000, 64)(2) for arm in arms]
    assert [recipe.name for recipe in made] == ["scratch_small"] * 2
    assert [recipe.transfer.fresh for recipe in made] == [True, False]


def test_small_networks_cost_the_same() -> None:
    base = mbconv.get_spec("efficientnet_b0").replace(resolution=64)
    wanted = mbconv.get_spec("mobilenetv3_small_100").replace(resolution=64)
    found = same_macs(lambda x: mbconv.scale(base, width=2**x), wanted)
    assert cost(found, 64).macs == pytest.approx(cost(wanted, 64).macs, rel=0.08)
    assert found.stem_channels < base.stem_channels


def test_networks_of_equal_time_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that gets ever slower, where a pass takes as long as its multiply-adds say."""
    clock = iter(range(1, 10_000))

    def passing(network: mbconv.MBConvNet, resolution: int, machine: object) -> object:
        return cost(network.spec, resolution).macs

    def timed(macs: int, repeats: int) -> float:
        return macs * (1 + next(clock) / 1000)

    monkeypatch.setattr("mbconv.study.matching.passing", passing)
    monkeypatch.setattr("mbconv.training.machine.timed", timed)
    base = mbconv.get_spec("mobilenetv2_100").replace(resolution=64)
    wanted = mbconv.get_spec("mobilenetv3_small_100").replace(resolution=64)
    found = same_milliseconds(lambda x: mbconv.scale(base, width=2**x), wanted)
    assert cost(found, 64).macs == pytest.approx(cost(wanted, 64).macs, rel=0.1)
    monkeypatch.undo()
    machine = plain_machine("cpu")
    small, large = (pass_seconds(mbconv.build(spec), 32, machine) for spec in (SMALL, wanted))
    assert 0 < small < large


def test_mnasnets_are_the_published_ones() -> None:
    grid = STUDIES["se_or_not"](mbconv.get_spec("efficientnet_b0"))
    params = {arm.name: cost(arm.model).params for arm in grid.arms if isinstance(arm.model, Spec)}
    assert params["A1"] == 3_887_038
    assert params["B1"] == 4_383_312
    assert params["A1, no gates"] < params["A1"]
    assert [grid.beside(arm) for arm in grid.arms] == [None, "A1", "A1", "B1"]


def test_an_axis_crosses_every_arm_and_compares_at_its_own_level() -> None:
    grid = cross(pools(SMALL), "epochs", ["5", "20"])
    assert names(grid) == ["avg, epochs 5", "max, epochs 5", "avg, epochs 20", "max, epochs 20"]
    assert [arm.epochs for arm in grid.arms] == [5, 5, 20, 20]
    beside = [grid.beside(arm) for arm in grid.arms]
    assert beside == [None, "avg, epochs 5", "avg, epochs 5", "avg, epochs 20"]
    again = cross(grid, "augmentation.mixup", ["0", "0.2"])
    assert len(again.arms) == 8
    assert again.arms[-1].changes == ("augmentation.mixup=0.2",)
    assert again.beside(again.arms[-1]) == "avg, epochs 20, mixup 0.2"
    assert again.arms[-1].levels == {"arm": "max", "epochs": "20", "mixup": "0.2"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grid(arms=[Arm(name="a", model=SMALL)]), "1 arms; it takes 2"),
        (lambda: Grid(arms=[Arm(name=n, model=SMALL) for n in ("a b", "A-B")]), "same name"),
        (lambda: Grid(arms=pools(SMALL).arms, baseline="mean"), "none of its arms: avg, max"),
        (lambda: Grid(arms=pools(SMALL).arms, seeds=0), "one seed"),
        (lambda: Grid(arms=["avg", "max"]), "must be Arms"),  # type: ignore[list-item]
        (lambda: Arm(name="?", model=SMALL), "with letters"),
        (lambda: cross(pools(SMALL), "epochs", ["5"]), "at least two"),
        (lambda: cross(pools(SMALL), "epochs", ["5", "x"]), "epochs=x is no number"),
        (lambda: Asked(study="x", data="y", seeds=0), "seeds is 0"),
        (lambda: Asked(study="x", data="y", resolution=8), "at least 32 pixels"),
        (lambda: load_study("poling"), "did you mean pooling"),
        (lambda: load_study("nowhere.py:f"), "no file nowhere.py"),
    ],
)  # fmt: skip
def test_mistakes_get_a_sentence(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        make()


def test_a_study_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(POOLS)
    assert names(load_study(f"{path}:pools")(SMALL)) == ["avg", "max"]
    with pytest.raises(UserError, match="no function 'pool'; it has pools"):
        load_study(f"{path}:pool")
    with pytest.raises(UserError, match="The study mine fails: TypeError"):
        planning._grid(lambda: pools(SMALL), SMALL, Asked(study="mine", data="x"))  # type: ignore
    with pytest.raises(UserError, match="returned list; it must return"):
        planning._grid(lambda base: [base], SMALL, Asked(study="mine", data="x"))  # type: ignore
    path.write_text("1 / 0")
    with pytest.raises(UserError, match="fails: ZeroDivisionError"):
        load_study(f"{path}:pools")


class Clock:
    """Stands for the measurements: an epoch takes ten seconds, whatever the arm."""

    def seconds(self, arm: Arm, recipe: Recipe) -> float:
        return 10.0 * recipe.epochs


def fit(left: float | None, **asked: Any) -> int:
    wishes = Asked(study="pools", data="photos", **asked)
    grid = pools(SMALL)
    makers = {arm.name: planning._maker(arm, grid, wishes, 3000, 64) for arm in grid.arms}
    bench: Any = Clock()
    offer = planning._Offer(grid, makers, bench, wishes.seeds or grid.seeds)
    return planning._fit(offer, wishes, left, None if left is None else left + 10)


def test_epochs_fill_the_budget() -> None:
    """Two arms, three seeds, ten seconds an epoch: a minute each, of seven eighths of the time."""
    assert fit(None) == 10  # the grid's own
    assert fit(None, epochs=3) == 3
    assert fit(10_000) == 10
    assert fit(5 * 60 * 8 / 7 + 1) == 5
    assert fit(5 * 60 * 8 / 7 - 1) == 4
    assert fit(5 * 60 * 8 / 7 + 1, epochs=5) == 5


@pytest.mark.parametrize(
    ("left", "asked", "words"),
    [
        (60, {}, "2 arms, 3 seeds and 1 epoch take about 1 min 19 s here; the budget is 1 min "
                 "10 s. What would fit: --seeds 2, or --budget 2m"),
        (200, {"epochs": 5}, "--seeds 1, or --epochs 2, or --budget 6m"),
        (5, {}, "What would fit: --budget 2m, or a smaller --resolution or --model."),
    ],
)  # fmt: skip
def test_a_budget_too_small_says_what_would_fit(
    left: float, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        fit(left, **asked)


def test_a_plan_is_the_same_from_its_file(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "x", {"a": [0.5] * 3, "b": [0.5] * 3})
    plan = read_plan(folder)
    plan.write(tmp_path / "y")
    assert read_plan(tmp_path / "y") == plan
    check_same(plan, plan.asked, folder)
    with pytest.raises(UserError, match=r"planned with another epochs \(None instead of 7\)"):
        check_same(plan, Asked(study="trial", data="photos/woof", epochs=7), folder)
    (folder / "study.json").write_text('{"format": 1, "arms": []}')
    with pytest.raises(UserError, match="is broken"):
        read_plan(folder)
    with pytest.raises(UserError, match=r"holds no study\.json"):
        read_plan(tmp_path)


GATES = {f"{a}, {g}": {"activation": a, "gate": g} for a in ("silu", "relu") for g in ("se", "no")}


def test_the_page_says_what_came_out(tmp_path: Path) -> None:
    accuracies = dict(zip(GATES, ([0.70, 0.72, 0.71], [0.60, 0.62, 0.605], [0.80, 0.815, 0.81],
                                  [0.70, 0.715, 0.715]), strict=True))  # fmt: skip
    folder = fake_study(tmp_path / "study", accuracies, levels=GATES)
    page_path, table = write_study(folder)
    page = Page(page_path.read_text(encoding="utf-8"))
    (title,) = page.of["h1"]
    assert title.startswith("trial: better: “relu, se”; worse: “silu, no”; 1 of 3 not disting")
    assert title.endswith("(beside “silu, se”)")
    arms = page.section("arms")
    assert "71.0% [68.5, 73.5]" in arms  # 71 +- 4.303 * 1 / sqrt(3)
    assert "+9.8 [+8.9, +10.7] [+6.5, +13.0]" in " ".join(arms.split())  # over seeds, on pictures
    assert "not distinguishable with 3 seeds; more than 200 seeds" in arms
    assert "by activation and gate" in page.section("result")
    markdown = table.read_text(encoding="utf-8")
    assert "| silu | **71.0%** | 60.8% |" in markdown
    assert "| relu | 80.8% | 71.0% |" in markdown
    assert "validation pictures" in markdown
    found = {(r.name, r.detail["arm"]): r for r in read_records(folder / "study.jsonl")}
    better = found["top1_difference", "relu, se"]
    assert better.detail["verdict"] == "better"
    assert better.low is not None
    assert 0 < better.low < better.value == pytest.approx(0.0983, abs=1e-3)
    assert found["mean_top1", "silu, no"].n == 3
    svg = (folder / "study.svg").read_text()
    assert svg.count('class="seed"') == 9
    assert svg.count('class="reach"') == 3


def test_the_page_of_an_unfinished_study(tmp_path: Path) -> None:
    evil = "<b>bold</b> & co"
    folder = fake_study(
        tmp_path / "study",
        {"base": [0.7, 0.71, None], evil: [0.7, None, None], "never": [None] * 3},
        diverged=[("never", 0), (evil, 1)],
    )
    page = Page(write_study(folder)[0].read_text(encoding="utf-8"))
    assert "5 of 9 runs are done" in page.section("result")
    assert "never, seed 0: The loss is not finite." in page.section("result")
    arms = page.section("arms")
    assert evil in arms
    assert "1 run diverged" in arms
    assert "script" not in {tag for tag, _ in page.elements}
    assert not [a for _, attrs in page.elements for a in ("src", "href") if attrs.get(a)]
    assert not re.search(r"\b(None|nan|inf|undefined)\b", page.text)
    empty = fake_study(tmp_path / "empty", {"a": [None] * 3, "b": [None] * 3})
    assert "nothing to compare yet" in write_study(empty)[1].read_text()
    assert read_study(empty).runs == 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    listed = run(main, ["study", "--list"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.output.splitlines()] == list(STUDIES)
    for args, words in (
        (["pooling"], "--data"),
        (["poling", "--data", "."], "did you mean pooling"),
        (["pooling", "--data", "nowhere"], "nowhere"),
        (["pooling", "--data", ".", "--budget", "soon"], "is no time"),
    ):
        done = run(main, ["study", *args])
        assert done.exit_code == 2
        assert words in done.output
        assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_runs_of_a_study_are_listed(tmp_path: Path) -> None:
    folder = fake_study(tmp_path / "study", {"a": [0.5, 0.5, 0.5], "b": [0.5, None, None]})
    config = {"format": 2, "recipe": {}, "spec": SMALL.to_dict(), "spec_name": "small"}
    (folder / "runs/a/seed0/config.json").write_text(json.dumps(config))
    (row,) = list_runs([folder])
    assert (row.state, row.score) == ("finished", 0.5)


def test_only_some_arms_and_what_they_stand_beside() -> None:
    wanted = Asked(study="pools", data="x", axes=("epochs=2,4",), arms=("max, epochs 4",))
    grid = planning._grid(pools, SMALL, wanted)
    assert names(grid) == ["avg, epochs 2", "avg, epochs 4", "max, epochs 4"]
    for changes, words in (
        ({"arms": ("mean*",)}, "fits none of the study's arms: avg, max"),
        ({"axes": ("epochs",)}, "write PATH=A,B"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            planning._grid(pools, SMALL, Asked(study="pools", data="x", **changes))


def test_the_page_on_studies_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs/studies.md").read_text(encoding="utf-8")
    assert CliRunner().invoke(main, ["study", "--list"]).output in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    grid = found["kernels"](SMALL)
    assert grid.beside(grid.arms[2]) == "5x5"
    options = {o for param in main.commands["study"].params for o in param.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z]+", text)) - options == {"--phi", "--save"}
