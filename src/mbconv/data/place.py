"""Where a picture's bytes lie: in a file of its own, or inside something larger."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Packed(Protocol):
    """A picture without a file of its own. Small and picklable, for it goes to worker processes."""

    @property
    def name(self) -> str:
        """What the dataset calls it: unique there, with `/`."""

    def read(self) -> bytes:
        """The content of a picture's file. Raises OSError where it has gone."""


Place = Path | Packed


@dataclass(frozen=True, slots=True)
class Part:
    """`size` bytes from `offset` on in a larger file, such as a tar shard."""

    file: Path
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            data = stream.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.file} ends before this picture does")
        return data

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


def read(place: Place) -> bytes:
    """The bytes of a picture, as its file holds them. Raises OSError where it has gone."""
    return place.read_bytes() if isinstance(place, Path) else place.read()


def name_in(place: Place, root: Path | None) -> str:
    """A picture's name below `root`, with `/`; the whole path of a file that lies elsewhere.

    Bytes of a path that are no UTF-8 are escaped.
    """
    if not isinstance(place, Path):
        return place.name
    if root is not None:
        with suppress(ValueError):  # a list may name files anywhere
            place = place.relative_to(root)
    return place.as_posix().encode("utf-8", "backslashreplace").decode("utf-8")
