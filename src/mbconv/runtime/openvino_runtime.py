"""Artifacts in OpenVINO."""

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbconv.errors import UserError
from mbconv.runtime.artifact import KEY, Artifact
from mbconv.runtime.backend import full_parts, in_batches, installed


class OpenVinoBackend:
    """A network that is compiled for each number of pictures it meets: fixed shapes are faster."""

    def __init__(self, model: Any, artifact: Artifact) -> None:
        self.device = torch.device("cpu")
        self._model = model
        self._form = artifact.form
        self._compiled = lru_cache(maxsize=4)(self._compile)
        self._queue: Any = None

    def logits(self, x: Tensor) -> Tensor:
        if self._form.piece:
            return self._in_streams(x.contiguous(), self._form.piece)
        return in_batches(self._run, x.contiguous(), self._form.batch)

    def _run(self, x: Tensor) -> Tensor:
        network = self._compiled(len(x) if self._form.entry == "tensor" else None)
        return torch.from_numpy(network(x.numpy())[0])

    def _in_streams(self, x: Tensor, piece: int) -> Tensor:
        """Pieces of the batch, each computed by a stream of its own."""
        import openvino

        if self._queue is None:
            self._queue = openvino.AsyncInferQueue(self._compiled(piece))
        parts = full_parts(x, piece)
        rows: list[Any] = [None] * len(parts)

        def keep(request: Any, number: int) -> None:
            rows[number] = request.get_output_tensor(0).data.copy()

        self._queue.set_callback(keep)
        for number, part in enumerate(parts):
            self._queue.start_async({0: part.numpy()}, number, share_inputs=True)
        self._queue.wait_all()
        return torch.from_numpy(np.concatenate(rows))[: len(x)]

    def _compile(self, batch: int | None) -> Any:
        model = self._model
        if batch is not None and self._form.batch is None:
            model = model.clone()
            model.reshape([batch, *model.input().partial_shape[1:]])
        goal = "THROUGHPUT" if self._form.piece else "LATENCY"
        hint = {"PERFORMANCE_HINT": goal, "INFERENCE_PRECISION_HINT": self._number_format()}
        return shared_core().compile_model(model, "CPU", hint)

    def _number_format(self) -> str:
        """Of what is not quantised; explicit, since the default depends on the processor."""
        if self._form.precision == "float32":
            return "f32"
        return "bf16" if has_bfloat16() else "f32"


@cache
def shared_core() -> Any:
    """The process's one core, its CPU plugin loaded.

    The plugin gives the calling thread a stack for signals and takes it back when its core goes.
    Of several that come and go, one's stack would stay behind, freed: the next Ctrl-C would end
    the process with a segmentation fault.
    """
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return core


def has_bfloat16() -> bool:
    return "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def check_installed(path: Path) -> None:
    installed("openvino", "openvino", str(path))


def open_sealed(path: Path) -> tuple[Artifact, OpenVinoBackend]:
    """Open an artifact whose seal was checked."""
    try:
        model = shared_core().read_model(path)
    except RuntimeError as error:
        raise UserError(f"{path} is not read by this OpenVINO: {error}. Upgrade it.") from error
    artifact = Artifact.from_json(model.get_rt_info(KEY).astype(str), path)
    return artifact, OpenVinoBackend(model, artifact)
