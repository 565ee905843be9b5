"""The fastest build that keeps its accuracy: every runtime and number format, measured in turn.

A build that cannot be had here (no library, no instructions, too much accuracy lost) is a Record
with the reason. Accuracy is asked from the fastest build down, until one keeps the bound.
"""

import contextlib
import copy
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mbconv.errors import UserError
from mbconv.export import build, run
from mbconv.export.build import Build, Job, Refused
from mbconv.export.network import InBfloat16, folded
from mbconv.export.run import Exported
from mbconv.measure.bench import failure, sentence
from mbconv.measure.memory import keep_freed_memory
from mbconv.measure.noise import Calibration
from mbconv.measure.paired import Paired
from mbconv.measure.speed import Tell, Timing, measure
from mbconv.nn.model import MBConvNet
from mbconv.record import Record
from mbconv.runtime.artifact import SUFFIXES, Form, Precision, Runtime
from mbconv.runtime.backend import Backend, ModuleBackend, open_artifact
from mbconv.runtime.predictor import Predictor
from mbconv.weights.model import load

Goal = Literal["latency", "throughput"]
BATCH = 16  # pictures a call where throughput is measured
PIECES = (1, 4)  # pictures that a core takes of them at a time
ROUNDS = 7
_FORMS: tuple[tuple[Runtime, Precision], ...] = (
    ("torch", "float32"), ("torch", "bfloat16"), ("onnx", "float32"), ("onnx", "int8"),
    ("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8"),
)  # fmt: skip


@dataclass(frozen=True)
class Fastest:
    """What was written, and the figures of all candidates: `records`, two a candidate."""

    exported: Exported
    records: tuple[Record, ...]


@dataclass(eq=False)
class Candidate:
    """A way to compute the network; `made` is None for torch's modules, which have no artifact.

    `backends` by the pictures that a core takes at a time, None where all share each call.
    """

    name: str
    made: Build | None
    backends: dict[int | None, Backend] = field(default_factory=dict)
    comparison: Paired | None = None
    chosen: bool = False


class Call:
    """A call of a backend on `batch` pictures of noise, to be timed."""

    def __init__(self, name: str, backend: Backend, batch: int, side: int, channels: int) -> None:
        self.name, self.batch, self._backend = name, batch, backend
        self._x: Tensor = torch.randn(batch, channels, side, side)

    def __call__(self) -> None:
        self._backend.logits(self._x)


