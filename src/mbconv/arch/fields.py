"""Validation of frozen dataclasses by their annotations: every mistake is one sentence."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin

from mbconv.errors import UserError


def check(where: str, name: str, value: Any, holds: bool, expected: str) -> None:
    """Raise UserError unless `holds`; infinite and undefined numbers never do."""
    if not holds or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{where}: {name} is {value!r}; it must be {expected}.")


def known(where: str, given: Iterable[str], names: set[str], kind: str = "field") -> None:
    """Raise UserError for the first of `given` that is not among `names`, with the nearest."""
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"known: {sorted(names)}."
            raise UserError(f"{where} has no {kind} {name!r}; {hint}")


def check_types(where: str, item: Any) -> None:
    """Hold every field of a dataclass against its annotation.

    Whole numbers must be positive, or at least the field's metadata `least`. Numbers become
    floats where the field is one: `expand=4` and `expand=4.0` are one network and must have one
    hash.
    """
    for f in fields(item):
        value = getattr(item, f.name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if f.type is int:
            least = f.metadata.get("least", 1)
            expected = f"a whole number from {least} to 2**31 - 1"
            check(where, f.name, value, whole and least <= value < 2**31, expected)
        elif f.type == int | None:
            holds = value is None or (whole and 0 < value < 2**31)
            check(where, f.name, value, holds, "a whole number from 1 to 2**31 - 1, or None")
        elif f.type is float or (f.type == float | None and value is not None):
            holds = (whole and abs(value) < 2**31) or isinstance(value, float)
            check(where, f.name, value, holds, "a finite number")
            object.__setattr__(item, f.name, float(value))
        elif f.type == float | None:
            continue
        elif f.type is bool:
            check(where, f.name, value, isinstance(value, bool), "true or false")
        elif f.type is str:
            check(where, f.name, value, isinstance(value, str), "a text")
        elif (allowed := _choices(f.type)) and allowed != (None,):
            expected = "one of " + ", ".join(map(str, allowed))
            check(where, f.name, value, value in allowed, expected)


def members(where: str, name: str, value: Any, kind: type) -> tuple[Any, ...]:
    """`value` as a tuple, after every member was found to be a `kind`."""
    holds = isinstance(value, list | tuple) and all(isinstance(item, kind) for item in value)
    check(where, name, value, holds, f"a tuple of {kind.__name__} objects")
    return tuple(value)


@cache
def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values that `Literal[...]` or `Literal[...] | None` allows; () for anything else."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if annotation is type(None):
        return (None,)
    if isinstance(annotation, type) or get_origin(annotation) is tuple:
        return ()
    return tuple(value for part in get_args(annotation) for value in _choices(part))
