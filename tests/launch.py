"""Starts torchrun for tests."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def torchrun(*arguments: object, processes: int = 2) -> "subprocess.Popen[str]":
    """A launcher with so many processes; the arguments are more of its own, a script and its."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(
        [*command, *map(str, arguments)], text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, output and errors."""
    try:
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, output, errors
