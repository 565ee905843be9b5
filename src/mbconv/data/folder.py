"""Folders of class folders: which files are pictures, their classes and their splits."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from mbconv.data.source import IMAGE_SUFFIXES, SPLITS, Dataset, Labelled, assemble, listed
from mbconv.errors import UserError


def scan_folder(root: Path) -> Dataset:
    """Find `DIR/<class>/**` or `DIR/{train,val|validation|valid,test}/<class>/**`.

    A folder named like a split counts as one only if it holds class folders, so that a class may
    be called "train". Hidden files and folders are passed over. No picture is opened.

    Raises UserError where there is no picture in a class folder, and for a folder that is
    neither the one nor the other.
    """
    split_folders = _split_folders(root, _folders(root)) or {"all": root}
    found = [
        Labelled(path, name, split)
        for split, folder in split_folders.items()
        for name, path in _class_pictures(folder)
    ]
    if not found:
        raise UserError(
            f"{root} holds no picture in a class folder. Put them into {root}/<class>/, one folder "
            f"per class; {len(IMAGE_SUFFIXES)} suffixes such as .jpg, .png and .webp are read. "
            "Lists (.csv, .parquet) and shards (.tar) are named themselves."
        )
    ignored = sum(1 for _ in _files(root)) - len(found)
    return assemble(root, found, order=sorted({item.label for item in found}), ignored=ignored)


def has_classes(root: Path) -> bool:
    """Whether a folder holds pictures in folders."""
    return any(_has_picture(folder) for folder in _folders(root))


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _split_folders(root: Path, folders: list[Path]) -> dict[str, Path]:
    """The folders that are splits by name and content; none where the classes lie in `root`."""
    found: dict[str, Path] = {}
    for path in folders:
        split_name = SPLITS.get(path.name.lower())
        if split_name and any(_has_picture(inner) for inner in _folders(path)):
            if split_name in found:
                raise UserError(
                    f"{root} has two folders for one split: {found[split_name].name} and "
                    f"{path.name}. Keep one of them."
                )
            found[split_name] = path
    others = [p.name for p in folders if p.name.lower() not in SPLITS and _has_picture(p)]
    if found and others:
        raise UserError(
            f"{root} holds split folders ({', '.join(p.name for p in found.values())}) beside "
            f"{listed('other folder', others)} with pictures. Move one or the other away."
        )
    order = ("train", "val", "test")
    return {name: found[name] for name in order if name in found}


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in _files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def _has_picture(folder: Path) -> bool:
    return any(True for _ in _pictures(folder))


def _class_pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and picture of each class folder; hidden folders are none."""
    return ((inner.name, path) for inner in _folders(folder) for path in _pictures(inner))


def _files(folder: Path) -> Iterator[Path]:
    """Visible files at any depth below `folder`."""
    for parent, names, files in os.walk(folder, onerror=_raise):
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _raise(error: OSError) -> NoReturn:
    raise error
