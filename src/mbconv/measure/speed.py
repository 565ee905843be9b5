"""Times of networks, taken in turn: the one measuring code for all.

All tasks live in one process and take turns, round by round, in alternating order, so that what
happens to the machine happens to all of them. Machines change their pace for tens of seconds, so
the turns of a task are spread over as long a time as there is. A turn beside which the calibration
was slow, or the threads further apart than at other times, is taken again; where that does not
help, the result says so. Turns with the threads apart count where they are as quick as the others:
more of them make a surer median.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from mbconv.measure.noise import LEAST, Beside, Calibration

TURN = 0.3  # seconds that a task's turn takes at least
STEADY = 0.03  # a median's relative uncertainty, below which no further turns are taken
FEWEST = 3  # turns that a figure is made of
NEAR = 2 / 3  # of the wanted turns that must have had the threads near
SAME = 1.03  # times as long with the threads apart, below which that is no matter
MOST_TURNS = 4  # times as many as wanted, where the threads' cores are seldom near
PATIENCE = 240.0  # seconds that turns beyond the wanted ones take, of all tasks together
Tell = Callable[[str, int, int], None]  # what is done, rounds done, rounds in all


class Timed(Protocol):
    """What can be timed, and what it is called while that lasts."""

    @property
    def name(self) -> str: ...
    def __call__(self) -> None: ...


T = TypeVar("T", bound=Timed)


@dataclass(frozen=True)
class Timing:
    """Seconds of each call, by turn; `noise` is the slowest calibration beside them (1: none).

    `limit` is how slow one may be.
    """

    rounds: tuple[tuple[float, ...], ...]
    noise: float
    first: float  # of the first call, which also allocates and compiles
    repeated: int = 0  # turns that were taken again
    numbers: tuple[int, ...] = ()  # of the rounds that the turns were in
    limit: float = LEAST
    meeting: float = 0.0  # seconds that threads took to meet, in the median
    apart: int = 0  # turns among `rounds` that had the threads apart, for want of others

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

    def ratios(self, other: "Timing") -> list[float]:
        """The other's median over this one's, where both have a turn in the same round."""
        own = dict(zip(self.numbers, self.rounds, strict=True))
        return [
            statistics.median(times) / statistics.median(own[number])
            for number, times in zip(other.numbers, other.rounds, strict=True)
            if number in own
        ]

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

    `limit`: seconds that those turns should take a task on average; slow ones bring their number
    down, to three at least. For at most `PATIENCE` seconds further ones are taken: up to twice as
    many in all where the machine was noisy, `MOST_TURNS` times where the threads' cores were apart
    (until a share of `NEAR` was not), and up to twice as many good ones where a median's interval
    reaches further than `STEADY` to either side. What a task raises is its result; the others go
    on.
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
    rounds = max(FEWEST, min(rounds, math.floor(limit * len(turn) / together)))
    taken = _turns(turn, failed, calibration, rounds, tell)
    calibration.remember()
    return failed | {
        task: _timing(turns, first[task], rounds, calibration) for task, turns in taken.items()
    }


@dataclass(frozen=True)
class _Turn:
    """Seconds of a task's calls in one round, and how the machine was meanwhile."""

    number: int
    times: tuple[float, ...]
    beside: Beside


def _turns(
    turn: Mapping[T, int],
    failed: dict[T, Timing | Exception],
    calibration: Calibration,
    rounds: int,
    tell: Tell,
) -> dict[T, list[_Turn]]:
    """All turns of each task, until there are enough good ones; `failed` gets those that raise."""
    taken: dict[T, list[_Turn]] = {task: [] for task in turn}
    waiting, number, late = list(turn), 0, math.inf
    calibration.begin()
    while waiting and time.perf_counter() < late:
        for task in waiting[:: -1 if number % 2 else 1]:
            try:
                times = _turn(task, turn[task])
            except Exception as error:  # for want of memory that was there before, say
                failed[task] = error
                del taken[task]
                calibration.begin()
            else:
                taken[task].append(_Turn(number, times, calibration.end()))
        number += 1
        if number == rounds:
            late = time.perf_counter() + PATIENCE
        waiting = [task for task in taken if not _enough(taken[task], rounds, calibration)]
        done = min((len(_good(turns, calibration)) for turns in taken.values()), default=rounds)
        what = "measuring in turn" if number <= rounds else "the machine is restless, once more"
        tell(what, min(done, rounds), rounds)
    return taken


def _good(turns: Iterable[_Turn], calibration: Calibration) -> list[_Turn]:
    return [taken for taken in turns if calibration.good(taken.beside)]


def _quiet(turns: Iterable[_Turn], calibration: Calibration) -> list[_Turn]:
    return [taken for taken in turns if calibration.quiet(taken.beside)]


def _enough(turns: Sequence[_Turn], rounds: int, calibration: Calibration) -> bool:
    good, quiet = _good(turns, calibration), _quiet(turns, calibration)
    near = max(FEWEST, math.ceil(NEAR * rounds))
    if len(good) >= 2 * rounds or (len(quiet) >= rounds and len(good) >= near and _steady(good)):
        return True
    hopeless = calibration.opening > calibration.limit or 2 * len(quiet) < len(turns)
    return len(turns) >= (2 if hopeless else MOST_TURNS) * rounds


def _steady(turns: Sequence[_Turn]) -> bool:
    """Whether the median is known well enough."""
    medians = _medians(turns)
    low, high = median_interval(medians) or (min(medians), max(medians))
    return high - low <= 2 * STEADY * statistics.median(medians)


def _timing(turns: Sequence[_Turn], first: float, rounds: int, calibration: Calibration) -> Timing:
    kept, apart = _kept(turns, rounds, calibration)
    return Timing(
        tuple(taken.times for taken in kept),
        numbers=tuple(taken.number for taken in kept),
        noise=max(calibration.opening, *(taken.beside.noise for taken in kept)),
        first=first,
        repeated=len(turns) - len(kept),
        limit=calibration.limit,
        meeting=statistics.median(taken.beside.meeting for taken in kept),
        apart=apart,
    )


def _kept(
    turns: Sequence[_Turn], rounds: int, calibration: Calibration
) -> tuple[Sequence[_Turn], int]:
    """The turns that a figure is made of, and how many of them should not count.

    The good ones, however few, since the others are of another machine, unless they are as quick;
    else the best there are.
    """
    good, quiet = _good(turns, calibration), _quiet(turns, calibration)
    apart = [taken for taken in quiet if not calibration.near(taken.beside)]
    if len(good) < FEWEST:
        limit = max(calibration.limit, calibration.opening)
        by_rank = sorted(turns, key=lambda t: (max(t.beside.noise, limit), t.beside.meeting))
        kept = by_rank[:rounds]
        return kept, sum(not calibration.near(taken.beside) for taken in kept)
    if len(apart) >= FEWEST and _middle(apart) < SAME * _middle(good):
        return quiet, 0
    return good, 0


def _medians(turns: Iterable[_Turn]) -> list[float]:
    return [statistics.median(taken.times) for taken in turns]


def _middle(turns: Iterable[_Turn]) -> float:
    return statistics.median(_medians(turns))


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


def _turn(task: Timed, calls: int) -> tuple[float, ...]:
    """Times of `calls` calls; where they are short, after one that refills the caches."""
    if calls > 1:
        task()
    return tuple(_timed(task) for _ in range(calls))


def _timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
