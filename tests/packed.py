"""The same small dataset in all forms that `scan` reads."""

import csv
import io
import json
import tarfile
from pathlib import Path

from images import encoded, photo, write_tree
from mbconv.data.source import Dataset


def pictures(each: int = 6, classes: tuple[str, ...] = ("hat", "shoe")) -> dict[str, bytes]:
    """`each` pictures of two classes in train, and two of each in test."""
    files = {}
    for number, name in enumerate(classes):
        for i in range(each):
            files[f"train/{name}/{i}.jpg"] = encoded(photo(100 * number + i))
        for i in range(2):
            files[f"test/{name}/{i}.jpg"] = encoded(photo(1000 + 100 * number + i))
    return files


def write_folder(root: Path) -> Path:
    return write_tree(root, pictures())


def write_csv(root: Path, heading: tuple[str, ...] = ("path", "label", "split")) -> Path:
    write_folder(root / "files")
    with (root / "list.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        for name in pictures():
            split, label, _ = name.split("/")
            writer.writerow((f"files/{name}", label, split)[: len(heading)])
    return root / "list.csv"


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def shard_files(each: int = 6, labels: str = "json") -> dict[str, dict[str, bytes]]:
    """Shards by name and file: two of train, one of test, as webdataset's users write them."""
    shards: dict[str, dict[str, bytes]] = {}
    for number, (name, content) in enumerate(pictures(each).items()):
        split, label, _ = name.split("/")
        shard = f"{split}-{number % 2 if split == 'train' else 0:03d}.tar"
        beside = {f"{number:05d}.jpg": content}
        if labels == "json":
            beside[f"{number:05d}.json"] = json.dumps({"label": label, "id": number}).encode()
        else:
            beside[f"{number:05d}.cls"] = str(("hat", "shoe").index(label)).encode()
        shards.setdefault(shard, {}).update(beside)
    return shards


def write_shards(root: Path, each: int = 6, labels: str = "json") -> Path:
    for name, files in shard_files(each, labels).items():
        write_tar(root / name, files)
    return root


def contents(dataset: Dataset) -> dict[str, list[tuple[str, bytes]]]:
    """Class and bytes of each picture, by split, sorted: what must not depend on the form."""
    from mbconv.data.place import read

    return {
        split: sorted((dataset.classes[s.label], read(s.path)) for s in samples)
        for split, samples in dataset.splits.items()
    }
