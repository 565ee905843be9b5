"""A dataset: pictures with their classes and splits, wherever they lie."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from mbconv.data.place import Place, name_in
from mbconv.errors import UserError

_SUFFIXES = "jpg jpeg jpe jfif png gif webp bmp tif tiff ppm pgm pbm pnm jp2 avif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split(" "))
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What splits are called, in small letters."""

Notify = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Sample:
    path: Place
    label: int  # index into Dataset.classes


@dataclass(frozen=True)
class Dataset:
    """Pictures by split: "train", "val" and "test" as far as they exist, or "all" alone."""

    root: Path  # a folder; the names of files are relative to it
    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]  # each sorted by class and name
    ignored: int = 0  # other files: no picture by their suffix, or without a class
    given: str = ""  # what `scan` was given, where that is not the root

    @property
    def source(self) -> str:
        """What `scan` makes this dataset of."""
        return self.given or str(self.root)

    def name(self, sample: Sample) -> str:
        """The sample's path relative to the root, with `/`; bytes that are no UTF-8 escaped."""
        return name_in(sample.path, self.root)

    def __iter__(self) -> Iterator[Sample]:
        for samples in self.splits.values():
            yield from samples

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))


class Labelled(NamedTuple):
    """A picture as a source finds it: the class's name, and train, val, test or all."""

    place: Place
    label: str
    split: str = "all"


def assemble(
    root: Path,
    found: Iterable[Labelled],
    *,
    order: Sequence[str] | None = None,
    ignored: int = 0,
    given: str = "",
) -> Dataset:
    """The dataset of what a source has found.

    The classes are those that occur, as `order` has them; else sorted, numbers by their size.
    Raises UserError where two pictures have one name.
    """
    found = list(found)
    present = {item.label for item in found}
    if order is None:
        digits = all(label.isdecimal() for label in present)
        order = sorted(present, key=lambda label: (int(label) if digits else 0, label))
    classes = tuple(label for label in order if label in present)
    number = {label: index for index, label in enumerate(classes)}
    rows = sorted(
        (number[item.label], name_in(item.place, root), index) for index, item in enumerate(found)
    )
    splits: dict[str, list[Sample]] = {split: [] for split in ("train", "val", "test", "all")}
    seen: set[str] = set()
    for label, name, index in rows:
        if name in seen:
            raise UserError(f"{given or root} has the picture {name} twice; leave one out.")
        seen.add(name)
        splits[found[index].split].append(Sample(found[index].place, label))
    filled = {split: tuple(samples) for split, samples in splits.items() if samples}
    return Dataset(root, classes, filled, ignored, given)


def scan(data: str | Path, *, training: bool = True, progress: Notify | None = None) -> Dataset:
    """Find the pictures of `data`, their classes and their splits. No picture is opened.

    `data` is a folder of class folders or of splits (see `folder.scan_folder`), a list of files
    in CSV or Parquet (`table`), tar shards: one, a folder of them, `train-{000000..000009}.tar`,
    also behind a URL (`shards`); a dataset of Hugging Face's library, saved or `hf:NAME`
    (`huggingface`); a published set as its authors unpack it (`layouts`), or its name (`named`).
    What exists on disk wins over a name. `progress` hears of downloads and of indexes being made.

    Raises UserError for what fits none of these or holds no labelled picture, for classes in val
    or test that train lacks; with `training` also for what `check_trainable` refuses.
    """
    try:
        dataset = _read(data, progress)
    except OSError as error:
        raise UserError(
            f"{error.filename or data} cannot be read: {error.strerror or error}. Mend its "
            "permissions or move it away."
        ) from error
    _check_known_classes(dataset)
    if training:
        check_trainable(dataset)
    return dataset


def _read(data: str | Path, progress: Notify | None) -> Dataset:
    """Each source is imported where it is used: some need a library that is an extra."""
    text, path = str(data), Path(data)
    if path.is_dir():
        from mbconv.data import folder, huggingface, layouts, shards

        if huggingface.is_saved(path):
            return huggingface.scan_saved(path)
        if layouts.is_known(path):
            return layouts.scan_layout(path)
        if shards.in_folder(path) and not folder.has_classes(path):
            return shards.scan_shards(text, progress)
        return folder.scan_folder(path)
    if path.suffix.lower() == ".tar" or "://" in text:
        from mbconv.data import shards

        return shards.scan_shards(text, progress)
    if path.is_file():
        from mbconv.data import table

        return table.scan_table(path)
    if text.startswith("hf:"):
        from mbconv.data import huggingface

        return huggingface.scan_named(text)
    from mbconv.data import named

    return _read(named.find(text, progress=progress), progress)


def check_trainable(dataset: Dataset) -> None:
    """Raise UserError unless there are two classes and two training pictures of each."""
    split = "all" if "all" in dataset.splits else "train"
    if split not in dataset.splits:
        raise UserError(
            f"{dataset.source} has pictures for {' and '.join(dataset.splits)} but no train split. "
            "Add one, or name a folder that holds the classes themselves."
        )
    if len(dataset.classes) < 2:
        raise UserError(
            f"{dataset.source} holds one class only ({dataset.classes[0]}). "
            "A classifier needs at least two classes with pictures."
        )
    counts = Counter(sample.label for sample in dataset.splits[split])
    few = [name for i, name in enumerate(dataset.classes) if counts[i] < 2]
    if few:
        least = min(counts[dataset.classes.index(name)] for name in few)
        raise UserError(
            f"{listed('class', few)} in {dataset.source} {'have' if len(few) > 1 else 'has'} "
            f"{'fewer than two readable pictures' if len(few) > 1 or least == 0 else 'one picture'}"
            " to train on. Each class needs at least two: add some or leave the class out."
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


def _check_known_classes(dataset: Dataset) -> None:
    if "train" not in dataset.splits:
        return
    known = {sample.label for sample in dataset.splits["train"]}
    for name in ("val", "test"):
        labels = {sample.label for sample in dataset.splits.get(name, ())}
        unknown = [dataset.classes[i] for i in sorted(labels - known)]
        if unknown:
            raise UserError(
                f"{listed('class', unknown)} in the {name} split of {dataset.source} "
                f"{'are' if len(unknown) > 1 else 'is'} not in its train split. "
                "Add pictures there or leave the class out."
            )


def listed(noun: str, names: Sequence[str]) -> str:
    """`class hat`, `classes hat and shoes`, `classes a, b, c and 4 more`."""
    if len(names) == 1:
        return f"{noun} {names[0]}"
    plural = noun + ("es" if noun.endswith("s") else "s")
    if len(names) <= 4:
        return f"{plural} {', '.join(names[:-1])} and {names[-1]}"
    return f"{plural} {', '.join(names[:3])} and {len(names) - 3} more"
