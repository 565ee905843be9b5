"""Shards that we write: the same dataset when read again, readable by others, whole or not made."""

import gc
import json
import tarfile
from pathlib import Path

import pytest

from images import encoded, photo, write_tree
from mbconv.data.audit import audit
from mbconv.data.pack import pack
from mbconv.data.place import read
from mbconv.data.source import Dataset, scan, split
from mbconv.errors import UserError
from packed import pictures, write_csv, write_folder, write_shards


def everything(dataset: Dataset) -> dict[str, list[tuple[str, str, bytes]]]:
    """Name, class and bytes, split by split, in the dataset's order."""
    return {
        part: [(dataset.name(s), dataset.classes[s.label], read(s.path)) for s in samples]
        for part, samples in dataset.splits.items()
    }


def test_read_again_it_is_the_same_dataset(tmp_path: Path) -> None:
    files = pictures(classes=("hat", "hat-2"))
    files |= {f"train/hat/{name}": encoded(photo(500 + i), "PNG") for i, name in
              enumerate(("dots.in.name.png", "UPPER.PNG", "deep/er/a b.png", "é.png"))}  # fmt: skip
    files["train/hat/broken.jpg"] = b"no picture"
    source = scan(write_tree(tmp_path / "folder", files))
    shards = pack(source, tmp_path / "out", shard_size=20_000)
    assert len([path for path in shards if path.name.startswith("train-")]) > 1
    again = scan(tmp_path / "out")
    assert again.classes == source.classes == ("hat", "hat-2")
    assert everything(again) == everything(source)
    first, second = split(source, seed=3), split(again, seed=3)
    assert everything(first) == everything(second)
    one, two = audit(source).to_dict(), audit(again).to_dict()
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert one["unreadable"] == [
        {"path": "train/hat/broken.jpg", "reason": "not a picture in a known format"}
    ]


def test_any_source_can_be_packed_and_packed_again(tmp_path: Path) -> None:
    for number, source in enumerate((write_csv(tmp_path / "a"), write_shards(tmp_path / "b"))):
        dataset = scan(source)
        pack(dataset, tmp_path / f"once{number}")
        pack(scan(tmp_path / f"once{number}"), tmp_path / f"twice{number}")
        assert everything(scan(tmp_path / f"twice{number}")) == everything(dataset)
        for shard in (tmp_path / f"once{number}").iterdir():
            other = tmp_path / f"twice{number}" / shard.name
            assert shard.read_bytes() == other.read_bytes()


def test_without_splits(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {f"{c}/{i}.jpg": encoded(photo(i)) for c in "ab" for i in (1, 2)})
    assert [path.name for path in pack(scan(tmp_path / "in"), tmp_path / "out")] == [
        "all-000000.tar"
    ]
    assert everything(scan(tmp_path / "out")) == everything(scan(tmp_path / "in"))


def test_shards_keep_to_their_size_and_the_order_is_shuffled(tmp_path: Path) -> None:
    source = scan(write_folder(tmp_path / "in"))
    told: list[tuple[str, int, int]] = []
    shards = pack(source, tmp_path / "out", shard_size=50_000, progress=lambda *x: told.append(x))
    assert told == [("pictures packed", i, 16) for i in range(1, 17)]
    labels = []
    assert len([path for path in shards if path.name.startswith("train")]) > 1
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            assert shard.stat().st_size <= 50_000
            assert {member.mtime for member in members} == {0}
            for member in members:
                if member.name.endswith(".cls") and shard.name.startswith("train"):
                    stream = tar.extractfile(member)
                    assert stream
                    labels.append(int(stream.read()))
    assert sorted(labels) != labels  # a reader that streams must not see class after class
    assert json.loads((tmp_path / "out/classes.json").read_text()) == ["hat", "shoe"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves the shards open
def test_webdataset_reads_them(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    source = scan(write_folder(tmp_path / "in"))
    shards = pack(source, tmp_path / "out", shard_size=20_000)
    urls = [str(path) for path in shards if path.name.startswith("train")]
    streamed = wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil")
    rows = [(item["json"]["name"], item["cls"], item["jpg"].size) for item in streamed]
    gc.collect()
    expected = [(source.name(s), s.label, (120, 90)) for s in source.splits["train"]]
    assert sorted(rows) == sorted(expected)


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    source = scan(write_folder(tmp_path / "in"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    for taken in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(UserError, match="is not empty"):
            pack(source, taken)
    with pytest.raises(UserError, match="above zero"):
        pack(source, tmp_path / "out", shard_size=0)

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", progress=interrupt)
    (tmp_path / "in/test/hat/0.jpg").unlink()
    with pytest.raises(UserError, match=r"was not written: .*0\.jpg"):
        pack(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "in"]
    (tmp_path / "out").mkdir()
    pack(scan(tmp_path / "in"), tmp_path / "out")
    assert len(scan(tmp_path / "out")) == 15


def test_pictures_whose_names_have_no_suffix(tmp_path: Path) -> None:
    files = {"0.jpg": encoded(photo(1)), "0.json": b'{"label": "a", "name": "first"}',
             "1.png": encoded(photo(2), "PNG"), "1.json": b'{"label": "a", "name": "second"}',
             "2.jpg": b"nothing", "2.json": b'{"label": "a", "name": "third"}'}  # fmt: skip
    from packed import write_tar

    dataset = scan(write_tar(tmp_path / "s.tar", files), training=False)
    (shard,) = pack(dataset, tmp_path / "out")
    with tarfile.open(shard) as tar:
        suffixes = {Path(name).suffix for name in tar.getnames()}
    assert suffixes == {".jpeg", ".png", ".jpg", ".cls", ".json"}
    assert everything(scan(tmp_path / "out", training=False)) == everything(dataset)
