"""Decoded pictures kept for the next epochs, at the size that training still needs.

They lie in one file in the cache folder, which the processes that prepare pictures share. Its
pages stay in memory, for so much of it is free; the system may still take them back.
"""

import contextlib
import os
import platform
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbconv.data.cache import cache_dir
from mbconv.data.crop import Box, Pixels, resample
from mbconv.data.picture import Picture
from mbconv.errors import UserError

OVERSAMPLE = 1.5  # short side kept, in sides of the largest training picture
_ASPECT = 2.0  # longer pictures are kept smaller, so that each fits into its place
_SHARE = 0.5  # of the memory and of the disk that are free
_PREFIX = "pictures-"
_ENTRY = np.dtype([("kept", "<u4", 2), ("whole", "<u4", 2)])  # heights and widths; 0: not there


class Kept:
    """A picture as the cache has it; like `Picture`, it gives parts of its full size."""

    def __init__(self, pixels: Pixels, width: int, height: int) -> None:
        self.pixels = pixels  # [h, w, 3]
        self.width = width
        self.height = height

    def part(self, box: Box, size: tuple[int, int], mirrored: bool = False) -> Pixels:
        """What lies in `box`, in pixels at full size, resampled to `size` [h, w, 3]."""
        height, width, _ = self.pixels.shape
        left, right = (x * width / self.width for x in (box[0], box[2]))
        top, bottom = (y * height / self.height for y in (box[1], box[3]))
        return resample(self.pixels, (left, top, right, bottom), size, mirrored)


def kept_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Height and width at which the cache keeps a picture: short side `side`, never enlarged."""
    scale = min(1.0, side / min(width, height), _ASPECT * side / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale))


def place_bytes(side: int) -> int:
    """The most that one picture takes."""
    return int(3 * side * (_ASPECT * side))


class PictureCache:
    """Room for the first `count` pictures of a list, with a short side of `side` pixels.

    What is read from it does not depend on what it holds: a picture without room, or that is not
    there yet, is brought to the same size first. Use it as a context; it leaves nothing behind.
    Copies in other processes (forked or pickled) share its content, and remove nothing when they
    are closed. Needs Linux.
    """

    _handle: int
    _remove: Callable[[], object]
    _bytes: NDArray[np.uint8]
    _entries: NDArray[np.void]

    def __init__(self, side: int, count: int) -> None:
        self.side = side
        self.count = count
        _remove_abandoned()
        try:
            cache_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f"{_own()}{os.getpid()}-", dir=cache_dir())
            os.truncate(handle, self._start(count))
            os.close(handle)
        except OSError as error:
            raise UserError(
                f"The cache folder {cache_dir()} cannot hold decoded pictures: "
                f"{error.strerror or error}. Train with --cache off, or set MBCONV_CACHE."
            ) from error
        self.path = Path(name)
        self._remove = weakref.finalize(self, _remove_own, self.path, os.getpid())
        self._open()

    def kept(self, index: int, picture: Picture) -> Kept:
        """Bring a picture to the cache's size and keep it if there is room. Raises Unreadable."""
        whole = picture.width, picture.height
        pixels = picture.part((0, 0, *whole), kept_size(*whole, self.side))
        # A full disk says so here; writing through the map would end the process.
        with contextlib.suppress(OSError):
            if index < self.count:
                entry = np.array((pixels.shape[:2], whole[::-1]), _ENTRY)
                _write(self._handle, pixels.tobytes(), self._start(index))
                _write(self._handle, entry.tobytes(), index * _ENTRY.itemsize)
        return Kept(pixels, *whole)

    def find(self, index: int) -> Kept | None:
        """The picture with this number, if it was kept."""
        if index >= self.count:
            return None
        entry = self._entries[index]
        (height, width), whole = entry["kept"].tolist(), entry["whole"].tolist()
        if not whole[1]:
            return None
        start = self._start(index)
        pixels = self._bytes[start : start + 3 * height * width].reshape(height, width, 3)
        return Kept(pixels, whole[1], whole[0])

    def close(self) -> None:
        """Give the memory back. To be called once."""
        self._bytes, self._entries = np.zeros(0, np.uint8), np.zeros(0, _ENTRY)
        self.count = 0
        os.close(self._handle)
        self._remove()

    def __enter__(self) -> "PictureCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"side": self.side, "count": self.count, "path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remove = lambda: None
        self._open()

    def _open(self) -> None:
        self._handle = os.open(self.path, os.O_RDWR)
        self._bytes = np.memmap(self.path, np.uint8, "r").view(np.ndarray)
        self._entries = self._bytes[: self.count * _ENTRY.itemsize].view(_ENTRY)

    def _start(self, index: int) -> int:
        return self.count * _ENTRY.itemsize + index * place_bytes(self.side)


def room(side: int, free_memory: int) -> int:
    """How many pictures there is room for, in half of the free memory and of the free disk."""
    folder = cache_dir()
    while not folder.exists():
        folder = folder.parent
    free = min(free_memory, shutil.disk_usage(folder).free)
    return int(_SHARE * free / (place_bytes(side) + _ENTRY.itemsize))


def _write(handle: int, data: bytes, start: int) -> None:
    """All of it: the system may take less than it was given."""
    while data:
        written = os.pwrite(handle, data, start)
        data, start = data[written:], start + written


def _own() -> str:
    """What files of this machine begin with: the folder may be a home that several share."""
    return f"{_PREFIX}{platform.node()}-"


def _remove_own(path: Path, process: int) -> None:
    if os.getpid() == process:  # a forked copy is not the owner
        with contextlib.suppress(OSError):
            path.unlink()


def _remove_abandoned() -> None:
    """What processes that were killed have left behind."""
    for path in cache_dir().glob(f"{_own()}*"):
        found = re.match(r"(\d+)-", path.name.removeprefix(_own()))
        with contextlib.suppress(OSError):
            try:
                if found and int(found[1]) != os.getpid():
                    os.kill(int(found[1]), 0)
            except ProcessLookupError:
                path.unlink()
