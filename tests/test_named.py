"""Published sets: tiny archives of the same layout, served on loopback, found again, refused."""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from file_server import Files, served
from images import encoded, photo, write_tree
from mbconv.data import named
from mbconv.data.cache import cache_dir
from mbconv.data.decode import decode
from mbconv.data.layouts import _unpickled
from mbconv.data.place import read
from mbconv.data.source import scan
from mbconv.errors import UserError

JPG = encoded(photo(1))
CIFAR = ("airplane", "automobile", "bird")


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def matlab(**values: Any) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, values)
    return buffer.getvalue()


def imagenette(folder: str) -> dict[str, bytes]:
    names = [f"{s}/{c}/{i}.JPEG" for s in ("train", "val") for c in ("n01", "n02") for i in (1, 2)]
    return {f"{folder}/{name}": JPG for name in names}


def cifar() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {"batches.meta": pickle.dumps({"label_names": list(CIFAR)}, protocol=4)}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        batch = {"data": rng.integers(0, 256, (6, 3072), dtype=np.uint8), "labels": [0, 1, 2] * 2}
        files[name] = pickle.dumps(batch, protocol=4)
    return {f"cifar-10-batches-py/{name}": content for name, content in files.items()}


def flowers() -> dict[str, bytes]:
    """Twelve pictures of two kinds, two of each in each split."""
    return {
        "102flowers.tgz": archive({f"jpg/image_{i:05d}.jpg": JPG for i in range(1, 13)}),
        "imagelabels.mat": matlab(labels=np.array([[1, 1, 2, 2] * 3])),
        "setid.mat": matlab(trnid=np.arange(1, 5), valid=np.arange(5, 9), tstid=np.arange(9, 13)),
    }


def pets() -> dict[str, bytes]:
    names = [f"{kind}_{i}" for kind in ("Abyssinian", "great_pyrenees") for i in range(3)]
    lines = {name: f"{name} 1 1 1\n" for name in names}
    listed = {
        "trainval.txt": "#Image CLASS-ID\n" + "".join(lines[n] for n in names if n[-1] != "2"),
        "test.txt": "".join(lines[n] for n in names if n[-1] == "2"),
    }
    return {
        "images.tar.gz": archive({f"images/{name}.jpg": JPG for name in names}),
        "annotations.tar.gz": archive(
            {f"annotations/{name}": text.encode() for name, text in listed.items()}
        ),
    }


def cars() -> dict[str, bytes]:
    kinds = np.array(["AM General Hummer", "Acura RL"], dtype=object)
    kind = [("fname", object), ("class", object)]

    def rows(count: int) -> Any:
        return np.array([(f"{i}.jpg", 1 + i % 2) for i in range(count)], dtype=kind)

    return {
        "devkit/cars_meta.mat": matlab(class_names=kinds),
        "devkit/cars_train_annos.mat": matlab(annotations=rows(4)),
        "cars_test_annos_withlabels.mat": matlab(annotations=rows(2)),
        **{f"cars_train/{i}.jpg": JPG for i in range(4)},
        **{f"cars_test/{i}.jpg": JPG for i in range(2)},
    }


def served_files() -> dict[str, bytes]:
    return {
        "imagenette2-160.tgz": archive(imagenette("imagenette2-160")),
        "imagewoof2-160.tgz": archive(imagenette("imagewoof2-160")),
        "cifar-10-python.tar.gz": archive(cifar()),
        **flowers(),
        **pets(),
    }


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """The table points at loopback, with the checksums of what is served there."""
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    files = served_files()
    with served({f"/{name}": content for name, content in files.items()}) as state:
        table = {}
        for name, published in named.SETS.items():
            archives = tuple(
                (f"{state.url}/{file}", md5 and hashlib.md5(files[file]).hexdigest())
                for url, md5 in published.files
                if (file := url.rpartition("/")[2]) in files
            )
            table[name] = replace(published, files=archives)
        monkeypatch.setattr(named, "SETS", table)
        yield state


