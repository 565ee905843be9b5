"""Artifacts in ONNX Runtime."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbconv.errors import UserError
from mbconv.runtime.artifact import KEY, Artifact, Form
from mbconv.runtime.backend import full_parts, in_batches, installed


class OnnxBackend:
    """A session of ONNX Runtime on the CPU."""

    def __init__(self, session: Any, form: Form) -> None:
        self.device = torch.device("cpu")
        self._session, self._form = session, form
        self._input = session.get_inputs()[0].name
        self._pool = ThreadPoolExecutor(os.cpu_count()) if form.piece else None

    def logits(self, x: Tensor) -> Tensor:
        if self._pool is None or self._form.piece is None:
            return in_batches(self._run, x.contiguous(), self._form.batch)
        parts = full_parts(x.contiguous(), self._form.piece)
        return torch.cat(list(self._pool.map(self._run, parts)))[: len(x)]

    def _run(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self._session.run(None, {self._input: x.numpy()})[0])


def check_installed(path: Path) -> None:
    installed("onnxruntime", "onnx", str(path)).disable_telemetry_events()


def open_sealed(path: Path) -> tuple[Artifact, OnnxBackend]:
    """Open an artifact whose seal was checked."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no common class
        raise UserError(
            f"{path} does not run in this ONNX Runtime: {error}. Upgrade it."
        ) from error
    text = session.get_modelmeta().custom_metadata_map[KEY]
    artifact = Artifact.from_json(text, path)
    if artifact.form.piece:  # one thread a call; the calls run at once
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return artifact, OnnxBackend(session, artifact.form)
