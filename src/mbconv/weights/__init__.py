"""Every model file: our own format, other people's checkpoints, and what MODEL means.

The names are resolved lazily, so that `weights.libraries`, which is data, costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbconv.weights.conversion import convert, counterpart, export_state_dict
    from mbconv.weights.file import save
    from mbconv.weights.model import create_model, load
    from mbconv.weights.pretrained import pretrained_names

_HOME = {
    "convert": "conversion",
    "counterpart": "conversion",
    "create_model": "model",
    "export_state_dict": "conversion",
    "load": "model",
    "pretrained_names": "pretrained",
    "save": "file",
}

__all__ = [
    "convert",
    "counterpart",
    "create_model",
    "export_state_dict",
    "load",
    "pretrained_names",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mbconv.weights' has no attribute {name!r}")
    return getattr(import_module(f"mbconv.weights.{_HOME[name]}"), name)
