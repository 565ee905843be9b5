"""The named networks: `efficientnet.py` and `mobilenet.py` hold their tables."""

import difflib
from functools import cache

from mbconv.arch import efficientnet, mobilenet
from mbconv.arch.scale import scale
from mbconv.arch.spec import Spec
from mbconv.errors import UserError

_ROWS = {row.name: row for row in (*efficientnet.ROWS, *mobilenet.ROWS)}


def list_specs() -> tuple[str, ...]:
    """Names of all networks that `get_spec` knows, in the order of their tables."""
    return tuple(_ROWS)


@cache
def get_spec(name: str) -> Spec:
    """The network of that name.

    Raises UserError for an unknown name, with the nearest known ones.
    """
    row = _ROWS.get(name)
    if row is None:
        near = [known for known in _ROWS if name and name in known][:3]
        near = near or difflib.get_close_matches(name, _ROWS, n=3, cutoff=0.5)
        near = near or ["efficientnet_b0"]
        raise UserError(
            f"There is no network {name!r}; the nearest names: {', '.join(near)}. "
            "`mbconv info` lists all."
        )
    spec = scale(row.base, width=row.width, depth=row.depth, resolution=row.resolution)
    return spec.replace(name=name, dropout=row.dropout, source=row.source)
