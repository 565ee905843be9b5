"""Runs that come out the same on a GPU too: what that takes, and what it costs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from mbconv.training.machine import Machine

# Without a workspace of fixed size cuBLAS may choose other kernels each time (its documentation,
# "Results reproducibility"). Read when a process first multiplies matrices.
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(machine: Machine) -> Iterator[None]:
    """Inside, torch chooses only operators that give the same result each time, if `machine` says.

    An operator that has no such form raises RuntimeError. What was set before is put back.
    """
    if not machine.deterministic:
        yield
        return
    if machine.device.startswith("cuda"):
        os.environ.setdefault(_WORKSPACE, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    benchmark, fill = torch.backends.cudnn.benchmark, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # Filling fresh memory helps to find reads of it, and costs a pass over each map.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
        memory.fill_uninitialized_memory = fill


def describe_cost(machine: Machine, seconds_per_step: Callable[[Machine], float]) -> str:
    """What `--deterministic` costs on this machine, from steps with and without it."""
    if machine.device == "cpu":
        return (
            "deterministic: on a CPU every step already is, with the same number of threads; it "
            "costs nothing here"
        )
    without = seconds_per_step(replace(machine, deterministic=False))
    with deterministic(machine):
        taken = seconds_per_step(machine)
    return (
        f"deterministic: a step takes {1000 * taken:.1f} ms instead of {1000 * without:.1f} "
        f"({100 * (taken / without - 1):+.0f}%)"
    )
