"""Times of networks, taken in turn: the one measuring code for all.

All tasks live in one process and take turns, round by round, in alternating order, so that what
happens to the machine happens to all of them. Machines change their pace for tens of seconds, so
the rounds of a task are spread over as long a time as there is. A round beside which the
calibration was slow is run again; where that does not help, the result says so.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.measure.ceilings import synchronise
from mbconv.measure.noise import LEAST, Calibration
from mbconv.measure.subject import Subject

Mode = Literal["inference", "training"]
TURN = 0.3  # seconds that a task's turn takes at least
STEADY = 0.03  # a median's relative uncertainty, below which no further rounds are run
Tell = Callable[[str, int, int], None]  # what is done, rounds done, rounds in all


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a network computes: autocast to `dtype`, memory layout, eager or compiled."""

    dtype: str = "float32"
    channels_last: bool = True
    compiled: bool = False
    device: str = "cpu"

    @property
    def layout(self) -> str:
        return "channels_last" if self.channels_last else "contiguous"

    def to_dict(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "layout": self.layout, "compiled": self.compiled,
                "device": self.device}  # fmt: skip


class Timed(Protocol):
    """What can be timed, and what it is called while that lasts."""

    @property
    def name(self) -> str: ...
    def __call__(self) -> None: ...


T = TypeVar("T", bound=Timed)


