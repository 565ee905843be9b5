"""How long threads took to meet at best on this machine, known from one run to the next for a day.

A run that begins with its cores apart, and sees nothing else, would take that for the machine.
"""

import contextlib
import json
import math
import os
import platform
import time
from pathlib import Path

import torch

from mbconv.data.cache import cache_dir
from mbconv.errors import UserError
from mbconv.files import write_json

FRESH = 24 * 3600  # seconds; a host may move a virtual machine for good


def recall() -> float:
    """Seconds at the present number of threads; infinity where nothing fresh is known."""
    try:
        path = _path()
        age = time.time() - path.stat().st_mtime
        nearest = float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
    return nearest if age < FRESH and nearest > 0 else math.inf


def remember(nearest: float) -> None:
    """Write it down where it is the nearest of a day; a folder that cannot be written is let be."""
    if nearest < recall():
        with contextlib.suppress(UserError):
            write_json(_path(), {"seconds": nearest})


def _path() -> Path:
    """Of this machine: the folder may be a home that several share."""
    threads = f"{torch.get_num_threads()}-of-{os.cpu_count()}"
    return cache_dir() / f"threads-{platform.node()}-{threads}-torch-{torch.__version__}.json"
