"""What the machine can do at most: copying memory, and multiplying matrices."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_COPIED = 2**28  # bytes, far more than caches hold
_SIDE = 2048


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second while copying (read and written), operations a second in products."""

    bandwidth: float
    arithmetic: float

    def floor(self, moved: float, flops: float) -> float:
        """Seconds that work of so many bytes and operations takes at least."""
        return max(moved / self.bandwidth, flops / self.arithmetic)


def ceilings(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Ceilings:
    """Measure both: a buffer that exceeds the caches, and a product of 2048x2048 in `dtype`."""
    x, y = torch.zeros(2, _COPIED // 4, device=device)
    a = torch.randn(_SIDE, _SIDE, device=device).to(dtype)
    return Ceilings(
        2 * _COPIED / seconds(lambda: y.copy_(x), device=device),
        2 * _SIDE**3 / seconds(lambda: a @ a, device=device),
    )


def seconds(call: Callable[[], object], repeats: int = 7, device: str = "cpu") -> float:
    """The median time of `call` after one that warms up."""
    call()
    synchronise(device)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()
