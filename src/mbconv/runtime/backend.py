"""What computes logits behind a Predictor: torch's modules, or an artifact in its runtime."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mbconv.errors import UserError
from mbconv.kernels.native import processor_features
from mbconv.runtime.artifact import Artifact, check_seal, runtime_of


class Backend(Protocol):
    """A network that is ready to compute, and where it does."""

    device: torch.device

    def logits(self, x: Tensor) -> Tensor:
        """A batch on `device` -> logits, float32 [N, classes].

        Normalised float32 [N, 3, R, R]; for artifacts with the entry `pictures` uint8 [N, H, W, 3].
        """


class ModuleBackend:
    """A network of torch's modules; the mode of each is restored after every batch."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self.model = model
        self.dtype = dtype
        self.device = next(model.parameters()).device

    def logits(self, x: Tensor) -> Tensor:
        # Off means float32 even inside a training loop's autocast; without the cache, casts made
        # here under inference mode cannot leak into that loop's next step.
        autocast = torch.autocast(
            self.device.type,
            dtype=self.dtype or torch.bfloat16,
            enabled=self.dtype not in (None, torch.float32),
            cache_enabled=False,
        )
        with torch.inference_mode(), evaluating(self.model), autocast:
            logits: Tensor = self.model(x)
        return logits.float()


def open_artifact(path: str | Path, *, trust: bool = False) -> tuple[Artifact, Backend]:
    """The description of an artifact and the network in it, ready to compute.

    `trust` allows a `.pt2` from elsewhere. Raises UserError where the artifact is missing, none of
    ours, changed since it was written, made for another processor, or its runtime is not
    installed.
    """
    path = Path(path)
    runtime = runtime_of(path)
    if runtime is None:
        raise UserError(f"{path} is no artifact; mbconv export writes .onnx, .xml, .pte and .pt2.")
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of an artifact.")
    module = importlib.import_module(f"mbconv.runtime.{_MODULES[runtime]}")
    module.check_installed(path)
    if runtime == "torch":
        module.check_origin(path, trust)
    check_seal(path)
    artifact, backend = module.open_sealed(path)
    _check_processor(artifact, path)
    return artifact, backend


_MODULES = {
    "torch": "program", "onnx": "onnx_runtime", "openvino": "openvino_runtime",
    "executorch": "executorch_runtime",
}  # fmt: skip


def installed(module: str, extra: str, purpose: str) -> Any:
    """The module, imported; UserError with the pip line where it is missing. No telemetry."""
    if "openvino_telemetry" not in sys.modules:  # OpenVINO and NNCF send usage data through it
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise UserError(
            f"{purpose} needs {module.split('.')[0]}, which is not installed: "
            f'pip install "mbconv[{extra}]".'
        ) from error


def in_batches(run: Callable[[Tensor], Tensor], x: Tensor, batch: int | None) -> Tensor:
    """`run(x)`; for an artifact of a fixed `batch` in parts of it, the last one filled up."""
    if batch is None:
        return run(x)
    return torch.cat([run(part) for part in full_parts(x, batch)])[: len(x)]


def full_parts(x: Tensor, size: int) -> list[Tensor]:
    """`x` [N, ...] in parts of exactly `size`; the last one is filled up with its last row."""
    *parts, last = torch.split(x, size)
    missing = size - len(last)
    if missing:
        last = torch.cat([last, last[-1:].expand(missing, *last.shape[1:])])
    return [*parts, last]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module is as it was.

    A network whose batch norms are frozen is in both modes at once, hence module by module.
    """
    training = [module for module in model.modules() if module.training]
    try:
        if training:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def _check_processor(artifact: Artifact, path: Path) -> None:
    features = processor_features()  # empty where the system does not tell
    if artifact.needs and features and not set(artifact.needs) & features:
        raise UserError(
            f"{path} computes in {artifact.form.precision} and was made for processors with "
            f"{' or '.join(artifact.needs)}; this one has none of them, so that neither its speed "
            "nor its measured accuracy would hold. Export it again on this machine."
        )
