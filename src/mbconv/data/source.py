"""A folder of pictures as a dataset: which files there are, their classes and their splits."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import NoReturn

from mbconv.errors import UserError

_SUFFIXES = "jpg jpeg jpe jfif png gif webp bmp tif tiff ppm pgm pbm pnm jp2 avif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split(" "))
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Sample:
    path: Path
    label: int  # index into Dataset.classes


@dataclass(frozen=True)
class Dataset:
    """Pictures by split: "train", "val" and "test" as far as they exist, or "all" alone."""

    root: Path
    classes: tuple[str, ...]  # sorted
    splits: dict[str, tuple[Sample, ...]]  # each sorted by path
    ignored: int = 0  # other visible files: no picture by their suffix, or outside every class

    def name(self, sample: Sample) -> str:
        """The sample's path relative to the root, with `/`; bytes that are no UTF-8 escaped."""
        path = sample.path.relative_to(self.root).as_posix()
        return path.encode("utf-8", "backslashreplace").decode("utf-8")

    def __iter__(self) -> Iterator[Sample]:
        for samples in self.splits.values():
            yield from samples

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))


def scan(folder: str | Path, *, training: bool = True) -> Dataset:
    """Find `DIR/<class>/**` or `DIR/{train,val|validation|valid,test}/<class>/**`.

    A folder named like a split counts as one only if it holds class folders, so that a class may
    be called "train". Hidden files and folders are passed over. No picture is opened.

    Raises UserError for a missing or empty folder, a file, no picture, classes in val or test
    that train lacks; with `training` also for what `check_trainable` refuses.
    """
    root = Path(folder)
    if not root.exists():
        raise UserError(f"{root} does not exist. Give a folder that holds one folder per class.")
    if not root.is_dir():
        raise UserError(f"{root} is a file. Give a folder that holds one folder per class.")
    folders = _folders(root)
    split_folders = _split_folders(root, folders)
    if split_folders:
        found = {split: _classes(path) for split, path in split_folders.items()}
    else:
        found = {"all": _classes(root)}
    if not any(found.values()):
        raise UserError(
            f"{root} holds no picture in a class folder. Put them into {root}/<class>/, one folder "
            f"per class; {len(IMAGE_SUFFIXES)} suffixes such as .jpg, .png and .webp are read."
        )
    names = sorted({name for classes in found.values() for name in classes})
    label = {name: index for index, name in enumerate(names)}
    splits = {
        split: tuple(Sample(path, label[name]) for name in classes for path in classes[name])
        for split, classes in found.items()
        if classes
    }
    ignored = sum(1 for _ in _files(root)) - sum(map(len, splits.values()))
    dataset = Dataset(root, tuple(names), splits, ignored)
    _check_known_classes(dataset)
    if training:
        check_trainable(dataset)
    return dataset


def check_trainable(dataset: Dataset) -> None:
    """Raise UserError unless there are two classes and two training pictures of each."""
    split = "all" if "all" in dataset.splits else "train"
    if split not in dataset.splits:
        raise UserError(
            f"{dataset.root} has {' and '.join(dataset.splits)} but no train folder with class "
            "folders. Add one, or name a folder that holds the classes themselves."
        )
    if len(dataset.classes) < 2:
        raise UserError(
            f"{dataset.root} holds one class only ({dataset.classes[0]}). "
            "A classifier needs at least two class folders with pictures."
        )
    counts = Counter(sample.label for sample in dataset.splits[split])
    few = [name for i, name in enumerate(dataset.classes) if counts[i] < 2]
    if few:
        least = min(counts[dataset.classes.index(name)] for name in few)
        raise UserError(
            f"{_listed('class', few)} in {dataset.root} {'have' if len(few) > 1 else 'has'} "
            f"{'fewer than two readable pictures' if len(few) > 1 or least == 0 else 'one picture'}"
            " to train on. Each class needs at least two: add some or remove the folder."
        )


def split(
    dataset: Dataset,
    *,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.1,
    groups: Iterable[Sequence[str]] = (),
) -> Dataset:
    """Make the splits that are missing: all three out of "all", or val out of train.

    A test split is never made where the folder came with splits of its own. `val` and `test` are
    shares of each class; a class with three pictures or more gets one in each. The files of a
    group (names as `Dataset.name` gives them, such as near duplicates) stay together, in train
    if their labels differ. The result depends on the seed and the names alone, not on their order,
    and a new file moves few others.

    Raises UserError for what `check_trainable` refuses and for shares that leave nothing to train.
    """
    if min(val, test) < 0 or val + test >= 1:
        raise UserError(f"The shares val {val} and test {test} must be 0 or more, below 1 in sum.")
    check_trainable(dataset)
    if "all" in dataset.splits:
        return _deal(dataset, "all", {"test": test, "val": val}, seed, groups)
    if "val" not in dataset.splits:
        return _deal(dataset, "train", {"val": val}, seed, groups)
    return dataset


