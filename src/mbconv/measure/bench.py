"""`mbconv bench`: what networks cost on this machine, as Records.

Each figure is a Record of its own, so that a report can be made from them anywhere. `detail` says
which network, in which way, at which batch. A figure that could not be taken is a Record with
n = 0 whose `detail` has the reason under `error`.
"""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from mbconv.errors import UserError
from mbconv.kernels import status
from mbconv.measure.count import count
from mbconv.measure.footprint import Footprints
from mbconv.measure.memory import available_memory, is_out_of_memory, keep_freed_memory, measurable
from mbconv.measure.noise import Calibration
from mbconv.measure.speed import Tell, Timing, measure, trial
from mbconv.measure.subject import Subject, open_subject, reason
from mbconv.measure.task import Mode, Task, Way
from mbconv.record import Record

ROUNDS = 12
LATENCY_CALLS = 10  # a turn: a hundred and more of twelve, which a 99th percentile needs


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured. Empty batches leave a figure out; None: as many as there is memory for."""

    resolution: int | None = None  # pixels; by default each network's own
    batches: tuple[int, ...] | None = (4, 16)
    train_batches: tuple[int, ...] | None = (8,)
    ways: tuple[Way, ...] = (Way(),)
    fastest: bool = False  # only the fastest of the ways, of each network and goal
    latency: bool = True
    memory: bool = True
    limit: float = 6.0  # seconds a network and figure, about
    rounds: int | None = None  # instead of the usual ones


@dataclass(frozen=True)
class Goal:
    """A figure and its batch, None where the largest is looked for."""

    figure: str
    mode: Mode
    batch: int | None


@dataclass
class Bench:
    """One run: the subjects, the memory that they take, and where progress is told."""

    plan: Plan
    tell: Tell = lambda what, done, total: None
    calibration: Calibration = field(init=False)
    footprints: Footprints = field(init=False)
    macs: dict[str, int] = field(init=False, default_factory=dict)  # of what was opened, by name

    def __post_init__(self) -> None:
        keep_freed_memory()
        way = self.plan.ways[0]
        self.calibration = Calibration(way.device)
        self.footprints = Footprints(replace(way, compiled=False), torch.get_num_threads())

    def records(self, names: Sequence[str]) -> Iterator[Record]:
        """All figures of the networks, measured in turn."""
        subjects = yield from self.opened(names)
        fixed = [goal for goal in self._goals() if goal.batch is not None]
        yield from self.timed(list(itertools.product(subjects, fixed)))
        for goal in (g for g in self._goals() if g.batch is None):
            for batch in _DOUBLING:
                records = list(self.timed([(s, replace(goal, batch=batch)) for s in subjects]))
                yield from records
                if not any(map(self._goes_on, records)):
                    break

    def opened(self, names: Sequence[str]) -> Generator[Record, None, list[Subject]]:
        """What does not depend on the machine; returns the networks that can be measured."""
        subjects = []
        for name in dict.fromkeys(names):
            try:
                subject = open_subject(name)
                counted = list(self._counts(subject))
            except UserError as error:
                yield failure("network", {"network": name}, str(error))
            else:
                subjects.append(subject)
                yield from counted
        return subjects

    def timed(self, pairs: Sequence[tuple[Subject, Goal]]) -> Iterator[Record]:
        """The goals' figures: all in turn, or one goal after another where memory is short."""
        goals = list(dict.fromkeys(goal for _, goal in pairs))
        groups = (
            [pairs] if self._all_fit(pairs) else [[p for p in pairs if p[1] == g] for g in goals]
        )
        for group in groups:
            yield from self._timed(group)

    def _all_fit(self, pairs: Sequence[tuple[Subject, Goal]]) -> bool:
        """Whether the weights of all tasks, with gradients and momenta, leave room for the rest."""
        if not measurable() or self.plan.ways[0].device != "cpu":
            return len(pairs) <= _FEW
        ways = 1 if self.plan.fastest else len(self.plan.ways)
        weights = sum(p.nbytes * (3 if goal.mode == "training" else 1)
                      for subject, goal in pairs for p in subject.module.parameters())  # fmt: skip
        return weights * ways < available_memory() / 4

    def _goes_on(self, speed: Record) -> bool:
        """Whether a batch twice as large is worth trying."""
        batch, value = speed.detail.get("batch", 0), speed.value
        return speed.unit == "img/s" and batch / value < LONGEST

    def side(self, subject: Subject) -> int:
        return self.plan.resolution or subject.resolution

    def _goals(self) -> Iterator[Goal]:
        if self.plan.latency:
            yield Goal("latency", "inference", 1)
        for batch in self.plan.batches if self.plan.batches is not None else (None,):
            yield Goal("throughput", "inference", batch)
        for batch in self.plan.train_batches if self.plan.train_batches is not None else (None,):
            yield Goal("training_throughput", "training", batch)

    def _counts(self, subject: Subject) -> Iterator[Record]:
        """What does not depend on the machine; UserError where the network fails at this size."""
        side, about = self.side(subject), _about(subject, self.side(subject))
        try:
            found = count(subject.module, torch.zeros(1, subject.channels, side, side))
        except Exception as error:  # a foreign network may raise anything
            raise UserError(f"{subject.name} fails at {side} px: {reason(error)}") from error
        self.macs[subject.name] = found.macs
        for name, unit in (("params", ""), ("macs", ""), ("activation_bytes", "B")):
            yield record(name, getattr(found, name), unit, subject, about)
        if published := subject.published:
            yield record("published_top1", published["top1"], "", subject,
                          about | {"resolution": published["resolution"],
                                   "source": published["source"]})  # fmt: skip

    def _timed(self, pairs: Sequence[tuple[Subject, Goal]]) -> Iterator[Record]:
        tasks: dict[Task, Goal] = {}
        for subject, goal in pairs:
            try:
                made = yield from self._tasks(subject, goal)
            except Exception as error:  # a sentence of ours, or no memory for the tensors
                about = _about(subject, self.side(subject))
                about |= {"mode": goal.mode, "batch": goal.batch}
                for way in self.plan.ways[: 1 if self.plan.fastest else None]:
                    yield failure(goal.figure, about | way.to_dict(), sentence(error, goal.batch))
            else:
                tasks |= dict.fromkeys(made, goal)
        results = measure(
            {
                task: LATENCY_CALLS if goal.figure == "latency" else 1
                for task, goal in tasks.items()
            },
            self.calibration,
            rounds=self.plan.rounds or ROUNDS,
            limit=self.plan.limit,
            tell=self.tell,
        )
        for task, goal in tasks.items():
            result, about = results[task], about_task(task)
            if isinstance(result, Exception):
                yield failure(goal.figure, about, sentence(result, task.batch))
            else:
                about |= {"pace": round(self.calibration.pace, 1)}
                yield from _speeds(goal.figure, task, result, about)

    def _tasks(self, subject: Subject, goal: Goal) -> Generator[Record, None, list[Task]]:
        """The subject's tasks in its ways, once its peak memory is known."""
        assert goal.batch is not None
        if self.plan.memory and measurable():
            self.tell(f"memory of {subject.name}", 0, 1)
            yield self._memory(subject, goal.mode, goal.batch)
        make = partial(Task, subject, mode=goal.mode, batch=goal.batch,
                       resolution=self.side(subject))  # fmt: skip
        if not self.plan.fastest:
            return [make(way=way) for way in self.plan.ways]
        self.tell(f"the fastest way of {subject.name}", 0, 1)
        return [self._fastest(make)]

    def _fastest(self, make: Callable[..., Task]) -> Task:
        """The task in the quickest of the ways that work; if none does, what the last raised."""
        seconds: dict[Way, float] = {}
        failed: Exception | None = None
        for way in self.plan.ways:
            try:
                seconds[way] = trial(make(way=way))
            except Exception as error:  # a foreign network may raise anything
                failed = error
        if failed is not None and not seconds:
            raise failed
        return make(way=min(seconds, key=lambda way: seconds[way]))

    def _memory(self, subject: Subject, mode: Mode, batch: int) -> Record:
        """Peak memory, in the first of the ways and eager."""
        side = self.side(subject)
        found = self.footprints.peak(subject, mode, batch, side)
        about = _about(subject, side) | {"mode": mode, "batch": batch}
        about |= self.footprints.way.to_dict() | {"program": found["program"]}
        return record("peak_memory", found["peak"], "B", subject, about)


_FEW = 16  # tasks that are taken to fit at once where memory is not told
LONGEST = 10.0  # seconds a call, above which no larger batch is tried
_DOUBLING = tuple(2**n for n in range(20))


def sentence(error: Exception, batch: int | None) -> str:
    """Why a measurement failed, for a row of the report."""
    text = str(error) if isinstance(error, UserError) else reason(error)
    return f"a batch of {batch} does not fit into memory" if is_out_of_memory(error) else text


def failure(figure: str, about: dict[str, Any], error: str) -> Record:
    """The Record of a figure that could not be taken."""
    return Record(name=figure, value=0.0, n=0, detail=about | {"error": error})


def _about(subject: Subject, resolution: int) -> dict[str, Any]:
    return {"network": subject.name, "library": subject.library, "resolution": resolution,
            "native": subject.resolution}  # fmt: skip


def about_task(task: Task) -> dict[str, Any]:
    """The `detail` that every figure of a task has."""
    about = _about(task.subject, task.resolution) | task.way.to_dict()
    about |= {"mode": task.mode, "batch": task.batch, "threads": torch.get_num_threads()}
    if task.way.device.startswith("cuda"):
        about["device_name"] = torch.cuda.get_device_name(task.way.device)
    if task.subject.library == "mbconv":
        about["kernels"] = status()["mode"]
    return about


def record(
    name: str,
    value: float,
    unit: str,
    subject: Subject,
    about: dict[str, Any],
    n: int | None = 1,
) -> Record:
    """A figure of `subject` that was taken once."""
    return Record(name=name, value=value, unit=unit, n=n, spec_hash=subject.spec_hash,
                  detail=about)  # fmt: skip


def _speeds(figure: str, task: Task, timing: Timing, about: dict[str, Any]) -> Iterator[Record]:
    """The figure, and beside a compiled network's what compiling took."""
    about = about | {"noise": round(timing.noise, 3), "noisy": timing.noisy,
                     "repeated": timing.repeated, "rounds": len(timing.rounds),
                     "meeting": round(1e6 * timing.meeting, 2), "apart": timing.apart}  # fmt: skip
    shown: Callable[[float], float] = lambda seconds: 1e3 * seconds  # noqa: E731
    unit = "ms"
    if figure == "latency":
        about = about | {"p90": shown(timing.percentile(90)), "p99": shown(timing.percentile(99))}
    else:
        unit, shown = "img/s", lambda seconds: task.batch / seconds
    ends = sorted(map(shown, timing.interval)) if timing.interval else (None, None)
    value = shown(timing.median)
    yield Record(name=figure, value=value, unit=unit, n=len(timing.calls), low=ends[0],
                 high=ends[1], spread=value * timing.spread / timing.median,
                 spec_hash=task.subject.spec_hash, detail=about)  # fmt: skip
    if task.way.compiled:
        yield record("compile_time", timing.first, "s", task.subject, about)