def export_fastest(
    model: MBConvNet | str | Path,
    out: str | Path | None = None,
    *,
    data: str | Path,
    goal: Goal = "latency",
    max_drop: float = 0.5,
    resolution: int | None = None,
    pictures: bool | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Fastest:
    """Write the build of `model` that is fastest on this machine and keeps its accuracy.

    `goal`: the least time for one picture, or the most pictures a second in calls of 16. The
    other parameters and errors are `export_model`'s; UserError too where no build keeps the bound.
    """
    if goal not in get_args(Goal):
        raise UserError(f"The goal is {goal!r}; it is one of {', '.join(get_args(Goal))}.")
    source = model if isinstance(model, MBConvNet) else load(model)
    if out is not None and Path(out).suffix.lower() in SUFFIXES:
        raise UserError(f"{out}: the format is what is chosen here; leave out {Path(out).suffix}.")
    run.path_of(model, out, Form(runtime="onnx"))  # says so early where there is no place
    tell("the network's own answers", 0, len(_FORMS))
    job = run.make_job(model, source, resolution, data, max_drop, calibrate=True)

    def ship(made: Build) -> Exported:
        entries = run.entries(made.form, source, pictures)
        return run.ship(job, made, run.path_of(model, out, made.form), entries)

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        candidates, failed = collect_candidates(job, Path(folder), tell, pictures=pictures)
        timings = time_all(candidates, job, tell)
        accepted = _accepted(job, candidates, timings, goal, Path(folder))
        exported = _ship_first(accepted, timings, goal, ship)
    if exported is None:
        raise UserError(
            f"No build keeps its accuracy within {max_drop:g} points, or none runs here; allow "
            "more with --max-drop, or see mbconv doctor."
        )
    figures = (r for c in candidates for r in _figures(c, timings, goal))
    return Fastest(exported, (*figures, *failed))


def collect_candidates(
    job: Job,
    folder: Path,
    tell: Tell = lambda what, done, total: None,
    *,
    pictures: bool | None = False,
) -> tuple[list[Candidate], list[Record]]:
    """Build and open everything that can be had here, with the files in `folder`.

    Beside it, a failure Record for each build that cannot. `pictures` as `export_model` takes it.
    """
    network = folded(job.source).to(memory_format=torch.channels_last)
    found = [Candidate("torch eager, float32", None, {None: _eager(network, "float32")})]
    failed: list[Record] = []
    with contextlib.suppress(UserError):  # elsewhere it takes a hundred times as long
        build.check_bfloat16()
        bfloat16 = _eager(network, "bfloat16")
        found.append(Candidate("torch eager, bfloat16", None, {None: bfloat16}))
    for number, (runtime, precision) in enumerate(_FORMS):
        form = Form(runtime=runtime, precision=precision)
        name = Build(form, None).name
        tell(f"building {name}", number, len(_FORMS))
        try:
            build.check(form)
            if form.precision == "bfloat16":
                build.check_bfloat16()
            made = build.make(job, form, run.entries(form, job.source, pictures))
            known = made.comparisons.get("tensor")
            found.append(Candidate(name, made, _opened(job, made, folder), known))
        except Exception as error:  # a library's own errors are rows like ours
            failed.append(failure("build", {"candidate": name}, sentence(error, 1)))
    return found, failed


def _eager(network: nn.Module, precision: str) -> Backend:
    module = InBfloat16(copy.deepcopy(network)) if precision == "bfloat16" else network
    return ModuleBackend(module.eval(), None)


def _opened(job: Job, made: Build, folder: Path) -> dict[int | None, Backend]:
    """The build in its runtime, for latency and in pieces; an unguarded file for each."""
    backends: dict[int | None, Backend] = {}
    pieces = PIECES if made.form.runtime != "torch" and (os.cpu_count() or 1) > 1 else ()
    for piece in (None, *pieces):
        file = run.path_of(None, folder / f"{made.name}-{piece or 'all'}", made.form)
        unguarded = replace(made, form=replace(made.form, piece=piece))
        build.write(replace(job, guard=None), unguarded, file)
        backends[piece] = open_artifact(file, trust=True)[1]
    return backends


Timings = dict[tuple[Candidate, int | None, int], Timing | Exception]


def time_all(candidates: list[Candidate], job: Job, tell: Tell, rounds: int = ROUNDS) -> Timings:
    """Time every candidate in turn: one picture, and a batch in every way; by both."""
    side, channels = job.preprocessing.resolution, job.source.spec.in_channels
    timings: Timings = {}
    calibration = Calibration()
    for batch in (1, BATCH):
        tasks = {
            (c, piece, batch): Call(c.name, backend, batch, side, channels)
            for c in candidates
            for piece, backend in c.backends.items()
            if piece is None or batch > 1
        }
        calls = dict.fromkeys(tasks.values(), 3)
        results = measure(calls, calibration, rounds=rounds, limit=8.0, tell=tell)
        timings |= {key: results[task] for key, task in tasks.items()}
    return timings


def _accepted(
    job: Job, candidates: list[Candidate], timings: Timings, goal: Goal, folder: Path
) -> Iterator[Candidate]:
    """The artifacts within the bound, the fastest first; the guard is asked as they are taken."""
    guard = job.guard
    assert guard is not None
    shipped = [c for c in candidates if c.made and seconds(timings, c, goal) is not None]
    for candidate in sorted(shipped, key=lambda c: seconds(timings, c, goal) or 0.0):
        assert candidate.made is not None
        if candidate.comparison is None:
            made = candidate.made
            file = run.path_of(None, folder / f"{made.name}-all", made.form)
            candidate.comparison = guard.compare(Predictor(file, trust=True))
            candidate.made = replace(made, comparisons={"tensor": candidate.comparison})
        if guard.accepts(candidate.comparison):
            yield candidate


def _ship_first(
    accepted: Iterable[Candidate], timings: Timings, goal: Goal, ship: Callable[[Build], Exported]
) -> Exported | None:
    """Write the first whose artifacts all keep the bound: with preprocessing inside they compute
    a little differently."""
    for candidate in accepted:
        assert candidate.made is not None
        piece = _piece(timings, candidate) if goal == "throughput" else None
        form = replace(candidate.made.form, piece=piece)
        try:
            exported = ship(replace(candidate.made, form=form))
        except Refused as refused:
            candidate.comparison = refused.comparison
            continue
        candidate.chosen = True
        return exported
    return None


def seconds(timings: Timings, candidate: Candidate, goal: Goal) -> float | None:
    """A call's, at the goal's batch and in the candidate's best way; None where none ran."""
    batch = 1 if goal == "latency" else BATCH
    times = [t.median for (c, _, b), t in timings.items()
             if c is candidate and b == batch and isinstance(t, Timing)]  # fmt: skip
    return min(times, default=None)


def _piece(timings: Timings, candidate: Candidate) -> int | None:
    """The candidate's best way at the large batch."""
    ran = {p: t.median for (c, p, b), t in timings.items()
           if c is candidate and b == BATCH and isinstance(t, Timing)}  # fmt: skip
    return min(ran, key=lambda piece: ran[piece])


def _figures(candidate: Candidate, timings: Timings, goal: Goal) -> Iterator[Record]:
    """The candidate's latency and throughput, or why there is none."""
    about: dict[str, Any] = {"candidate": candidate.name, "goal": goal, "chosen": candidate.chosen}
    made = candidate.made
    if made is None:
        about["artifact"] = False
    if candidate.comparison is not None:
        low, high = candidate.comparison.interval
        about |= {"drop": candidate.comparison.drop, "drop_low": low, "drop_high": high}
    if made is not None and made.in_float:
        about["in_float"] = list(made.in_float)
    if made is not None and made.distilled:
        about["distilled"] = True
    shown: dict[int, tuple[str, str, Callable[[float], float]]] = {
        1: ("latency", "ms", lambda s: 1e3 * s),
        BATCH: ("throughput", "img/s", lambda s: BATCH / s),
    }
    for batch, (name, unit, convert) in shown.items():
        ways = {p: t for (c, p, b), t in timings.items() if c is candidate and b == batch}
        ran = {p: t for p, t in ways.items() if isinstance(t, Timing)}
        if not ran:
            error = next(t for t in ways.values() if isinstance(t, Exception))
            yield failure(name, about, sentence(error, batch))
            continue
        piece = min(ran, key=lambda p: ran[p].median)
        best = ran[piece]
        ends = sorted(map(convert, best.interval)) if best.interval else (None, None)
        yield Record(name=name, value=convert(best.median), unit=unit, n=len(best.calls),
                     low=ends[0], high=ends[1],
                     spread=convert(best.median) * best.spread / best.median,
                     detail=about | {"batch": batch, "piece": piece, "noise": best.noise,
                                     "noisy": best.noisy, "repeated": best.repeated})  # fmt: skip
