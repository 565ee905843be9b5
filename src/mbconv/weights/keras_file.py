"""Keras files, read with h5py alone.

Three layouts: `.weights.h5` (Keras 3, and Keras 2's newer one), the older `.h5` of weights or
whole models (the format of the published weights), and `.keras`, a zip with a `.weights.h5`.
"""

import io
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbconv.errors import UserError

SUFFIXES = (".h5", ".hdf5", ".keras")
VARIABLES = {  # of a layer, by their number, in the order of the newer layout
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
    3: ("mean", "variance", "count"),
    2: ("kernel", "bias"),
    1: ("kernel",),
}


class KerasFile(NamedTuple):
    """What a file holds: `layer/variable` -> array as Keras lays it out, and what goes before.

    `rescalings` is the number of Rescaling layers, None where the file does not tell.
    """

    tensors: dict[str, Tensor]
    rescalings: int | None


def read(path: str | Path) -> KerasFile:
    """Open a Keras file of any of the three layouts; seeds and counters are left out.

    Raises UserError where h5py is missing or the file is none of these.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError(
            'Keras files need h5py, which is not installed. Run: pip install "mbconv[keras]"'
        ) from error
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist or is no file; give a .h5 or .keras file.")
    try:
        source: Any = path
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                source = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(source, "r") as opened:
            return _collect(opened, h5py.Dataset)
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read as a Keras file ({error}). Give a .weights.h5, .h5 or .keras "
            "file, and copy it again if it should be one."
        ) from error


def _collect(opened: Any, dataset: Any) -> KerasFile:
    """Walk the file. Only its own objects are visited: links to other files are not followed."""
    tensors: dict[str, Tensor] = {}
    groups: set[str] = set()

    def visit(path: str, item: Any) -> None:
        parts = path.split("/")
        if parts[0].startswith("optimizer"):
            return
        if not isinstance(item, dataset):
            groups.add(path)
            return
        layer, variable = parts[-2] if len(parts) > 1 else "", parts[-1].split(":")[0]
        if layer == "vars":  # numbered variables, the layer's name beside them if Keras is new
            layer = item.parent.attrs.get("name", parts[-3])
            names = VARIABLES.get(len(item.parent), ())
            variable = dict(enumerate(names)).get(int(variable), variable)
        if item.dtype.kind == "f" and item.ndim > 0 and not item.external:
            key = f"{layer}/{variable.removeprefix('depthwise_')}"
            tensors[key] = torch.from_numpy(np.asarray(item[()], dtype=np.float32))

    opened.visititems(visit)
    rescalings = sum(bool(re.fullmatch(r"(.*/)?rescaling(_\d+)?", path)) for path in groups)
    newer = any(path.split("/")[-1] == "vars" for path in groups)
    # The published weights are older than the Rescaling that Keras adds for them on loading.
    return KerasFile(tensors, rescalings if newer or rescalings != 1 else None)
