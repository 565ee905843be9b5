"""Tar shards: read at random through an index, and one sentence for what does not fit."""

import gzip
import json
import pickle
from pathlib import Path

import pytest

from file_server import served
from images import encoded, photo, write_tree
from mbconv.data import shards as shards_module
from mbconv.data.cache import cache_dir, clear
from mbconv.data.place import Part, read
from mbconv.data.shards import expand
from mbconv.data.source import scan, split
from mbconv.errors import UserError
from packed import contents, shard_files, write_folder, write_shards, write_tar

JPG = encoded(photo(1))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_folder_of_shards_is_the_folder_of_pictures(tmp_path: Path) -> None:
    found = scan(write_shards(tmp_path / "shards"))
    assert found.classes == ("hat", "shoe")
    assert contents(found) == contents(scan(write_folder(tmp_path / "folder")))
    assert len({found.name(sample) for sample in found}) == len(found) == 16
    assert found.root == tmp_path / "shards"


def test_patterns_single_shards_and_split_folders(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "shards")
    train = scan(f"{root}/train-{{000..001}}.tar")
    assert {part: len(s) for part, s in train.splits.items()} == {"train": 12}
    assert train.source == f"{root}/train-{{000..001}}.tar"
    assert len(scan(f"{root}/{{train-000,train-001,test-000}}.tar")) == 16
    assert len(scan(root / "train-000.tar")) == 6
    for name, files in shard_files().items():
        write_tar(tmp_path / "apart" / name.split("-")[0] / f"{name[-7:]}", files)
    assert contents(scan(tmp_path / "apart")) == contents(scan(root))
    names = {scan(tmp_path / "apart").name(s) for s in scan(tmp_path / "apart")}
    assert "train/000/00000.jpg" in names


def test_expand() -> None:
    assert expand("a.tar") == ["a.tar"]
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{a,b}/{0..1}.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    for bad in ("a-{}.tar", "a-{x..y}.tar", "a-{3..1}.tar"):
        with pytest.raises(UserError, match="neither a span"):
            expand(bad)


