"""Tar shards in webdataset's layout: `KEY.jpg` beside `KEY.cls`, or `KEY.json` with a label.

The headers of a shard are read once and kept in the cache folder as an index of byte offsets.
With it, pictures are read at random like files: audit, split and exact resuming work as with a
folder. Shards behind a URL are downloaded whole, once; that is simpler than streaming them and
keeps all this.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from mbconv.data.cache import cache_dir
from mbconv.data.place import Part
from mbconv.data.source import IMAGE_SUFFIXES, SPLITS, Dataset, Labelled, Notify, assemble
from mbconv.errors import UserError
from mbconv.files import write_text

CLASSES = "classes.json"  # beside the shards: the names of the classes, in the order of `.cls`
_VERSION = 1  # of the index
_LABELS = ("label", "class", "cls", "target", "class_name")  # in KEY.json
_SIDECAR = 1_000_000  # bytes; a larger `.json` holds something else


class Entry(NamedTuple):
    """A picture of a shard: its file's name, offset and size in bytes, and what stands beside it.

    `label` is a number or a name, None where there is none; `name` is what KEY.json calls it.
    """

    member: str
    offset: int
    size: int
    label: int | str | None
    name: str | None


def scan_shards(text: str, progress: Notify | None = None) -> Dataset:
    """The pictures of a shard, a folder of shards, or a pattern such as `a/train-{000..009}.tar`.

    Splits are taken from the words in the shards' names (`train-000000.tar`), else from the
    folders they lie in. Raises UserError for shards that are missing, cut off, compressed or
    without labels, and where shards behind a URL cannot be had.
    """
    shards = _local(text, progress)
    is_folder = Path(text).is_dir()
    root = Path(text if is_folder else os.path.commonpath([shard.parent for shard in shards]))
    names = _class_names(root)
    splits = _splits(text, root, shards)
    rows: list[tuple[Path, Entry]] = []
    ignored = 0
    for number, shard in enumerate(shards, start=1):
        entries = index(shard)
        labelled = [entry for entry in entries if entry.label is not None]
        ignored += len(entries) - len(labelled)
        rows += ((shard, entry) for entry in labelled)
        if progress is not None:
            progress("shards indexed", number, len(shards))
    if not rows:
        raise UserError(
            f"{text} holds no picture with a label ({ignored:,} without). Put KEY.cls or KEY.json "
            'with {"label": ...} beside each KEY.jpg; `mbconv data pack` writes such shards.'
        )
    own = {entry.name for _, entry in rows}
    by_name = None not in own and len(own) == len(rows)
    found = []
    folders = {shard: shard.relative_to(root).with_suffix("").as_posix() for shard in shards}
    for shard, entry in rows:
        name = entry.name if by_name and entry.name else f"{folders[shard]}/{entry.member}"
        part = Part(shard, entry.offset, entry.size, name)
        found.append(Labelled(part, _label(text, entry, names), splits[shard]))
    return assemble(root, found, order=names, ignored=ignored, given="" if is_folder else text)


def in_folder(folder: Path) -> list[Path]:
    """The shards in a folder, or in its split folders where it holds none itself."""
    found = sorted(folder.glob("*.tar"))
    if not found:
        found = [p for p in sorted(folder.glob("*/*.tar")) if p.parent.name.lower() in SPLITS]
    return [path for path in found if not path.name.startswith(".")]


def expand(pattern: str) -> list[str]:
    """`a-{00..02}.tar` -> a-00.tar, a-01.tar, a-02.tar; `{train,val}.tar` -> train.tar, val.tar.

    Raises UserError for braces that hold neither.
    """
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if span:
        numbers = range(int(span[1]), int(span[2]) + 1)
        parts = [f"{number:0{len(span[1])}d}" for number in numbers]
    else:
        parts = braces[1].split(",") if "," in braces[1] else []
    if not parts:
        raise UserError(
            f"{pattern}: {braces[0]} is neither a span such as {{000..009}} nor a list such as "
            "{train,val}. Write one of them."
        )
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [whole for part in parts for whole in expand(before + part + after)]


def index(shard: Path) -> list[Entry]:
    """The pictures of a shard; from the cache if path, size and time of change are the same."""
    status = shard.stat()
    identity = f"{shard.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    key = blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    kept = cache_dir() / f"shard-{_VERSION}-{key}.json"
    with suppress(OSError, ValueError, TypeError):
        return [Entry(*row) for row in json.loads(kept.read_text(encoding="utf-8"))]
    try:
        entries = list(_entries(shard))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{shard} cannot be read as a tar shard ({error}). If it is compressed, unpack it "
            "with gunzip; if it is cut off, copy it again."
        ) from error
    with suppress(UserError):  # a cache that cannot be written costs time and nothing else
        write_text(kept, json.dumps(entries))
    return entries


def _entries(shard: Path) -> Iterator[Entry]:
    """Read a shard's headers, and the labels beside the pictures."""
    pictures: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int | str] = {}
    names: dict[str, str] = {}
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            folder, _, base = path.rpartition("/")
            stem, _, kind = base.partition(".")
            kind = kind.lower()
            if not member.isreg() or not stem or stem.startswith("__"):
                continue
            key = f"{folder}/{stem}"
            if f".{kind}" in IMAGE_SUFFIXES:
                if key in pictures:
                    raise UserError(
                        f"{shard} holds two pictures of one key, {pictures[key][0]} and {path}. "
                        "Leave one out, or name it KEY.something.png."
                    )
                pictures[key] = (path, member.offset_data, member.size)
            elif kind in ("cls", "json") and member.size <= _SIDECAR:
                stream = tar.extractfile(member)
                content = stream.read() if stream else b""
                label, name = _parsed(shard, path, kind, content)
                if label is not None and (kind == "json" or key not in labels):
                    labels[key] = label  # a name in KEY.json says more than a number
                if name is not None:
                    names[key] = name
    for key, (path, offset, size) in pictures.items():
        yield Entry(path, offset, size, labels.get(key), names.get(key))


