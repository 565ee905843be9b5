"""Datasets of Hugging Face's library: saved on disk, or by name as `hf:NAME` or `hf:NAME:CONFIG`.

Needs the extra `datasets`. Downloads and their cache are that library's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbconv.data.source import SPLITS, Dataset, Labelled, assemble
from mbconv.errors import UserError

PREFIX = "hf:"
_LABELS = ("label", "labels", "class", "target", "fine_label")


@dataclass(frozen=True, slots=True)
class Row:
    """A picture in a table. Worker processes map the table's file instead of copying it."""

    table: Any = field(repr=False)  # datasets.Dataset with the one column of undecoded pictures
    index: int
    name: str

    def read(self) -> bytes:
        (picture,) = self.table[self.index].values()
        if picture["bytes"] is not None:
            return bytes(picture["bytes"])
        return Path(picture["path"]).read_bytes()

    def __str__(self) -> str:
        return self.name


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has made this folder."""
    one = ("dataset_info.json", "state.json")
    several = (folder / "dataset_dict.json").is_file()
    return several or all((folder / file).is_file() for file in one)


def scan_saved(folder: Path) -> Dataset:
    """A dataset that `save_to_disk` has written; see `scan_named`."""
    loaded = _loaded(str(folder), lambda datasets: datasets.load_from_disk(str(folder)))
    return _dataset(str(folder), folder, loaded)


def scan_named(text: str) -> Dataset:
    """`hf:NAME`: what `datasets.load_dataset` finds, by name or in a local folder.

    The first column of pictures counts, and the column of classes, or of text or whole numbers
    named label. A dataset with one split alone has none that is held out, so it counts as all.
    Raises UserError where the library is missing, the dataset cannot be loaded, or a column is.
    """
    name, _, config = text.removeprefix(PREFIX).partition(":")
    loaded = _loaded(text, lambda datasets: datasets.load_dataset(name, config or None))
    first = next(iter(_splits(loaded).values()))
    files = first.cache_files
    root = Path(files[0]["filename"]).parent if files else Path(name)
    return _dataset(text, root, loaded, given=text)


def _dataset(text: str, root: Path, loaded: Any, given: str = "") -> Dataset:
    found: list[Labelled] = []
    order: list[str] = []
    parts = _splits(loaded)
    for own, table in parts.items():
        split = "all" if len(parts) == 1 else SPLITS.get(own.lower())
        if split is None:
            continue  # unlabelled extras and the like
        picture, label = _columns(text, table)
        feature = table.features[label]
        order += [n for n in getattr(feature, "names", None) or [] if n not in order]
        rows = table.select_columns([picture]).cast_column(picture, _undecoded())
        for i, value in enumerate(table[label]):
            if value is None or value == -1:  # as test splits without answers have it
                continue
            name = feature.int2str(value) if hasattr(feature, "int2str") else str(value)
            found.append(Labelled(Row(rows, i, f"{own}/{i:08d}"), name, split))
    if not found:
        raise UserError(
            f"{text} has no labelled picture in a split called train, validation or test; it has "
            f"{', '.join(parts)}. Take another dataset or configuration."
        )
    return assemble(root, found, order=order or None, given=given)


def _splits(loaded: Any) -> Mapping[str, Any]:
    return loaded if isinstance(loaded, Mapping) else {"all": loaded}


def _columns(text: str, table: Any) -> tuple[str, str]:
    """The columns of pictures and of labels."""
    kinds = {name: type(feature).__name__ for name, feature in table.features.items()}
    pictures = [name for name, kind in kinds.items() if kind == "Image"]
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    values = [name for name, kind in kinds.items() if kind == "Value"]
    ranked = sorted(classes, key=lambda name: name not in _LABELS)
    ranked += [name for name in _LABELS if name in values]
    if not pictures or not ranked:
        has = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise UserError(
            f"{text} needs a column of images and one of classes, or called label; it has {has}. "
            "Rename or cast them with the datasets library and save the result."
        )
    return pictures[0], ranked[0]


def _undecoded() -> Any:
    import datasets

    return datasets.Image(decode=False)


def _loaded(text: str, load: Any) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f'Reading {text} needs Hugging Face\'s library: pip install "mbconv[datasets]".'
        ) from None
    try:
        return load(datasets)
    except Exception as error:  # the library raises many kinds, its own and its parts'
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{text} cannot be loaded ({type(error).__name__}: {reason}). Check the name, the "
            "network, and whether you must log in (hf auth login)."
        ) from error
