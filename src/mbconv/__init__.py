"""MBConv networks that are efficient in milliseconds and megabytes, not only in FLOPs.

The public names are resolved lazily (PEP 562), so that `import mbconv` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbconv.arch.block import Block
    from mbconv.arch.cost import Cost, cost
    from mbconv.arch.scale import scale, with_output_stride
    from mbconv.arch.spec import Spec, Stage
    from mbconv.arch.zoo import get_spec, list_specs
    from mbconv.errors import UserError
    from mbconv.export.run import export_model
    from mbconv.growing.transfer import grow
    from mbconv.measure.accuracy import evaluate
    from mbconv.nn.encoder import Encoder
    from mbconv.nn.model import MBConvNet, build
    from mbconv.preprocessing import Preprocessing
    from mbconv.record import Record
    from mbconv.runtime.predictor import Prediction, Predictor
    from mbconv.shrinking.run import shrink
    from mbconv.study.grid import Arm, Grid
    from mbconv.study.run import run_study
    from mbconv.training.run import Run, resume, train
    from mbconv.weights.file import save
    from mbconv.weights.hub import push_to_hub
    from mbconv.weights.model import create_model, load
    from mbconv.weights.repository import save_pretrained

_HOME = {
    "Arm": "study.grid",
    "Block": "arch.block",
    "Cost": "arch.cost",
    "Encoder": "nn.encoder",
    "Grid": "study.grid",
    "MBConvNet": "nn.model",
    "Prediction": "runtime.predictor",
    "Predictor": "runtime.predictor",
    "Preprocessing": "preprocessing",
    "Record": "record",
    "Run": "training.run",
    "Spec": "arch.spec",
    "Stage": "arch.spec",
    "UserError": "errors",
    "build": "nn.model",
    "cost": "arch.cost",
    "create_model": "weights.model",
    "evaluate": "measure.accuracy",
    "export_model": "export.run",
    "get_spec": "arch.zoo",
    "grow": "growing.transfer",
    "list_specs": "arch.zoo",
    "load": "weights.model",
    "push_to_hub": "weights.hub",
    "resume": "training.run",
    "run_study": "study.run",
    "save": "weights.file",
    "save_pretrained": "weights.repository",
    "scale": "arch.scale",
    "shrink": "shrinking.run",
    "train": "training.run",
    "with_output_stride": "arch.scale",
}

__all__ = [
    "Arm",
    "Block",
    "Cost",
    "Encoder",
    "Grid",
    "MBConvNet",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "Record",
    "Run",
    "Spec",
    "Stage",
    "UserError",
    "build",
    "cost",
    "create_model",
    "evaluate",
    "export_model",
    "get_spec",
    "grow",
    "list_specs",
    "load",
    "push_to_hub",
    "resume",
    "run_study",
    "save",
    "save_pretrained",
    "scale",
    "shrink",
    "train",
    "with_output_stride",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mbconv' has no attribute {name!r}")
    return getattr(import_module(f"mbconv.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
