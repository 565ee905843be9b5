"""Whether the machine is quiet enough to measure on, told by work that is always the same."""

import statistics
import time

import torch

from mbconv.measure.ceilings import synchronise

LIMIT = 1.1  # a check this much slower than the quickest means that something else runs


class Calibration:
    """Times a fixed matrix product and copy, a few milliseconds on a laptop's core.

    `best` is the quickest check so far, in seconds: what the machine does when left alone.
    """

    def __init__(self, device: str = "cpu", checks: int = 5) -> None:
        self.device = device
        self._a = torch.full((512, 512), 0.5, device=device)
        self._x, self._y = torch.zeros(2, 2**22, device=device)
        self.seconds()  # warms up
        self.best = min(self.seconds() for _ in range(checks))

    def seconds(self) -> float:
        """The median of a few runs."""
        times = []
        for _ in range(7):
            start = time.perf_counter()
            self._a @ self._a
            self._y.copy_(self._x)
            synchronise(self.device)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def check(self) -> float:
        """How many times as long as the quickest check this one took; at least 1."""
        taken = self.seconds()
        self.best = min(self.best, taken)
        return taken / self.best
