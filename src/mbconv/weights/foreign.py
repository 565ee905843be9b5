"""Files that other libraries wrote: read without executing anything, written for them to read."""

import argparse
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbconv.errors import UserError
from mbconv.files import file_hash
from mbconv.nn.model import MBConvNet
from mbconv.weights import file, keras, keras_file
from mbconv.weights.conversion import convert, counterpart, export_state_dict
from mbconv.weights.model import load

# Where training code puts the weights inside a checkpoint; averaged ones first, as timm does.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning


def convert_file(
    path: Path, out: Path, source: str | None, name: str | None, target: str | None
) -> tuple[MBConvNet, str]:
    """Convert the weights in `path`, write them to `out`, and say which network they are there.

    `path` holds another library's weights (`source` and `name` as for `convert`), or, with a
    `target`, may be a model file or run folder of ours. `out` becomes a model file, or with a
    `target`, timm or torchvision, a file for that library. Raises UserError for all that does not
    fit together; `out` is written whole or not at all.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"{out} must end in .safetensors; other kinds are not written.")
    own = path.is_dir() or is_model_file(path)
    if own and target is None:
        raise UserError(
            f"{path} is mbconv's own already; give --to to write it for another library."
        )
    if own and (source or name):
        raise UserError(f"{path} is mbconv's own; leave --from and --name out.")
    model = load(path) if own else _convert_foreign(path, source, name)
    if target is None:
        file.save(model, out)
        return model, model.spec.name
    file.write_tensors(export_state_dict(model, target), out, {"format": "pt"})
    return model, f"{target}:{counterpart(model.spec, target)}"


def is_model_file(path: Path) -> bool:
    """Whether `path` is a file that `file.save` wrote."""
    return path.is_file() and file.is_safetensors(path) and file.KEY in file.read_tensors(path)[0]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors, .pth or .pt file, under their names there.

    A checkpoint's averaged weights win over its others, and prefixes that wrappers put before all
    names are taken off. Pickles are read as data: UserError for one that holds code, for files
    that are cut off or no checkpoint, and where there is more or other than tensors.
    """
    if path.is_file() and not file.is_safetensors(path):
        content = _read_pickle(path)
    else:
        content = file.read_tensors(path)[1]
    tensors = _unwrap(content)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} holds no state dict (names with tensors). Save one and give that.")
    return tensors


def _convert_foreign(path: Path, source: str | None, name: str | None) -> MBConvNet:
    if path.suffix in keras_file.SUFFIXES:
        model = keras.load(path, name)
    else:
        model = convert(read_state_dict(path), source, name)
    digest = file_hash(path)
    model.provenance = {**(model.provenance or {}), "file": path.name, "sha256": digest}
    return model


def _read_pickle(path: Path) -> Any:
    try:
        opened = path.open("rb")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        # timm's training script stores its options, a plain record, beside the weights.
        allowed = torch.serialization.safe_globals([argparse.Namespace])
        with opened, allowed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle's protocol, before it refuses code
            return torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was not loaded: it holds more than tensors, and other Python objects can run "
            "any code when loaded. Save its state_dict() with torch.save and give that file."
        ) from error
    except Exception as error:  # damaged bytes lead its reader into errors of any kind
        raise UserError(
            f"{path} is cut off, damaged or no checkpoint: it is neither in the safetensors format "
            "nor a state dict that torch.save wrote. Copy it again."
        ) from error


def _unwrap(content: Any) -> dict[str, Any]:
    """The state dict inside a checkpoint, without the prefixes that wrappers add."""
    while isinstance(content, Mapping):
        inside = [key for key in CONTAINERS if isinstance(content.get(key), Mapping)]
        if not inside:
            break
        content = content[inside[0]]
    tensors = dict(content) if isinstance(content, Mapping) else {}
    for prefix in PREFIXES * 2:  # they nest, in any order
        if tensors and all(isinstance(k, str) and k.startswith(prefix) for k in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors
