"""From what a user types to a list of picture files."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from mbconv.data.source import IMAGE_SUFFIXES
from mbconv.errors import UserError

STANDARD_INPUT = "-"


def find_pictures(paths: Iterable[str | Path], stdin: Iterable[str] = ()) -> list[Path]:
    """Expand files, folders (with all below them), globs and `-` (paths from `stdin`, one a line).

    The order is the one given, sorted within a folder or glob. A file that is named counts
    whatever its suffix; folders and globs yield files with a picture's suffix. A path that does
    not exist, or leads to no picture, stays in the list, so that its own line can say so.
    Raises UserError where there is no picture at all, or `stdin` holds something else than text.
    """
    named = [path for text in paths for path in _lines(text, stdin)]
    found = [path for text in named for path in _expand(text)]
    if any(path.is_file() for path in found):
        return found
    if not named:
        raise UserError("No picture was given: name files, folders, globs, or - for a list.")
    what = f"{named[0]} does not exist"
    if Path(named[0]).is_dir():
        what = f"{named[0]} holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))})"
    raise UserError(f"There is no picture to read: {what}. Check the path.")


def _lines(text: str | Path, stdin: Iterable[str]) -> Iterator[str]:
    if str(text) != STANDARD_INPUT:
        yield str(text)
        return
    try:
        for line in stdin:
            if "\0" in line:
                raise UnicodeError("NUL in the text")
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeError as error:
        raise UserError(
            "Standard input holds no text; - expects paths, one a line. Give a picture's own path."
        ) from error


def _expand(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        return _below(path) or [path]
    if not path.exists() and glob.has_magic(text):  # an existing name wins over a pattern
        matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        files = [f for m in matches for f in (_below(m) if m.is_dir() else [m])]
        return list(dict.fromkeys(f for f in files if _is_picture(f))) or [path]
    return [path]


def _below(folder: Path) -> list[Path]:
    """The pictures at any depth, sorted; hidden files and folders are passed over."""
    inside = (p for p in folder.rglob("*") if _is_picture(p))
    return sorted(
        p for p in inside if not any(n.startswith(".") for n in p.relative_to(folder).parts)
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
