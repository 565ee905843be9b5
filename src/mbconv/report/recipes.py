"""Recipes in a terminal: which there are, and one with all its fields. Takes plain data."""

from typing import Any


def recipe_list_lines(recipes: dict[str, str]) -> list[str]:
    """A line each from {name: docstring}: its first sentence."""
    width = max(map(len, recipes))
    return [f"{name:{width}}  {_first_line(text)}" for name, text in recipes.items()]


def recipe_lines(recipe: dict[str, Any], text: str) -> list[str]:
    """The docstring, then a line a field: the path that --set takes, and its value."""
    fields = list(_fields(recipe))
    width = max(len(path) for path, _ in fields)
    about = [line.strip() for line in text.strip().splitlines()]
    return [*about, "", *(f"{path:{width}}  {value}" for path, value in fields)]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].strip()


def _fields(data: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    else:
        return [(prefix.removesuffix("."), "null" if data is None else _word(data))]
    return [field for key, value in items for field in _fields(value, f"{prefix}{key}.")]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
