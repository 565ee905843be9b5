"""The peak memory of passes and training steps, and whether a batch fits before it is tried."""

from typing import Any

import torch

from mbconv.errors import UserError
from mbconv.measure.memory import (
    RESERVE,
    ChildFailed,
    available_memory,
    fitted_line,
    keep_freed_memory,
    resident,
    run_child,
)
from mbconv.measure.subject import Subject, open_subject
from mbconv.measure.task import Mode, Task, Way

_MIB = 2**20


class Footprints:
    """Peaks in bytes of the networks that were measured, each in a process of its own.

    Before a batch is tried, its peak is foretold from smaller ones, so that no machine is driven
    out of its memory: a peak grows by a fixed number of bytes a picture.
    """

    def __init__(self, way: Way, threads: int) -> None:
        self.way, self.threads = way, threads
        self._peaks: dict[tuple[str, Mode, int], dict[int, dict[str, int]]] = {}

    def peak(self, subject: Subject, mode: Mode, batch: int, resolution: int) -> dict[str, int]:
        """`peak` of the whole process and what of it the `program` itself takes, in bytes.

        Raises UserError where the batch does not fit, or memory cannot be measured.
        """
        known = self._peaks.setdefault((subject.name, mode, resolution), {})
        if batch in known:
            return known[batch]
        self._foretell(known, subject, mode, batch, resolution)
        known[batch] = self._measured(subject, mode, batch, resolution)
        return known[batch]

    def _foretell(
        self, known: dict[int, dict[str, int]], subject: Subject, mode: Mode, batch: int, side: int
    ) -> None:
        """UserError where the batch will not fit; small ones are measured first if need be."""
        if batch > 1:
            for size in (1, 2):
                if known and max(known) >= size:
                    continue
                if size == 1 or self._bound(known, batch) > _room(self.way.device):
                    known[size] = self._measured(subject, mode, size, side)
            need = self._bound(known, batch)
            if need > _room(self.way.device):
                raise UserError(
                    f"a batch of {batch} does not fit: it needs about {need / _MIB:,.0f} MiB and "
                    f"{_room(self.way.device) / _MIB:,.0f} are free"
                )

    def _bound(self, known: dict[int, dict[str, int]], batch: int) -> float:
        """Bytes that a batch takes: by the line through two others, at most by one in proportion.

        Of one batch all that is not the program is taken to grow with the pictures.
        """
        sizes = sorted(size for size in known if size < batch)
        if len(sizes) > 1:
            fixed, each = fitted_line(sizes, [known[size]["peak"] for size in sizes])
            return fixed + each * batch
        only = known[sizes[0]]
        return only["program"] + (only["peak"] - only["program"]) * batch / sizes[0]

    def _measured(self, subject: Subject, mode: Mode, batch: int, side: int) -> dict[str, int]:
        ask = {"name": subject.name, "mode": mode, "batch": batch, "resolution": side,
               "dtype": self.way.dtype, "channels_last": self.way.channels_last,
               "device": self.way.device, "threads": self.threads}  # fmt: skip
        try:
            found: dict[str, int] = run_child("mbconv.measure.footprint:measure_peak", ask)
        except ChildFailed as error:
            raise UserError(f"a batch of {batch} could not be run: {error}") from error
        return found


def measure_peak(
    name: str,
    mode: Mode,
    batch: int,
    resolution: int,
    threads: int,
    **way: Any,
) -> dict[str, int]:
    """This process's peak after three passes or steps; on a GPU that of its allocator."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    program = resident("VmRSS")
    task = Task(open_subject(name), Way(**way), mode, batch, resolution, copied=False)
    for _ in range(3):
        task()
    if task.way.device.startswith("cuda"):
        return {"peak": torch.cuda.max_memory_reserved(), "program": 0}
    return {"peak": resident(), "program": program}


def _room(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0] * (1 - RESERVE)
    return available_memory() * (1 - RESERVE)
