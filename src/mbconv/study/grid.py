"""What a study compares: arms, each a network and how it learns, and what each stands beside.

Nothing here imports torch.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.training.recipe import Recipe

MOST = 200  # arms; more is a slip in a loop


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing that is tried, on every seed.

    `model` is a Spec, which learns from fresh weights, or any MODEL, with its weights. `recipe` is
    a name or a whole Recipe, None the study's; `changes` set single fields of it, as in
    "optimizer.clip=1". `epochs` None leaves them to the plan. `levels` say what was chosen on each
    axis, for the table: {"gate": "se"}. `beside` is the arm that this one is compared with, None
    the study's baseline.
    """

    name: str
    model: Spec | str
    recipe: str | Recipe | None = None
    changes: tuple[str, ...] = ()
    epochs: int | None = None
    levels: dict[str, str] = field(default_factory=dict)
    beside: str | None = None

    def __post_init__(self) -> None:
        if not self.slug:
            raise UserError(f"An arm is called {self.name!r}; give it a name with letters.")
        if isinstance(self.recipe, Recipe) and self.epochs is not None:
            raise UserError(
                f"Arm {self.name!r} has epochs beside a whole Recipe, which says them itself; "
                "give one of the two."
            )

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^a-z0-9.=+]+", "-", self.name.lower()).strip("-.")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Arms and the one that they are compared with, by default the first.

    `question` is what the study is to answer, in a sentence; `seeds` how often each arm is
    trained. `recipe` is that of arms which name none. `epochs` is the most that a plan without a
    budget, or with much of it, trains for.
    """

    arms: Sequence[Arm]
    baseline: str | None = None
    question: str = ""
    seeds: int = 3
    recipe: str = "scratch_small"
    epochs: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", tuple(self.arms))
        if not 2 <= len(self.arms) <= MOST:
            raise UserError(f"A study has {len(self.arms)} arms; it takes 2 to {MOST}.")
        if not all(isinstance(arm, Arm) for arm in self.arms):
            raise UserError("A Grid's arms must be Arms: mbconv.study.grid.Arm(name=, model=).")
        if self.baseline is None:
            object.__setattr__(self, "baseline", self.arms[0].name)
        names, slugs = [arm.name for arm in self.arms], {arm.slug for arm in self.arms}
        if len(slugs) < len(names):
            raise UserError("Two arms of the study have the same name; name each differently.")
        for wanted in (self.baseline, *(arm.beside for arm in self.arms)):
            if wanted is not None and wanted not in names:
                raise UserError(
                    f"The study compares with {wanted!r}, which is none of its arms: "
                    f"{', '.join(names[:6])}."
                )
        if self.seeds < 1 or self.epochs < 1:
            raise UserError("A study needs at least one seed and one epoch.")

    def beside(self, arm: Arm) -> str | None:
        """The name of the arm that `arm` is compared with; None for the baseline."""
        other = arm.beside or self.baseline
        return None if other == arm.name else other


Study = Callable[[Spec], Grid]  # takes the base network, at the study's resolution


def cross(grid: Grid, axis: str, levels: Iterable[str]) -> Grid:
    """Every arm at every level of one more axis: `epochs`, or a field of the recipe by its path.

    Each arm is compared with its own baseline at the same level, and that baseline with the one at
    the first level. Raises UserError for an axis of fewer than two levels, or epochs that are none.
    """
    values = list(dict.fromkeys(level.strip() for level in levels))
    if len(values) < 2:
        raise UserError(f"The axis {axis} has {len(values)} level; give at least two: {axis}=A,B.")
    short = axis.rpartition(".")[2]
    arms: list[Arm] = []
    for level in values:
        for arm in grid.arms:
            beside = grid.beside(arm)
            where = level if beside is not None else values[0]
            arms.append(
                replace(
                    _at(arm, axis, level),
                    name=_named(arm.name, short, level),
                    levels={**(arm.levels or {"arm": arm.name}), short: level},
                    beside=_named(beside or arm.name, short, where),
                )
            )
    assert grid.baseline is not None
    return replace(grid, arms=arms, baseline=_named(grid.baseline, short, values[0]))


def _named(arm: str, axis: str, level: str) -> str:
    return f"{arm}, {axis} {level}"


def _at(arm: Arm, axis: str, level: str) -> Arm:
    if axis != "epochs":
        return replace(arm, changes=(*arm.changes, f"{axis}={level}"))
    if not level.isdecimal() or int(level) < 1:
        raise UserError(f"epochs={level} is no number of epochs; write epochs=5,20.")
    return replace(arm, epochs=int(level))
