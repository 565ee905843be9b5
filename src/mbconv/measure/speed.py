"""Times of networks, taken in turn: the one measuring code for all.

All tasks live in one process and take turns, round by round, in alternating order, so that what
happens to the machine happens to all of them. A round beside which the calibration was slow is
run again; where that does not help, the result says so.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.measure.ceilings import synchronise
from mbconv.measure.noise import LIMIT, Calibration
from mbconv.measure.subject import Subject

Mode = Literal["inference", "training"]
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
    """Seconds of each call, by round; `noise` is the slowest calibration beside them (1: none)."""

    rounds: tuple[tuple[float, ...], ...]
    noise: float
    first: float  # of the first call, which also allocates and compiles
    repeated: int = 0  # rounds that were run again

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
        return self.noise > LIMIT

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
    tasks: Iterable[T],
    calibration: Calibration,
    *,
    rounds: int = 7,
    calls: int = 1,
    limit: float = 20.0,
    tell: Tell = lambda what, done, total: None,
) -> dict[T, Timing | Exception]:
    """Time each task in `rounds` turns of at least `calls` calls and about 0.3 s.

    `limit`: seconds that a task should not exceed; slow ones bring the rounds down, to three at
    least. What a task raises is its result; the others go on.
    """
    first: dict[T, float] = {}
    failed: dict[T, Timing | Exception] = {}
    turn: dict[T, int] = {}
    for task in tasks:
        tell(f"warming up {task.name}", 0, rounds)
        try:
            first[task], usual = warm_up(task)
        except Exception as error:  # a foreign network may raise anything
            failed[task] = error
            continue
        turn[task] = max(calls, math.ceil(0.3 / usual))
        rounds = max(3, min(rounds, math.floor(limit / (usual * turn[task]))))
    if not turn:
        return failed
    clean: list[tuple[float, dict[T, list[float]]]] = []
    noisy: list[tuple[float, dict[T, list[float]]]] = []
    while len(clean) < rounds and len(clean) + len(noisy) < 2 * rounds:
        before = calibration.check()
        order = list(turn) if (len(clean) + len(noisy)) % 2 == 0 else list(turn)[::-1]
        times = {task: _turn(task, turn[task]) for task in order}
        noise = max(before, calibration.check())
        (clean if noise <= LIMIT else noisy).append((noise, times))
        what = "the machine is busy, once more" if noise > LIMIT else "measuring in turn"
        tell(what, len(clean), rounds)
    kept = sorted(clean + noisy, key=lambda r: r[0])[:rounds]  # the quietest of all
    return failed | {
        task: Timing(
            tuple(tuple(times[task]) for _, times in kept),
            noise=kept[-1][0],
            first=first[task],
            repeated=len(clean) + len(noisy) - rounds,
        )
        for task in turn
    }


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


def _turn(task: Timed, calls: int) -> list[float]:
    """Times of `calls` calls; where they are short, after one that refills the caches."""
    if calls > 1:
        task()
    return [_timed(task) for _ in range(calls)]


def _timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
