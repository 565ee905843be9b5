"""What a process takes: peak memory measured in a process of its own, and what there is.

A process keeps what it once took, so that a peak means something only where nothing else ran. The
peak is that of the whole process: an allocator's own count leaves out what kernels and libraries
take.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mbconv.errors import UserError

RESERVE = 0.1  # share of the memory that is left alone, for other programs
_STATUS = Path("/proc/self/status")


class ChildFailed(Exception):
    """A measuring process ended without an answer; the message is its last line."""


def measurable() -> bool:
    """Whether this system tells what a process takes."""
    return _STATUS.is_file()


def run_child(entry: str, request: Mapping[str, Any]) -> Any:
    """Call `entry` (`module:function`) with `request` in a process of its own; JSON both ways.

    Raises UserError with its sentence where the function raised one, ChildFailed where the
    process ended in another way, killed for want of memory say, and UserError without Linux.
    """
    if not measurable():
        raise UserError("A process's memory is read from /proc, so measuring it needs Linux.")
    code = "from mbconv.measure.memory import child; child()"
    done = subprocess.run(
        [sys.executable, "-c", code, entry, json.dumps(request)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    why = (done.stderr.strip().splitlines() or ["it was killed, so memory is short"])[-1]
    if done.returncode == 2:
        raise UserError(why)
    raise ChildFailed(why)


def child() -> None:
    """What the measuring process runs; a user's mistake ends it with 2 and one sentence."""
    from importlib import import_module

    module, _, function = sys.argv[1].partition(":")
    try:
        print(json.dumps(getattr(import_module(module), function)(**json.loads(sys.argv[2]))))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def resident(field: str = "VmHWM") -> int:
    """This process's peak resident memory in bytes, or with `VmRSS` the present one.

    Not getrusage's peak, which would be that of the process that started this one, if larger.
    """
    status = _STATUS.read_text(encoding="utf-8", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory is short: torch has several ways to."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("not enough memory", "can't allocate memory", "out of memory")
    )


def available_memory() -> int:
    """Bytes that programs can still take: of the machine, and of this group's limit if it has one.

    Reads Linux's /proc/meminfo and the limit of control groups, version 2.
    """
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    table = dict(line.split(":", 1) for line in lines)
    free = int(table["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or the word max
        return free
    return min(free, max(0, limit - used))


def fitted_line(sizes: Sequence[int], peaks: Sequence[int]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line through the points."""
    x, y = sum(sizes) / len(sizes), sum(peaks) / len(peaks)
    rise = sum((size - x) * (peak - y) for size, peak in zip(sizes, peaks, strict=True))
    slope = rise / sum((size - x) ** 2 for size in sizes)
    return y - slope * x, slope


def keep_freed_memory(*, in_threads: bool = False) -> None:
    """Tell glibc to keep large freed blocks for the next step rather than hand them back.

    By default each large tensor is mapped and unmapped anew and every page faults again, which
    costs a training step on a CPU between a twentieth and a fifth. Without glibc: no effect.
    `in_threads` makes threads that start later share the main one's memory: their own could not
    keep large blocks.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8  # malloc.h
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, (1 << 31) - 1)
        if in_threads:
            mallopt(m_arena_max, 1)
