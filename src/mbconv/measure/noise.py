"""Whether the machine is quiet enough to measure on, told by work that is always the same.

Programs take a core in slices of a few milliseconds. The median of a few short runs therefore
misses most of them, while it follows every change of clock and cache that a virtual machine has on
its own. The mean over a tenth of a second does the opposite: on two virtual cores it stayed below
1.25 times its usual while nothing else ran, and was above 1.5 times beside a busy loop.

A host also moves the cores of a virtual machine while nothing runs beside: now they share a
cache, now they do not, a second or a minute at a time, and threads that hand maps to each other
take up to 1.4 times as long. How long threads take to meet tells that apart: 4.4 or 7 us.
"""

import os
import statistics
import time
from bisect import insort
from dataclasses import dataclass
from pathlib import Path

import torch

from mbconv.measure.ceilings import seconds, synchronise
from mbconv.measure.meeting import recall, remember

PIECES = 36  # products of a check: some 50 ms, ten slices of the scheduler
OPENING = 30  # checks; a second or two
LEAST, MOST = 1.2, 1.4  # of the limit: a core shared with one program makes 1.5 at least
MEETINGS = 100  # of a check
APART = 1.25  # times the nearest meeting, above which the threads' cores lie further apart
_GRAIN = 2**15  # elements of an operator that torch gives to one thread
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Beside:
    """What the checks before and after a piece of work say of the machine meanwhile.

    `noise`: the slower of both, in units of the usual one, at least 1. Where the system tells, also
    1 + the cores that others took and we could have used: threads wait for each other, so one that
    shares its core holds all of them up. `meeting`: seconds that threads take to meet, the longer.
    """

    noise: float
    meeting: float


class Calibration:
    """Times a fixed matrix product before and after what is measured.

    No copy: where two cores share a cache it is slower, and all else is quicker.

    `reference` is the median of an opening series, in seconds. `limit` says how many times that a
    check may take: twice as far above the median as nine tenths of the opening reach, since that
    much is this machine's own jitter; between `LEAST` and `MOST`. `pace` is what the product
    reached in the median of all checks, in GFLOP/s: virtual machines change theirs from one minute
    to the next with nobody at work in them, and figures of two runs compare at equal pace.
    `nearest` is how long threads take to meet at best, in seconds: one check in twenty is below,
    or the best of another run of the day.
    """

    def __init__(self, device: str = "cpu", checks: int = OPENING) -> None:
        self.device = device
        self._a = torch.full((512, 512), 0.5, device=device)
        self._tiny = torch.zeros(_GRAIN * torch.get_num_threads(), dtype=torch.uint8)
        self._products: list[float] = []
        self._meetings: list[float] = []  # in order of length
        self._known = recall()
        self._seconds()  # warms up
        self._products.clear()
        started = _Others()
        opening = sorted(self._seconds() for _ in range(checks))
        self.reference = statistics.median(opening)
        self.limit = limit_of(opening)
        self.opening = 1 + started.cores(device)  # a program that ran already is in the reference
        self.begin()

    def begin(self) -> None:
        """Check before what is measured."""
        self._others = _Others()
        self._before = self._check()

    def end(self) -> Beside:
        """Check after it; the next measurement has begun."""
        before, after = self._before, self._check()
        others = self._others.cores(self.device)
        self._before, self._others = after, _Others()
        return Beside(max(1.0, before.noise, after.noise, 1 + others),
                      max(before.meeting, after.meeting))  # fmt: skip

    def good(self, beside: Beside) -> bool:
        """Whether nothing disturbed the work, and its threads were as near as they ever were."""
        return self.quiet(beside) and self.near(beside)

    def quiet(self, beside: Beside) -> bool:
        """Whether nothing disturbed the work."""
        return beside.noise <= self.limit

    def near(self, beside: Beside) -> bool:
        """Whether the threads' cores were about as near as they ever were."""
        return beside.meeting <= APART * self.nearest

    @property
    def nearest(self) -> float:
        return min(self._known, self._meetings[len(self._meetings) // 20])

    def remember(self) -> None:
        """Let the next runs know how near the threads were."""
        if self.nearest > 0:
            remember(self.nearest)

    @property
    def pace(self) -> float:
        return 2e-9 * len(self._a) ** 3 / statistics.median(self._products)

    def _check(self) -> Beside:
        product, meeting = self._seconds(), self._meeting()
        insort(self._meetings, meeting)
        return Beside(product / self.reference, meeting)

    def _seconds(self) -> float:
        """Of a product, on average."""
        start = time.perf_counter()
        for _ in range(PIECES):
            self._a @ self._a
            synchronise(self.device)
        self._products.append((time.perf_counter() - start) / PIECES)
        return self._products[-1]

    def _meeting(self) -> float:
        """Of the threads, after next to no work each; 0 where there is one, or a GPU."""
        if self.device != "cpu" or torch.get_num_threads() == 1:
            return 0.0
        return seconds(lambda: self._tiny.add_(1), MEETINGS)


def limit_of(opening: list[float]) -> float:
    """How many times their median a check may take, by the spread of the `opening` ones."""
    ordered, median = sorted(opening), statistics.median(opening)
    high = ordered[round(0.9 * (len(ordered) - 1))]
    return min(MOST, max(LEAST, 1 + 2 * (high / median - 1)))


class _Others:
    """What programs other than this one take of the processors, from its making on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._ours = time.process_time()
        self._all = busy_seconds()

    def cores(self, device: str) -> float:
        """Cores that others took and that our threads had use for; 0 where nothing tells."""
        taken = busy_seconds()
        wall = time.perf_counter() - self._start
        if taken is None or self._all is None or device != "cpu" or wall < 0.3:
            return 0.0  # the system counts in hundredths of a second
        others = (taken - self._all - (time.process_time() - self._ours)) / wall
        spare = max(0, (os.cpu_count() or 1) - torch.get_num_threads())
        return max(0.0, others - spare)


def busy_seconds() -> float | None:
    """Seconds that all processors together were busy or taken away since boot; only Linux tells."""
    try:
        fields = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
