"""What the machine can do at most: copying memory, and multiplying matrices."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_COPIED = 2**28  # bytes, far more than caches hold
_SIDE = 1024


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second while copying (read and written), operations a second in products."""

    bandwidth: float
    arithmetic: float

    def floor(self, moved: float, flops: float) -> float:
        """Seconds that work of so many bytes and operations takes at least."""
        return max(moved / self.bandwidth, flops / self.arithmetic)


def ceilings(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Ceilings:
    """Measure both: a buffer that exceeds the caches, and a product of 1024x1024 in `dtype`.

    The fastest of several runs: whatever disturbs one only makes it slower.
    """
    x, y = torch.zeros(2, _COPIED // 4, device=device)
    a = torch.randn(_SIDE, _SIDE, device=device).to(dtype)
    copying, product = (
        min(_times(call, 15, device)) for call in (lambda: y.copy_(x), lambda: a @ a)
    )
    return Ceilings(2 * _COPIED / copying, 2 * _SIDE**3 / product)


def seconds(call: Callable[[], object], repeats: int = 7, device: str = "cpu") -> float:
    """The median time of `call` after one that warms up."""
    return statistics.median(_times(call, repeats, device))


def _times(call: Callable[[], object], repeats: int, device: str) -> list[float]:
    call()
    synchronise(device)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return times


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()
