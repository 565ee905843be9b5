"""Artifacts in ONNX Runtime."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbconv.errors import UserError
from mbconv.runtime.artifact import KEY, Artifact
from mbconv.runtime.backend import in_batches, installed


class OnnxBackend:
    """A session of ONNX Runtime on the CPU."""

    def __init__(self, session: Any, batch: int | None) -> None:
        self.device = torch.device("cpu")
        self._session, self._batch = session, batch
        self._input = session.get_inputs()[0].name

    def logits(self, x: Tensor) -> Tensor:
        return in_batches(self._run, x.contiguous(), self._batch)

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
    return artifact, OnnxBackend(session, artifact.form.batch)