def _parsed(shard: Path, path: str, kind: str, data: bytes) -> tuple[int | str | None, str | None]:
    """Label and name in a `.cls` or `.json`."""
    try:
        text = data.decode("utf-8").strip()
        if kind == "cls":
            return (int(text) if text.isdecimal() else text or None), None
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} in {shard} is broken: {error}. Make the shard anew.") from error
    if not isinstance(value, dict):
        return None, None
    named = (value[key] for key in _LABELS if isinstance(value.get(key), int | str))
    name = value.get("name")
    return next(named, None), name if isinstance(name, str) else None


def _label(text: str, entry: Entry, names: Sequence[str] | None) -> str:
    """The name of the entry's class; its number where nothing names it."""
    if names is None:
        return str(entry.label)
    if isinstance(entry.label, int) and 0 <= entry.label < len(names):
        return names[entry.label]
    if entry.label in names:
        return str(entry.label)
    raise UserError(
        f"{text}: the label {entry.label!r} of {entry.member} is not among the {len(names)} "
        f"classes of {CLASSES}. Mend that file, or take it away."
    )


def _class_names(root: Path) -> list[str] | None:
    path = root / CLASSES
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}. Mend or remove it.") from error
    if not isinstance(names, list) or len({str(name) for name in names}) < len(names):
        raise UserError(f"{path} must be a list of the classes' names, each once. Mend it.")
    return [str(name) for name in names]


def _splits(text: str, root: Path, shards: Sequence[Path]) -> dict[Path, str]:
    """The split of each shard; "all" where no name says one."""
    found = {shard: _split(shard, root) for shard in shards}
    if not any(found.values()):
        return dict.fromkeys(shards, "all")
    unknown = [shard.name for shard, split in found.items() if split is None]
    if unknown:
        raise UserError(
            f"{text} holds shards of splits and {unknown[0]}, whose name says no split. Call it "
            "train-..., val-... or test-..., or take it away."
        )
    return {shard: split for shard, split in found.items() if split is not None}


def _split(shard: Path, root: Path) -> str | None:
    words = re.split(r"[^a-z]+", shard.stem.lower())
    if shard.parent != root:
        words.append(shard.parent.name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _local(text: str, progress: Notify | None) -> list[Path]:
    """The shards as files on this machine."""
    if "://" in text:
        from mbconv.data.download import cached

        urls = expand(text)
        if not all(url.endswith(".tar") for url in urls):
            raise UserError(
                f"{text} is no tar shard. Behind a URL only shards are read: give one, or a "
                "pattern such as https://host/train-{000000..000009}.tar."
            )
        return [cached(url, progress, f"shard {i} of {len(urls)}") for i, url in enumerate(urls, 1)]
    if Path(text).is_dir():
        return in_folder(Path(text))
    paths = [Path(text)] if Path(text).exists() else [Path(name) for name in expand(text)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{missing[0]} does not exist"
            + (f", nor do {len(missing) - 1} more of {text}" if len(missing) > 1 else "")
            + ". Check the path, or the span in the braces."
        )
    return paths