def _deal(
    dataset: Dataset,
    source: str,
    shares: dict[str, float],
    seed: int,
    groups: Iterable[Sequence[str]],
) -> Dataset:
    """Deal the units of one split out, class by class, in the order of their seeded hashes.

    A unit with several labels trains: one of them is wrong, and no score should rest on it.
    """
    by_class: dict[int, list[list[Sample]]] = defaultdict(list)
    dealt: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for unit in _units(dataset, dataset.splits[source], groups):
        if len({sample.label for sample in unit}) == 1:
            by_class[unit[0].label].append(unit)
        else:
            dealt["train"].extend(unit)
    for units in by_class.values():
        units.sort(key=lambda unit: _hash(seed, dataset.name(unit[0])))
        size = sum(map(len, units))
        for served, (name, share) in enumerate(shares.items()):
            spare = len(units) - (len(shares) - served)  # one for each split still to be served
            taken, units = _take(units, max(1, round(size * share)) if share else 0, spare)
            dealt[name].extend(taken)
        dealt["train"].extend(sample for unit in units for sample in unit)
    splits = {name: _sorted(dataset, samples) for name, samples in dealt.items() if samples}
    kept = {name: samples for name, samples in dataset.splits.items() if name != source}
    return replace(dataset, splits=splits | kept)


def _take(
    units: list[list[Sample]], count: int, spare: int
) -> tuple[list[Sample], list[list[Sample]]]:
    """About `count` samples of at most `spare` units, and the units that are left.

    Units that are too large are passed over, unless all are; the smallest goes then.
    """
    if count == 0 or spare <= 0:
        return [], units
    chosen: list[int] = []
    room = count
    for index, unit in enumerate(units):
        if len(unit) <= room and len(chosen) < spare:
            chosen.append(index)
            room -= len(unit)
    chosen = chosen or [min(range(len(units)), key=lambda index: len(units[index]))]
    left = set(range(len(units))) - set(chosen)
    return [s for index in chosen for s in units[index]], [units[index] for index in sorted(left)]


def _units(
    dataset: Dataset, samples: Sequence[Sample], groups: Iterable[Sequence[str]]
) -> list[list[Sample]]:
    """Samples that must stay together; groups that share a file become one."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]
            name = above
        return name

    for group in groups:
        for name in group:
            parent[find(name)] = find(group[0])
    units: dict[str, list[Sample]] = defaultdict(list)
    for sample in _sorted(dataset, samples):
        units[find(dataset.name(sample))].append(sample)
    return list(units.values())


def _hash(seed: int, name: str) -> bytes:
    return blake2b(f"{seed}:{name}".encode()).digest()


def _sorted(dataset: Dataset, samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=dataset.name))


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        _refuse(error)


def _split_folders(root: Path, folders: list[Path]) -> dict[str, Path]:
    """The folders that are splits by name and content; none where the classes lie in `root`."""
    found: dict[str, Path] = {}
    for path in folders:
        split_name = _SPLITS.get(path.name.lower())
        if split_name and any(_has_picture(inner) for inner in _folders(path)):
            if split_name in found:
                raise UserError(
                    f"{root} has two folders for one split: {found[split_name].name} and "
                    f"{path.name}. Keep one of them."
                )
            found[split_name] = path
    others = [p.name for p in folders if p.name.lower() not in _SPLITS and _has_picture(p)]
    if found and others:
        raise UserError(
            f"{root} holds split folders ({', '.join(p.name for p in found.values())}) beside "
            f"{_listed('other folder', others)} with pictures. Move one or the other away."
        )
    order = ("train", "val", "test")
    return {name: found[name] for name in order if name in found}


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The class folders' pictures, sorted; folders without any are left out."""
    found = {path.name: sorted(_pictures(path), key=Path.as_posix) for path in _folders(folder)}
    return {name: pictures for name, pictures in found.items() if pictures}


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in _files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def _has_picture(folder: Path) -> bool:
    return any(True for _ in _pictures(folder))


def _files(folder: Path) -> Iterator[Path]:
    """Visible files at any depth below `folder`."""
    for parent, names, files in os.walk(folder, onerror=_refuse):
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _refuse(error: OSError) -> NoReturn:
    raise UserError(
        f"{error.filename} cannot be read: {error.strerror}. Mend its permissions or move it away."
    ) from error


def _check_known_classes(dataset: Dataset) -> None:
    if "train" not in dataset.splits:
        return
    known = {sample.label for sample in dataset.splits["train"]}
    for name in ("val", "test"):
        labels = {sample.label for sample in dataset.splits.get(name, ())}
        unknown = [dataset.classes[i] for i in sorted(labels - known)]
        if unknown:
            raise UserError(
                f"{_listed('class', unknown)} in the {name} folder of {dataset.root} "
                f"{'are' if len(unknown) > 1 else 'is'} not in its train folder. "
                "Add pictures there or remove the folder."
            )


def _listed(noun: str, names: Sequence[str]) -> str:
    """`class hat`, `classes hat and shoes`, `classes a, b, c and 4 more`."""
    if len(names) == 1:
        return f"{noun} {names[0]}"
    plural = noun + ("es" if noun.endswith("s") else "s")
    if len(names) <= 4:
        return f"{plural} {', '.join(names[:-1])} and {names[-1]}"
    return f"{plural} {', '.join(names[:3])} and {len(names) - 3} more"
