"""Other libraries as data: a file for each, with its networks and its names. Imports no torch."""

import difflib
import re

from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.weights.libraries import (
    efficientnet_lite_pytorch,
    geffnet,
    lukemelas,
    timm,
    torchvision,
)
from mbconv.weights.libraries.network import Library

_ALL = (timm, torchvision, lukemelas, geffnet, efficientnet_lite_pytorch)
LIBRARIES: dict[str, Library] = {module.LIBRARY.name: module.LIBRARY for module in _ALL}


def get_library(name: str) -> Library:
    """The library of that name; UserError for an unknown one."""
    if name not in LIBRARIES:
        raise UserError(f"There is no source {name!r}; known: {', '.join(LIBRARIES)}.")
    return LIBRARIES[name]


def split_tag(name: str) -> tuple[str, str]:
    """A network's name there and which of its weights: `b0.in1k` or `b0@V1` -> `b0`, `V1`.

    Dashes count as underscores, as in `efficientnet-b0`.
    """
    name, *tag = re.split("[.@]", name, maxsplit=1)
    return name.replace("-", "_"), tag[0] if tag else ""


def find_network(library: Library, name: str) -> str:
    """The key of a network in the library's table; UserError, with the nearest, for others."""
    key, _ = split_tag(name)
    if key not in library.networks:
        known = list(library.networks)
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or known[:3]
        raise UserError(
            f"{library.name} has no network {name!r} that mbconv knows; "
            f"the nearest: {', '.join(near)}."
        )
    return key


def is_library_model(model: str) -> bool:
    """Whether a MODEL is `LIBRARY:NAME`."""
    library, colon, _ = model.partition(":")
    return bool(colon) and library in LIBRARIES


def library_spec(model: str) -> Spec:
    """The spec of `LIBRARY:NAME`, which is also its name; UserError for an unknown network."""
    library_name, _, name = model.partition(":")
    library = get_library(library_name)
    return library.networks[find_network(library, name)].spec(model)
