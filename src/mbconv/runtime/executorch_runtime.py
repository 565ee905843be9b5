"""Artifacts in ExecuTorch, computed by XNNPACK as on a phone."""

import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbconv.errors import UserError
from mbconv.runtime.artifact import KEY, Artifact
from mbconv.runtime.backend import in_batches, installed

_EXTRA = "executorch"


class ExecutorchBackend:
    """A program's `forward`. Without a fixed batch it takes up to a number that it says itself."""

    def __init__(self, program: Any, batch: int | None) -> None:
        self.device = torch.device("cpu")
        self._program = program  # owns the memory that the method computes in
        self._forward = program.load_method("forward")
        self._batch = batch
        self._most: int = self._forward.metadata.input_tensor_meta(0).sizes()[0]

    def logits(self, x: Tensor) -> Tensor:
        if self._batch is not None:
            return in_batches(self._run, x.contiguous(), self._batch)
        return torch.cat([self._run(part) for part in torch.split(x.contiguous(), self._most)])

    def _run(self, x: Tensor) -> Tensor:
        logits: Tensor = self._forward.execute((x,))[0]
        return logits


def library(module: str, purpose: str) -> Any:
    """A module of ExecuTorch. UserError where it is missing or does not fit the installed torch."""
    # Importing it warns of its own experimental parts and of torchao's deprecated calls
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    installed("executorch", _EXTRA, purpose)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except (ImportError, OSError, AttributeError) as error:
        raise UserError(
            f"{purpose} needs an executorch that fits torch {torch.__version__}; the installed one "
            f'does not load ({error}): pip install --upgrade "mbconv[{_EXTRA}]".'
        ) from error


def check_installed(path: Path) -> None:
    library("executorch.runtime", str(path))


def open_sealed(path: Path) -> tuple[Artifact, ExecutorchBackend]:
    """Open an artifact whose seal was checked."""
    runtime = library("executorch.runtime", str(path)).Runtime.get()
    try:
        with _unlogged():
            program = runtime.load_program(path)
            (text,) = program.load_method(KEY).execute(())
            artifact = Artifact.from_json(json.dumps(json.loads(text)[KEY]), path)
            return artifact, ExecutorchBackend(program, artifact.form.batch)
    except RuntimeError as error:
        raise UserError(f"{path} does not run in this ExecuTorch: {error}. Upgrade it.") from error


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without the lines about the processor that the runtime writes past Python's streams."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
