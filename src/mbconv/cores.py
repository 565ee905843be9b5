"""The processors that this process may compute with."""

import os


def usable_cores() -> int:
    """How many; a cluster may lend a job some of its computer's only."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