class Task:
    """A network, run in one way; calling it is one pass or one training step.

    The subject's own module stays as it is, unless `copied` is False.

    A pass is under inference mode. A step is forward, cross-entropy, backward and SGD with
    momentum. Pictures [batch, channels, resolution, resolution] are noise, and stay the same.
    """

    def __init__(
        self,
        subject: Subject,
        way: Way,
        mode: Mode,
        batch: int,
        resolution: int,
        *,
        copied: bool = True,
    ) -> None:
        self.subject, self.way, self.mode, self.batch = subject, way, mode, batch
        self.resolution = resolution
        self.without_grad: Callable[[], AbstractContextManager[Any]] = torch.inference_mode
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        module = copy.deepcopy(subject.module) if copied else subject.module
        network = module.to(way.device, memory_format=layout)  # type: ignore[call-overload]
        network.train(mode == "training")
        x = torch.randn(batch, subject.channels, resolution, resolution, device=way.device)
        self.pictures = x.contiguous(memory_format=layout)
        self.network = torch.compile(network) if way.compiled else network
        if mode == "training":
            self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    @property
    def name(self) -> str:
        return self.subject.name

    def __call__(self) -> None:
        if self.mode == "training":
            self._step()
        else:
            with self.without_grad():
                self.forward()
        synchronise(self.way.device)

    def forward(self) -> Tensor:
        """Logits [batch, classes]."""
        with torch.autocast(
            torch.device(self.way.device).type,
            getattr(torch, self.way.dtype),
            enabled=self.way.dtype != "float32",
        ):
            y: Tensor | tuple[Tensor, ...] = self.network(self.pictures)
        return y[0] if isinstance(y, tuple) else y  # some have auxiliary classifiers

    def _step(self) -> None:
        logits = self.forward().float()
        targets = torch.arange(self.batch, device=logits.device) % logits.shape[1]
        loss = F.cross_entropy(logits, targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


@dataclass(frozen=True)
class Timing:
    """Seconds of each call, by round; `noise` is the slowest calibration beside them (1: none).

    `limit` is how slow one may be.
    """

    rounds: tuple[tuple[float, ...], ...]
    noise: float
    first: float  # of the first call, which also allocates and compiles
    repeated: int = 0  # rounds that were run again
    limit: float = LEAST

    @property
    def calls(self) -> list[float]:
        return [taken for calls in self.rounds for taken in calls]

    @property
    def median(self) -> float:
        return statistics.median(self.calls)

    @property
    def spread(self) -> float:
        """Standard deviation of the rounds' medians."""
        medians = [statistics.median(calls) for calls in self.rounds]
        return statistics.stdev(medians) if len(medians) > 1 else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """At least 95% for the median, by the order of the rounds' medians; None below six."""
        return median_interval([statistics.median(calls) for calls in self.rounds])

    @property
    def noisy(self) -> bool:
        return self.noise > self.limit

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.calls, percent))


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The k-th least and greatest of independent values, with at least 95% for the median.

    k by the binomial distribution (David and Nagaraja, Order Statistics, 7.1).
    """
    n, k, outside = len(values), 0, 0.0
    while (outside := outside + 2 * math.comb(n, k) / 2**n) <= 0.05:
        k += 1
    ordered = sorted(values)
    return (ordered[k - 1], ordered[n - k]) if k else None


def measure(
    tasks: Mapping[T, int],
    calibration: Calibration,
    *,
    rounds: int = 7,
    limit: float = 20.0,
    tell: Tell = lambda what, done, total: None,
) -> dict[T, Timing | Exception]:
    """Time each task in `rounds` turns of at least its number of calls and about `TURN`.

    `limit`: seconds that those turns should take a task on average; slow ones bring the rounds
    down, to three at least. Up to as many again are run where some were noisy, or a median's
    interval reaches further than `STEADY` to either side on average. What a task raises is its
    result; the others go on.
    """
    first: dict[T, float] = {}
    failed: dict[T, Timing | Exception] = {}
    turn: dict[T, int] = {}
    usual: dict[T, float] = {}
    for task, calls in tasks.items():
        tell(f"warming up {task.name}", 0, rounds)
        try:
            first[task], usual[task] = warm_up(task)
        except Exception as error:  # a foreign network may raise anything
            failed[task] = error
            continue
        turn[task] = max(calls, math.ceil(TURN / usual[task]))
    if not turn:
        return failed
    together = sum(usual[task] * turn[task] for task in turn)
    rounds = max(3, min(rounds, math.floor(limit * len(turn) / together)))
    kept, repeated = _rounds(turn, failed, calibration, rounds, tell)
    return failed | {
        task: Timing(
            tuple(tuple(taken.times[task]) for taken in kept),
            noise=max(calibration.opening, *(taken.noise for taken in kept)),
            first=first[task],
            repeated=repeated,
            limit=calibration.limit,
        )
        for task in turn
    }


def _rounds(
    turn: dict[T, int],
    failed: dict[T, Timing | Exception],
    calibration: Calibration,
    rounds: int,
    tell: Tell,
) -> "tuple[list[_Round[T]], int]":
    """The rounds that count, and how many were too noisy; tasks that fail change their dict."""
    quiet: list[_Round[T]] = []
    busy: list[_Round[T]] = []
    while turn and (done := len(quiet) + len(busy)) < 2 * rounds:
        times: dict[T, list[float]] = {}
        calibration.begin()
        for task in list(turn)[:: -1 if done % 2 else 1]:
            try:
                times[task] = _turn(task, turn[task])
            except Exception as error:  # for want of memory that was there before, say
                failed[task] = error
                del turn[task]
        taken = _Round(calibration.end(), times)
        (quiet if taken.noise <= calibration.limit else busy).append(taken)
        what = "the machine is busy, once more" if taken in busy else "measuring in turn"
        tell(what, min(len(quiet), rounds), rounds)
        if len(quiet) >= rounds and _steady(quiet, turn):
            break
    if len(quiet) >= rounds:
        return quiet, len(busy)
    return sorted(quiet + busy, key=lambda r: r.noise)[:rounds], len(busy)  # the quietest of all


@dataclass(frozen=True, eq=False)
class _Round(Generic[T]):
    """A turn of each task, and the noise beside it."""

    noise: float
    times: dict[T, list[float]]


def _steady(rounds: Sequence[_Round[T]], tasks: Iterable[T]) -> bool:
    """Whether the medians of all tasks are known well enough."""
    for task in tasks:
        medians = [statistics.median(taken.times[task]) for taken in rounds]
        low, high = median_interval(medians) or (min(medians), max(medians))
        if high - low > 2 * STEADY * statistics.median(medians):
            return False
    return True


def warm_up(task: Callable[[], None], limit: float = 4.0) -> tuple[float, float]:
    """Seconds of the first call, and the usual ones once three in a row lie within a tenth.

    Ends after `limit` seconds all the same, but not before the second call.
    """
    first, started = _timed(task), time.perf_counter()
    times = [_timed(task)]
    while len(times) < 3 or max(times[-3:]) > 1.1 * min(times[-3:]):
        if time.perf_counter() - started > limit:
            break
        times.append(_timed(task))
    return first, statistics.median(times[-3:])


def trial(task: Callable[[], None]) -> float:
    """Seconds of the quickest of a few calls after the first: enough to tell ways apart."""
    _timed(task)
    times = [_timed(task), _timed(task)]
    while sum(times) < TURN and len(times) < 10:
        times.append(_timed(task))
    return min(times)


def _turn(task: Timed, calls: int) -> list[float]:
    """Times of `calls` calls; where they are short, after one that refills the caches."""
    if calls > 1:
        task()
    return [_timed(task) for _ in range(calls)]


def _timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