@pytest.mark.parametrize(
    ("name", "classes", "splits"),
    [
        ("imagenette", ("n01", "n02"), {"train": 4, "val": 4}),
        ("imagewoof", ("n01", "n02"), {"train": 4, "val": 4}),
        ("cifar10", CIFAR, {"train": 12, "test": 6}),
        ("flowers102", ("hard-leaved pocket orchid", "pink primrose"),
         {"train": 4, "val": 4, "test": 4}),
        ("pets", ("Abyssinian", "Great Pyrenees"), {"train": 4, "test": 2}),
    ],
)  # fmt: skip
def test_a_name_is_downloaded_once(
    server: Files, name: str, classes: tuple[str, ...], splits: dict[str, int]
) -> None:
    pytest.importorskip("scipy")
    found = scan(name)
    assert found.classes == classes
    assert {split: len(samples) for split, samples in found.splits.items()} == splits
    assert all(decode(sample.path).size in ((120, 90), (32, 32)) for sample in found)
    requests = len(server.log)
    again = scan(name)
    assert len(server.log) == requests
    assert [again.name(s) for s in again] == [found.name(s) for s in found]
    assert [again.name(s) for s in scan(found.source)] == [found.name(s) for s in found]
    folder = cache_dir() / "sets"
    assert found.root.parent == folder
    assert [p.name for p in folder.iterdir() if not p.name.startswith(".")] == [found.root.name]
    assert not [p for p in folder.iterdir() if p.suffix in (".tgz", ".gz", ".part")]


def test_data_root_and_what_exists_win(
    server: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    write_tree(root, imagenette("imagenette2-160"))
    assert named.find("imagenette", root) == root / "imagenette2-160"
    assert named.find("pets", root) == root / "oxford-iiit-pet"  # brought there
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "cifar10", {f"{c}/{i}.jpg": JPG for c in "ab" for i in range(2)})
    assert scan("cifar10").classes == ("a", "b")
    assert not any("cifar" in line for line in server.log)


def test_cars_from_a_copy_alone(server: Files, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    with pytest.raises(UserError, match=r"no longer served.*--data-root"):
        scan("cars")
    write_tree(tmp_path / "data" / "stanford_cars", cars())
    found = scan(named.find("cars", tmp_path / "data"))
    assert found.classes == ("AM General Hummer", "Acura RL")
    assert [found.name(s) for s in found.splits["test"]] == ["cars_test/0.jpg", "cars_test/1.jpg"]
    assert all(read(sample.path) == JPG for sample in found)


def test_a_broken_download_is_gone_on_with(server: Files) -> None:
    server.cut = 3
    with pytest.raises(UserError, match="again to go on"):
        scan("imagenette")
    assert not (cache_dir() / "sets" / "imagenette2-160").exists()
    scan("imagenette")
    assert "bytes=" in server.log[-1]


def test_a_wrong_checksum_leaves_nothing_unpacked(server: Files) -> None:
    server.files["/imagenette2-160.tgz"] += b"x"
    with pytest.raises(UserError, match="is not what its publisher describes"):
        scan("imagenette")
    assert not [p for p in (cache_dir() / "sets").iterdir() if p.suffix != ".lock"]


def test_archives_that_are_none_or_reach_outside(server: Files, tmp_path: Path) -> None:
    outside = archive({"imagewoof2-160/train/a/1.jpg": JPG, "../../evil.jpg": JPG})
    for content in (b"no archive", outside, archive({"another/folder/1.jpg": JPG})):
        server.files["/imagewoof2-160.tgz"] = content
        with pytest.raises(UserError, match="cannot be unpacked"):
            scan("imagewoof")
        assert not (cache_dir() / "sets" / "imagewoof2-160").exists()
    assert not list(tmp_path.rglob("evil.jpg"))


def test_no_name_gets_the_list(server: Files) -> None:
    with pytest.raises(UserError, match=r"^imagenet does not exist.*imagewoof.*cars"):
        scan("imagenet")


def test_cifar_pixels_and_order(server: Files) -> None:
    found = scan("cifar10")
    batch = _unpickled(found.root / "test_batch")
    (sample, *_) = (s for s in found.splits["test"] if found.name(s).endswith("00004"))
    assert found.classes[sample.label] == "automobile"
    pixels = np.asarray(decode(sample.path))
    np.testing.assert_array_equal(pixels, batch["data"][4].reshape(3, 32, 32).transpose(1, 2, 0))
    again = pickle.loads(pickle.dumps(sample))
    assert read(again.path) == read(sample.path)


def test_a_pickle_runs_nothing(server: Files, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "evil",)

    folder = tmp_path / "cifar-10-batches-py"
    write_tree(tmp_path, cifar())
    for content in (pickle.dumps(Evil()), pickle.dumps([1]), b"", b"\x80\x04no"):
        (folder / "data_batch_2").write_bytes(content)
        with pytest.raises(UserError, match="is not complete"):
            scan(folder)
    assert not (tmp_path / "evil").exists()


def test_damaged_lists_of_a_set(server: Files, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    root = write_tree(tmp_path / "flowers", {"setid.mat": b"no matlab", "imagelabels.mat": b""})
    with pytest.raises(UserError, match="is not complete"):
        scan(root)
    (root / "imagelabels.mat").unlink()
    with pytest.raises(UserError, match="is not complete"):
        scan(root)
