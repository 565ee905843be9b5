"""The model file: one `.safetensors` that rebuilds, evaluates and explains a network.

The tensors are the network's state dict. The metadata has one key, `mbconv`, with JSON:
`format` (1), `spec`, `labels` (a list or null), `preprocessing`, `provenance` (free-form) and
`sha256`, which is taken over the tensors and not over the file's bytes.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.files import atomic_path
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing
from mbconv.weights.assemble import assemble, check_fit

FORMAT = 1
KEY = "mbconv"
MAX_HEADER = 100_000_000  # bytes, the format's own limit
WINDOWS_DISK_FULL = 112


def save(model: MBConvNet, path: str | Path, provenance: dict[str, Any] | None = None) -> str:
    """Write `model` to `path`, whole or not at all, and return the hash of its tensors.

    `provenance` (where the weights come from; anything that JSON holds) replaces the model's
    own; None keeps that. Tensors keep their number format. Raises UserError where the disk is
    full, `path` cannot be written, or the tensors or labels do not fit the model's spec.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    check_fit(model.spec, tensors)
    digest = tensor_hash(tensors)
    provenance = (model.provenance or {}) if provenance is None else provenance
    write_tensors(tensors, path, {KEY: json.dumps(describe(model, provenance, digest))})
    return digest


def describe(model: MBConvNet, provenance: dict[str, Any], digest: str) -> dict[str, Any]:
    """The metadata of a model file. Raises UserError where the labels do not fit the spec."""
    labels = None if model.labels is None else list(model.labels)
    _check_labels(labels, model.spec)
    return {
        "format": FORMAT,
        "spec": model.spec.to_dict(),
        "labels": labels,
        "preprocessing": model.preprocessing.to_dict(),
        "provenance": provenance,
        "sha256": digest,
    }


def load(path: str | Path) -> MBConvNet:
    """Rebuild the network from a model file, in evaluation mode and with float32 parameters.

    `spec`, `labels`, `preprocessing` and `provenance` of the result are the file's. Raises
    UserError where the file is missing, no model file, cut off, changed since it was written,
    from a newer version, or does not fit its own spec.
    """
    path = Path(path)
    metadata, tensors = read_tensors(path)
    about = _parse(path, metadata)
    if tensor_hash(tensors) != about.get("sha256"):
        raise UserError(
            f"{path} is damaged: its weights do not match the checksum that was stored with them. "
            "Copy or train it again."
        )
    try:
        spec = Spec.from_dict(about.get("spec"))
        labels = about.get("labels")
        _check_labels(labels, spec)
        preprocessing = Preprocessing.from_dict(about.get("preprocessing", {}))
        provenance = about.get("provenance") or {}
        if not isinstance(provenance, dict):
            raise UserError("`provenance` must be an object.")
        model = assemble(spec, tensors)
    except (UserError, TypeError) as error:  # TypeError: a field of another type
        reason = str(error).rstrip(".")
        raise UserError(f"{path} is broken: {reason}. Copy it or save it again.") from error
    model.labels = None if labels is None else tuple(labels)
    model.preprocessing = preprocessing
    model.provenance = provenance
    return model


def spec_in(metadata: Mapping[str, str], path: str | Path) -> Spec:
    """The spec in a model file's metadata; UserError, which names `path`, where there is none."""
    return Spec.from_dict(_parse(path, metadata).get("spec"))


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in the order of their names, 64 hex digits.

    For each: the line `name dtype shape` (`a.weight float32 [3, 2]`) in UTF-8, a newline, then
    the elements, row by row, little-endian. This definition never changes for format 1.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Write a `.safetensors` file, whole or not at all; UserError where that cannot be done."""
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # it hides the system's error in its text
            raise _system_error(error) from error


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a `.safetensors` file; UserError where it is none, or cut off."""
    if not path.exists():
        raise UserError(f"{path} does not exist; give the path of a model file.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the model file inside it.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            return file.metadata() or {}, tensors
    except SafetensorError as error:
        if is_safetensors(path):
            raise UserError(f"{path} is cut off or damaged ({error}). Copy it again.") from error
        raise UserError(
            f"{path} is no model file: it is not in the safetensors format. Give a .safetensors "
            "file that mbconv wrote."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the header's length in 8 bytes, then an object."""
    with path.open("rb") as opened:
        start = opened.read(9)
    return int.from_bytes(start[:8], "little") < MAX_HEADER and start[8:] == b"{"


def _parse(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if KEY not in metadata:
        raise UserError(
            f"{path} is a safetensors file that mbconv did not write: it lacks the `{KEY}` entry "
            "with spec, labels and preprocessing. Give a file that mbconv wrote."
        )
    try:
        about = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"The description inside {path} is broken ({error}). Save or copy it again."
        ) from error
    version = about.get("format") if isinstance(about, dict) else None
    if not isinstance(about, dict) or not isinstance(version, int) or version < 1:
        raise UserError(
            f"The description inside {path} is broken (no format number). Save or copy it again."
        )
    if version > FORMAT:
        raise UserError(
            f"{path} has format {version}, written by a newer mbconv; this one reads up "
            f"to format {FORMAT}. Upgrade mbconv."
        )
    return about


def _check_labels(labels: Any, spec: Spec) -> None:
    if labels is None:
        return
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError("`labels` must be a list of class names.")
    if len(labels) != spec.num_classes:
        raise UserError(f"There are {len(labels)} labels for {spec.num_classes} classes.")


def _system_error(error: SafetensorError) -> Exception:
    """The OSError that safetensors met, or `error` itself."""
    found = re.search(r"(?:os error|code:) (\d+)", str(error))  # as new and old versions write
    if not found:
        return error
    number = int(found[1])
    if os.name == "nt" and number == WINDOWS_DISK_FULL:
        number = errno.ENOSPC
    return OSError(number, os.strerror(number))
