"""`mbconv bench`: what networks cost on this machine, as Records.

Each figure is a Record of its own, so that a report can be made from them anywhere. `detail` says
which network, in which way, at which batch. A figure that could not be taken is a Record with
n = 0 whose `detail` has the reason under `error`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mbconv.errors import UserError
from mbconv.kernels import status
from mbconv.measure.count import count
from mbconv.measure.footprint import Footprints
from mbconv.measure.memory import is_out_of_memory, keep_freed_memory, measurable
from mbconv.measure.noise import Calibration
from mbconv.measure.speed import Mode, Task, Tell, Timing, Way, measure
from mbconv.measure.subject import Subject, open_subject, reason
from mbconv.record import Record

LATENCY_ROUNDS, ROUNDS = 10, 7
LATENCY_CALLS = 10  # a round: a hundred in all, which a 99th percentile needs


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured. Empty batches leave a figure out; None: as many as there is memory for."""

    resolution: int | None = None  # pixels; by default each network's own
    batches: tuple[int, ...] | None = (4, 16)
    train_batches: tuple[int, ...] | None = (8,)
    ways: tuple[Way, ...] = (Way(),)
    latency: bool = True
    memory: bool = True
    limit: float = 20.0  # seconds a network and figure, about
    rounds: int | None = None  # instead of the usual ones


@dataclass
class Bench:
    """One run: the subjects, the memory that they take, and where progress is told."""

    plan: Plan
    tell: Tell = lambda what, done, total: None
    calibration: Calibration = field(init=False)
    footprints: Footprints = field(init=False)

    def __post_init__(self) -> None:
        keep_freed_memory()
        way = self.plan.ways[0]
        self.calibration = Calibration(way.device)
        self.footprints = Footprints(replace(way, compiled=False), torch.get_num_threads())

    def records(self, names: Sequence[str]) -> Iterator[Record]:
        """All figures of the networks, measured in turn."""
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
        for figure, mode, batches in self._figures():
            for batch in batches:
                records = list(self._timed(subjects, figure, mode, batch))
                yield from records
                if batches is _DOUBLING and not any(map(self._goes_on, records)):
                    break

    def _goes_on(self, speed: Record) -> bool:
        """Whether a batch twice as large is worth trying."""
        batch, value = speed.detail.get("batch", 0), speed.value
        return speed.unit == "img/s" and batch / value < self.plan.limit / 2

    def side(self, subject: Subject) -> int:
        return self.plan.resolution or subject.resolution

    def _figures(self) -> Iterator[tuple[str, Mode, Sequence[int]]]:
        if self.plan.latency:
            yield "latency", "inference", (1,)
        batches, train = self.plan.batches, self.plan.train_batches
        yield "throughput", "inference", _DOUBLING if batches is None else batches
        yield "training_throughput", "training", _DOUBLING if train is None else train

    def _counts(self, subject: Subject) -> Iterator[Record]:
        """What does not depend on the machine; UserError where the network fails at this size."""
        side, about = self.side(subject), _about(subject, self.side(subject))
        try:
            found = count(subject.module, torch.zeros(1, subject.channels, side, side))
        except Exception as error:  # a foreign network may raise anything
            raise UserError(f"{subject.name} fails at {side} px: {reason(error)}") from error
        for name, unit in (("params", ""), ("macs", ""), ("activation_bytes", "B")):
            yield record(name, getattr(found, name), unit, subject, about)
        if published := subject.published:
            yield record("published_top1", published["top1"], "", subject,
                          about | {"resolution": published["resolution"],
                                   "source": published["source"]})  # fmt: skip

    def _timed(
        self, subjects: Sequence[Subject], figure: str, mode: Mode, batch: int
    ) -> Iterator[Record]:
        """One figure at one batch of all subjects in all ways, in turn."""
        tasks: dict[Task, dict[str, Any]] = {}
        for subject in subjects:
            about = _about(subject, self.side(subject)) | {"mode": mode, "batch": batch}
            try:
                if self.plan.memory and measurable():
                    self.tell(f"memory of {subject.name}", 0, 1)
                    yield self._memory(subject, mode, batch, about)
                made = [Task(subject, way, mode, batch, self.side(subject))
                        for way in self.plan.ways]  # fmt: skip
            except Exception as error:  # a sentence of ours, or no memory for the tensors
                for way in self.plan.ways:
                    yield failure(figure, about | way.to_dict(), sentence(error, batch))
            else:
                tasks |= {task: about_task(task) for task in made}
        latency = figure == "latency"
        results = measure(
            tasks,
            self.calibration,
            rounds=self.plan.rounds or (LATENCY_ROUNDS if latency else ROUNDS),
            calls=LATENCY_CALLS if latency else 1,
            limit=self.plan.limit,
            tell=lambda what, done, total: self.tell(f"{mode}, batch {batch}: {what}", done, total),
        )
        for task, about in tasks.items():
            result = results[task]
            if isinstance(result, Exception):
                yield failure(figure, about, sentence(result, batch))
            else:
                yield from _speeds(figure, task, result, about)

    def _memory(self, subject: Subject, mode: Mode, batch: int, about: dict[str, Any]) -> Record:
        """Peak memory, in the first of the ways and eager."""
        found = self.footprints.peak(subject, mode, batch, self.side(subject))
        way = self.footprints.way.to_dict()
        return record("peak_memory", found["peak"], "B", subject,
                       about | way | {"program": found["program"]})  # fmt: skip


_DOUBLING = tuple(2**n for n in range(20))


def sentence(error: Exception, batch: int) -> str:
    """Why a measurement failed, for a row of the report."""
    text = str(error) if isinstance(error, UserError) else reason(error)
    return f"a batch of {batch} does not fit into memory" if is_out_of_memory(error) else text


def failure(figure: str, about: dict[str, Any], error: str) -> Record:
    """The Record of a figure that could not be taken."""
    return Record(name=figure, value=0.0, n=0, detail=about | {"error": error})


def _about(subject: Subject, resolution: int) -> dict[str, Any]:
    return {"network": subject.name, "library": subject.library, "resolution": resolution}


def about_task(task: Task) -> dict[str, Any]:
    """The `detail` that every figure of a task has."""
    about = _about(task.subject, task.resolution) | task.way.to_dict()
    about |= {"mode": task.mode, "batch": task.batch, "threads": torch.get_num_threads()}
    if task.way.device.startswith("cuda"):
        about["device_name"] = torch.cuda.get_device_name(task.way.device)
    if task.mode == "training" and task.subject.library == "mbconv":
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
                     "repeated": timing.repeated, "rounds": len(timing.rounds)}  # fmt: skip
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