def test_numbers_take_the_names_beside_the_shards(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "shards", labels="cls")
    assert scan(root).classes == ("0", "1")
    (root / "classes.json").write_text('["hat", "shoe"]')
    assert scan(root).classes == ("hat", "shoe")
    assert contents(scan(root)) == contents(scan(write_folder(tmp_path / "folder")))
    (root / "classes.json").write_text('["hat"]')
    with pytest.raises(UserError, match=r"label 1 of .* is not among the 1 classes"):
        scan(root)
    for broken in ("{}", '["hat", "hat"]'):
        (root / "classes.json").write_text(broken)
        with pytest.raises(UserError, match="must be a list of the classes' names, each once"):
            scan(root)
    (root / "classes.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        scan(root)


def test_what_a_shard_may_hold_besides(tmp_path: Path) -> None:
    files = {
        "./a/x.JPG": JPG, "./a/x.cls": b"hat\n", "./a/x.seg.png": b"mask", "./a/x.txt": b"a hat",
        "./b.y.jpg": JPG, "./b.cls": b"hat",  # webdataset's key of the first is b, its kind y.jpg
        "c.png": JPG, "c.json": b'{"caption": "no label"}',
        "__meta__.json": b"[]", ".hidden.jpg": JPG,
        "d.jpg": JPG, "d.json": b'{"label": 3}', "d.cls": b"7",
        "e.jpg": JPG, "e.json": b"[1, 2]",
    }  # fmt: skip
    found = scan(write_tar(tmp_path / "s.tar", files), training=False)
    assert [(found.name(s), found.classes[s.label]) for s in found] == [
        ("s/d.jpg", "3"), ("s/a/x.JPG", "hat")]  # fmt: skip
    assert found.ignored == 2  # c and e


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": JPG, "a.png": JPG, "a.cls": b"0"}, "two pictures of one key, a.jpg and a.png"),
        ({"a.jpg": JPG, "b.jpg": JPG}, r"no picture with a label \(2 without\)"),
        ({"notes.txt": b"x"}, "no picture with a label"),
        ({"a.jpg": JPG, "a.json": b"{broken"}, "a.json in .* is broken"),
        ({"a.jpg": JPG, "a.cls": b"\xff"}, "a.cls in .* is broken"),
    ],
)
def test_bad_shards_get_one_sentence(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        scan(write_tar(tmp_path / "s.tar", files))
    assert "s.tar" in str(caught.value)
    assert str(caught.value).endswith(".")


def test_broken_and_missing_shards(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.jpg": JPG, "a.cls": b"0", "b.jpg": JPG})
    whole = path.read_bytes()
    for content in (whole[: len(JPG) // 2], b"no tar at all" * 100, gzip.compress(whole)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a tar shard"):
            scan(path)
    with pytest.raises(UserError, match=r"none.tar does not exist. Check"):
        scan(tmp_path / "none.tar")
    write_tar(tmp_path / "s-0.tar", {"a.jpg": JPG})
    with pytest.raises(UserError, match=r"s-1.tar does not exist, nor do 1 more of .*s-\{0..2\}"):
        scan(f"{tmp_path}/s-{{0..2}}.tar")
    with pytest.raises(UserError, match="is no tar shard"):
        scan("https://localhost/list.csv")


def test_shards_of_splits_beside_another(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "shards")
    write_tar(root / "more.tar", {"x.jpg": JPG, "x.cls": b"hat"})
    with pytest.raises(UserError, match=r"more.tar, whose name says no split"):
        scan(root)


def test_class_folders_win_over_a_tar_beside_them(tmp_path: Path) -> None:
    names = [f"{c}/{i}.jpg" for c in "ab" for i in range(2)]
    root = write_tree(tmp_path / "photos", dict.fromkeys(names, b""))
    write_tar(root / "photos.tar", {"x.jpg": JPG, "x.cls": b"hat"})
    assert scan(root).classes == ("a", "b")


def test_the_index_is_made_once_and_again_when_a_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_shards(tmp_path / "shards")
    opened: list[Path] = []
    entries = shards_module._entries
    monkeypatch.setattr(
        shards_module, "_entries", lambda shard: opened.append(shard) or entries(shard)
    )
    first = scan(root)
    assert len(opened) == 3
    assert contents(scan(root)) == contents(first)
    assert len(opened) == 3
    write_tar(root / "test-000.tar", shard_files()["train-000.tar"])
    changed = scan(root)
    assert [path.name for path in opened[3:]] == ["test-000.tar"]
    assert contents(changed)["test"] != contents(first)["test"]
    for kept in cache_dir().glob("shard-*.json"):
        kept.write_text("[[1")
    assert contents(scan(root)) == contents(changed)
    assert len(opened) == 7
    clear()
    assert not list(cache_dir().glob("shard-*"))
    monkeypatch.setenv("MBCONV_CACHE", str(root / "train-000.tar"))  # no folder: no cache
    assert contents(scan(root)) == contents(changed)


def test_splits_are_dealt_by_name(tmp_path: Path) -> None:
    files = {}
    for i in range(40):
        files |= {f"{i}.jpg": JPG, f"{i}.cls": b"%d" % (i % 2)}
    write_tar(tmp_path / "one/all.tar", files)
    again = dict(sorted(files.items(), reverse=True))
    write_tar(tmp_path / "two/all.tar", again)
    one, two = (split(scan(tmp_path / part), seed=1) for part in ("one", "two"))
    assert set(one.splits) == {"train", "val", "test"}
    for part, samples in one.splits.items():
        assert [one.name(s) for s in samples] == [two.name(s) for s in two.splits[part]]


def test_a_part_goes_to_other_processes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    part = Part(tmp_path / "file", 3, 4, "a/b")
    again = pickle.loads(pickle.dumps(part))
    assert again == part
    assert read(again) == b"3456"
    assert read(tmp_path / "file") == b"0123456789"
    with pytest.raises(OSError, match="ends before"):
        read(Part(tmp_path / "file", 8, 4, "a/b"))
    with pytest.raises(FileNotFoundError):
        read(Part(tmp_path / "gone", 0, 4, "a/b"))


def test_shards_behind_a_url_come_once(tmp_path: Path) -> None:
    shards = {
        f"/bucket/{name}": write_tar(tmp_path / name, files).read_bytes()
        for name, files in shard_files().items()
    }
    told: list[tuple[str, int, int]] = []
    with served(shards) as server:
        pattern = f"{server.url}/bucket/{{train-000,train-001,test-000}}.tar"
        found = scan(pattern, progress=lambda *step: told.append(step))
        assert len(server.log) == 3
        assert contents(scan(pattern)) == contents(found)
        assert len(server.log) == 3
    assert contents(scan(pattern)) == contents(found)  # nobody serves it any more
    assert contents(found) == contents(scan(write_folder(tmp_path / "folder")))
    assert found.source == pattern
    size = len(shards["/bucket/test-000.tar"])
    assert ("shard 3 of 3", size, size) in told
    assert told[-1] == ("shards indexed", 3, 3)
    clear()
    with pytest.raises(UserError, match=r"could not be downloaded .* Check the URL"):
        scan(pattern)


def test_json_label_may_be_named_otherwise(tmp_path: Path) -> None:
    files = {}
    for i, key in enumerate(("label", "class", "target", "class_name")):
        files |= {f"{i}.jpg": JPG, f"{i}.json": json.dumps({key: f"name {i}"}).encode()}
    assert len(scan(write_tar(tmp_path / "s.tar", files), training=False).classes) == 4
