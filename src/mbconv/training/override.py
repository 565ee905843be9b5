"""Single fields of a recipe changed from words: `optimizer.learning_rate=0.002`."""

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from mbconv.errors import UserError
from mbconv.training.recipe import Recipe


def changed(recipe: Recipe, changes: Iterable[str]) -> Recipe:
    """The recipe with fields set by `path=value` each, the value in JSON or a bare word.

    Parts of a path are names, in `phases` numbers from 0. Raises UserError for a path that there
    is not, with the nearest ones, and for a value that the field does not take.
    """
    data = recipe.to_dict()
    for change in changes:
        path, given, word = change.partition("=")
        if not given:
            raise UserError(f"--set {change}: write PATH=VALUE, as in optimizer.clip=1.")
        path = path.strip()
        paths = dict(_leaves(data))
        if path not in paths:
            raise UserError(f"A recipe has no field {path!r}; {_nearest(path, list(paths))}")
        holder, last = paths[path]
        holder[last] = _value(word.strip())
    return Recipe.from_dict(data)


def _leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Each settable path with its container and its key there; `phases` also as a whole."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        path = f"{prefix}{key}"
        if not isinstance(value, dict):
            yield path, (data, key)
        if isinstance(value, dict | list):
            yield from _leaves(value, f"{path}.")


def _nearest(path: str, paths: list[str]) -> str:
    """Whole paths that look alike, and those whose last part does."""
    last = path.rpartition(".")[2]
    by_last = {p.rpartition(".")[2]: p for p in paths}
    ends = difflib.get_close_matches(last, by_last, n=2)
    alike = [*(by_last[end] for end in ends), *difflib.get_close_matches(path, paths, n=2)]
    if not alike:
        return "mbconv recipe show NAME lists them."
    return f"did you mean {', '.join(dict.fromkeys(alike))}?"


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word
