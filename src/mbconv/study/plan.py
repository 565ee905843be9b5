"""A plan: every arm as data, with its recipe and what it costs here; `study.json` holds it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mbconv.errors import UserError
from mbconv.files import write_json
from mbconv.record import command_line, environment
from mbconv.report.folder import read_object
from mbconv.training.machine import Machine
from mbconv.training.recipe import Recipe

FORMAT = 1
PLAN = "study.json"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked for; the same again goes on with a study, anything else does not."""

    study: str
    data: str
    model: str | None = None
    resolution: int | None = None
    epochs: int | None = None
    seeds: int | None = None
    recipe: str | None = None
    changes: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()  # path=value,value
    arms: tuple[str, ...] = ()  # patterns of names; none: all
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1.")
        if self.resolution is not None and self.resolution < 32:
            raise UserError(f"resolution is {self.resolution}; it must be at least 32 pixels.")


@dataclass(frozen=True, kw_only=True)
class PlannedArm:
    """An arm ready to run: its recipe is whole, its costs are measured."""

    name: str
    slug: str
    model: str | None  # any MODEL, with its weights; None: fresh weights of `spec`
    spec: dict[str, Any]
    recipe: Recipe
    levels: dict[str, str] = field(default_factory=dict)
    beside: str | None = None  # the arm that it is compared with; None: the baseline itself
    cache: dict[str, int] | None = None  # of decoded pictures, as a run's config has it
    ms_per_step: float = 0.0  # a training step of a whole batch, at the last resolution
    ms_per_picture: float = 0.0  # in evaluation, of a batch of 16
    seconds: float = 0.0  # that one run is expected to take


@dataclass(frozen=True)
class Job:
    """One run of a study: an arm on a seed."""

    arm: PlannedArm
    seed: int
    study: Path

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.study / "runs" / self.arm.slug / f"seed{self.seed}"

    @property
    def failure(self) -> Path:
        """There where the run diverged; holds the sentence."""
        return self.study / "runs" / self.arm.slug / f"seed{self.seed}-failed.json"

    @property
    def claim(self) -> Path:
        """The lock file that a process holds while it works on this run."""
        return self.study / "claims" / f"{self.arm.slug}-seed{self.seed}"

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do, be it because the run cannot be done."""
        return (self.path / "evaluation.jsonl").is_file() or self.failure.is_file()

    def __str__(self) -> str:
        return f"{self.arm.name}; seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study runs, and on what it was measured."""

    name: str
    question: str
    about: str  # the study's docstring
    asked: Asked
    resolution: int
    classes: tuple[str, ...]
    pictures: dict[str, int]  # in each split
    seeds: int
    baseline: str
    arms: tuple[PlannedArm, ...]
    machine: Machine
    environment: dict[str, Any] = field(default_factory=environment)
    command: str = field(default_factory=command_line)

    @property
    def seconds(self) -> float:
        """That all runs are expected to take, one after another."""
        return self.seeds * sum(arm.seconds for arm in self.arms)

    def jobs(self, folder: Path) -> Iterator[Job]:
        """All runs, seed by seed, so that a study which stops early has whole comparisons."""
        for seed in range(self.seeds):
            for arm in self.arms:
                yield Job(arm, seed, folder)

    def write(self, folder: Path) -> None:
        data = {"format": FORMAT} | asdict(self)
        for arm, planned in zip(data["arms"], self.arms, strict=True):
            arm["recipe"] = planned.recipe.to_dict()
        write_json(folder / PLAN, data)


def read_plan(folder: Path) -> Plan:
    """The plan in a study folder; UserError where it is none, broken or of a newer version."""
    data = read_object(folder / PLAN)
    if not data:
        raise UserError(f"{folder} holds no {PLAN}, so it is no study; give a study's folder.")
    if data.pop("format", 0) != FORMAT:
        raise UserError(f"{folder / PLAN} was written by another version of mbconv; upgrade.")
    try:
        asked = data["asked"]
        lists = {name: tuple(asked[name]) for name in ("changes", "axes", "arms")}
        arms = tuple(
            PlannedArm(**{**arm, "recipe": Recipe.from_dict(arm["recipe"])}) for arm in data["arms"]
        )
        known = {f.name for f in fields(Plan)}
        values = {key: value for key, value in data.items() if key in known}
        return Plan(**{**values, "asked": Asked(**{**asked, **lists}), "arms": arms,
                       "classes": tuple(data["classes"]),
                       "machine": Machine.from_dict(data["machine"])})  # fmt: skip
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / PLAN} is broken ({error}); start the study anew.") from error


def check_same(plan: Plan, asked: Asked, folder: Path) -> None:
    """Raise UserError unless `asked` is what the plan was made for."""
    before, now = asdict(plan.asked), asdict(asked)
    differ = [name for name in before if before[name] != now[name]]
    if differ:
        name = differ[0]
        raise UserError(
            f"{folder} holds a study that was planned with another {name} "
            f"({before[name]!r} instead of {now[name]!r}). Give the same options to go on with it, "
            "or another --out."
        )
