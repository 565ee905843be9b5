"""What this machine runs fastest: device, threads, memory layout and number format."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from mbconv.cores import usable_cores
from mbconv.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How a run computes. Part of its config, so that equal configs give equal runs."""

    device: str = "cpu"
    threads: int = 1
    workers: int = 1  # processes that prepare pictures
    channels_last: bool = True
    dtype: str = "float32"  # of the stages that learn, under autocast
    frozen_dtype: str = "float32"  # of the frozen stages and of evaluation
    trials: tuple[dict[str, Any], ...] = ()  # what was measured to choose these
    deterministic: bool = False  # only operators that give the same result each time
    compiled: bool = False  # the forward pass, by torch.compile

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Machine":
        try:
            return cls(**{**data, "trials": tuple(data.get("trials", ()))})
        except TypeError as error:
            raise UserError(f"The config's machine does not fit this version: {error}.") from error

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, dtype: str) -> torch.autocast:
        """Autocast to `dtype` on this device; off for float32."""
        return torch.autocast(
            torch.device(self.device).type, DTYPES[dtype], enabled=dtype != "float32"
        )


def find_device(wanted: str = "auto") -> str:
    """`auto`: CUDA, then MPS, then the CPU. Raises UserError for a device that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}  # fmt: skip
    if wanted == "auto":
        return next(name for name, there in available.items() if there)
    if not available.get(wanted.split(":")[0], False):
        there = ", ".join(name for name, here in available.items() if here)
        raise UserError(f"There is no device {wanted!r} here; available: auto, {there}.")
    return wanted


def plain_machine(device: str, processes: int = 1) -> Machine:
    """The device with its usual settings, before anything was measured.

    `processes` of a run share this computer's cores. torchrun sets OMP_NUM_THREADS to 1 where it
    is not set, so that only another number is the user's.
    """
    cores = usable_cores()
    if processes == 1:
        workers = min(cores, 8, max(2, cores // 2))  # two were never slower than one (LOG.md)
        return Machine(device=device, threads=torch.get_num_threads(), workers=workers)
    share = max(1, cores // processes)
    wanted = int(os.environ.get("OMP_NUM_THREADS", "1"))
    return Machine(
        device=device,
        threads=wanted if wanted > 1 else share,
        workers=min(8, max(1, share // 2)),
    )


def measured(machine: Machine, seconds_per_step: Callable[[Machine], float]) -> Machine:
    """The machine with the fastest of its layouts and formats, all trials written down.

    `seconds_per_step(machine)` runs a few training steps. First the format of the stages that
    learn is chosen, each format at both layouts, then that of the frozen ones.
    """
    dtypes = ["float32", "bfloat16"] if machine.device != "mps" else ["float32"]
    choices = [replace(machine, dtype=dtype, frozen_dtype=dtype, channels_last=last)
               for dtype in dtypes for last in (True, False)]  # fmt: skip
    seconds = {choice: seconds_per_step(choice) for choice in choices}
    fastest = min(seconds, key=lambda c: seconds[c])
    for dtype in dtypes:
        if dtype != fastest.dtype:
            mixed = replace(fastest, frozen_dtype=dtype)
            seconds[mixed] = seconds_per_step(mixed)
    fastest = min(seconds, key=lambda c: seconds[c])
    trials = tuple(
        {"dtype": c.dtype, "frozen_dtype": c.frozen_dtype, "channels_last": c.channels_last,
         "ms_per_step": round(1000 * s, 2)}
        for c, s in seconds.items()
    )  # fmt: skip
    return replace(fastest, trials=trials)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Weights and buffers as they were when the block ends, and no gradients left from it."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        yield
    finally:
        network.load_state_dict(before)  # batch norms that learn have seen what was measured with
        network.zero_grad(set_to_none=True)


def timed(run: Callable[[], object], repeats: int = 2) -> float:
    """Seconds of one `run()`: the least of `repeats` after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
