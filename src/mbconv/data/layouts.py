"""Published sets as their authors unpack them, which have files of labels instead of folders.

The same folders are what torchvision makes below its root. Nothing is converted or written.
"""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbconv.data.source import Dataset, Labelled, assemble
from mbconv.errors import UserError

Pixels = NDArray[np.uint8]


def is_known(folder: Path) -> bool:
    """Whether a folder has the files of one of the sets."""
    return _reader(folder) is not None


def scan_layout(folder: Path) -> Dataset:
    """The pictures of such a set, with its own splits; a val split is not made here.

    Raises UserError where a file is broken, and where reading MATLAB's files needs SciPy.
    """
    read = _reader(folder)
    assert read is not None, "is_known comes first"
    try:
        found = list(read(folder))
    except UserError:
        raise
    except _BROKEN as error:
        raise UserError(
            f"{folder} is not complete: {error}. Remove it, so that it is downloaded again, or "
            "mend it."
        ) from error
    return assemble(folder, found)


def _reader(folder: Path) -> Callable[[Path], Iterator[Labelled]] | None:
    for marker, read in _READERS.items():
        if (folder / marker).is_file():
            return read
    return None


def _flowers(folder: Path) -> Iterator[Labelled]:
    """Oxford Flowers 102 (Nilsback and Zisserman 2008)."""
    from torchvision.datasets import Flowers102

    numbers = _matlab(folder / "imagelabels.mat")["labels"]
    ids = _matlab(folder / "setid.mat")
    for key, split in (("trnid", "train"), ("valid", "val"), ("tstid", "test")):
        for i in ids[key].tolist():
            name = Flowers102.classes[int(numbers[i - 1]) - 1]
            yield Labelled(folder / "jpg" / f"image_{i:05d}.jpg", name, split)


def _pets(folder: Path) -> Iterator[Labelled]:
    """Oxford-IIIT Pets (Parkhi et al. 2012): the class is in the picture's name."""
    for file, split in (("trainval.txt", "train"), ("test.txt", "test")):
        lines = (folder / "annotations" / file).read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.strip() and not line.startswith("#"):
                name = line.split()[0]
                breed = name.rpartition("_")[0].replace("_", " ").title()
                yield Labelled(folder / "images" / f"{name}.jpg", breed, split)


def _cars(folder: Path) -> Iterator[Labelled]:
    """Stanford Cars (Krause et al. 2013)."""
    names = _matlab(folder / "devkit" / "cars_meta.mat")["class_names"].tolist()
    for file, inside, split in (
        ("devkit/cars_train_annos.mat", "cars_train", "train"),
        ("cars_test_annos_withlabels.mat", "cars_test", "test"),
    ):
        for row in _matlab(folder / file)["annotations"]:
            yield Labelled(folder / inside / str(row["fname"]), names[int(row["class"]) - 1], split)


def _cifar(folder: Path) -> Iterator[Labelled]:
    """CIFAR-10 (Krizhevsky 2009), the version for Python."""
    names = [str(name) for name in _unpickled(folder / _CIFAR)["label_names"]]
    for file in sorted(folder.glob("*_batch*")):
        split = "test" if file.name.startswith("test") else "train"
        for i, number in enumerate(_unpickled(file)["labels"]):
            yield Labelled(Row(file, i, f"{split}/{file.name}/{i:05d}"), names[number], split)


_BROKEN = (OSError, EOFError, ValueError, TypeError, LookupError, pickle.UnpicklingError)
_CIFAR = "batches.meta"
_READERS = {
    "setid.mat": _flowers,
    "annotations/trainval.txt": _pets,
    "devkit/cars_meta.mat": _cars,
    _CIFAR: _cifar,
}


@dataclass(frozen=True, slots=True)
class Row:
    """A picture of CIFAR: a row of a batch, 3 planes of 32 x 32 pixels."""

    file: Path
    index: int
    name: str

    def read(self) -> bytes:
        """The picture as a PPM file."""
        row: Pixels = _pixels(self.file)[self.index]
        pixels: Pixels = row.reshape(3, 32, 32).transpose(1, 2, 0)
        return b"P6 32 32 255\n" + pixels.tobytes()

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


@lru_cache(maxsize=8)
def _pixels(file: Path) -> Pixels:
    """A batch's pixels [n, 3072], kept: 31 MB for each of the six."""
    return np.asarray(_unpickled(file)["data"], dtype=np.uint8)


def _unpickled(file: Path) -> dict[str, Any]:
    """The dictionary in a batch. Nothing but arrays is made, whatever the file asks for."""
    with file.open("rb") as stream:
        value = _Arrays(stream, encoding="latin1").load()
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} holds no dictionary")
    return value


class _Arrays(pickle.Unpickler):
    """A pickle may name any function; this one knows those that make an array."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) == ("numpy", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")


def _matlab(file: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(f'Reading {file} needs SciPy: pip install "mbconv[sets]".') from None
    try:
        return dict(loadmat(file, squeeze_me=True))
    except Exception as error:  # the reader raises whatever its parsing stumbles over
        raise ValueError(f"{file.name}: {error}") from error
