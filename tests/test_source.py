"""Folders as datasets: layouts, what bad folders get, and splits that can be made again."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import write_tree
from mbconv.data.source import Dataset, Sample, check_trainable, scan, split
from mbconv.errors import UserError


def tree(root: Path, *names: str) -> Path:
    """Empty files: `scan` opens none."""
    return write_tree(root, dict.fromkeys(names, b""))


def made(counts: list[int]) -> Dataset:
    """A dataset of class sizes, without any files."""
    root = Path("photos")
    classes = tuple(f"class{i:02}" for i in range(len(counts)))
    samples = tuple(
        Sample(root / name / f"{n}.jpg", label)
        for label, (name, count) in enumerate(zip(classes, counts, strict=True))
        for n in range(count)
    )
    return Dataset(root, classes, {"all": samples})


def names(dataset: Dataset) -> dict[str, list[str]]:
    return {part: [dataset.name(s) for s in found] for part, found in dataset.splits.items()}


def test_class_folders(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, "hat/b.JPG", "hat/deep/er/a.png", "shoe/x.webp", "shoe/y.jpeg"))
    assert found.classes == ("hat", "shoe")
    assert names(found) == {"all": ["hat/b.JPG", "hat/deep/er/a.png", "shoe/x.webp", "shoe/y.jpeg"]}
    assert [s.label for s in found.splits["all"]] == [0, 0, 1, 1]
    assert len(found) == len(list(found)) == 4


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_split_folders(tmp_path: Path, val: str) -> None:
    parts = ("train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "train/b/2.jpg")
    found = scan(tree(tmp_path, *parts, f"{val}/b/3.jpg", "test/a/4.jpg"))
    assert list(found.splits) == ["train", "val", "test"]
    assert names(found)["val"] == [f"{val}/b/3.jpg"]
    assert found.splits["val"][0].label == 1


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, "train/1.jpg", "train/2.jpg", "test/1.jpg", "test/2.jpg"))
    assert found.classes == ("test", "train")
    assert list(found.splits) == ["all"]


def test_an_unlabelled_test_folder_is_no_split(tmp_path: Path) -> None:
    parts = ("train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "train/b/2.jpg", "test/9.jpg")
    found = scan(tree(tmp_path, *parts))
    assert list(found.splits) == ["train"]
    assert found.ignored == 1


def test_hidden_and_other_files_are_no_pictures(tmp_path: Path) -> None:
    parts = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")
    more = (".git/x.jpg", "a/.thumb.jpg", "a/.hidden/x.jpg", "a/note.txt", "README.md", "loose.jpg")
    found = scan(tree(tmp_path, *parts, *more))
    assert names(found) == {"all": list(parts)}
    assert found.ignored == 3


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    tree(tmp_path / "elsewhere", "1.jpg", "2.jpg")
    root = tree(tmp_path / "photos", "a/1.jpg", "a/2.jpg")
    (root / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "b" / "loop").symlink_to(root, target_is_directory=True)
    assert names(scan(root))["all"] == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]


def test_names_that_are_no_utf8_can_be_written_down(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg")
    odd = os.fsencode(root) + b"/a/\xff.jpg"
    Path(os.fsdecode(odd)).touch()
    found = scan(root)
    written = [found.name(sample).encode() for sample in found]
    assert rb"a/\udcff.jpg" in written
    assert found.splits["all"][1].path.exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "holds no picture"),
        (("loose.jpg",), "holds no picture"),
        (("a/x.txt", "b/y.txt"), "holds no picture"),
        (("a/1.jpg", "a/2.jpg"), r"one class only \(a\)"),
        (("a/1.jpg", "a/2.jpg", "b/1.jpg"), "class b in .* has one picture"),
        (("train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "train/b/2.jpg", "test/c/1.jpg",
          "test/d/1.jpg"), "classes c and d in the test split .* are not in its train"),
        (("train/a/1.jpg", "car/1.jpg", "boat/2.jpg"), "split folders .* boat and car"),
        (("train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"), "two folders for one split"),
        (("val/a/1.jpg", "test/b/1.jpg"), "no train split"),
    ],
)  # fmt: skip
def test_bad_folders_get_one_sentence(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        scan(tree(tmp_path, *files))
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).endswith(".")


def test_missing_folder_file_and_locked_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        scan(tmp_path / "absent")
    with pytest.raises(UserError, match="is a file"):
        scan(tree(tmp_path, "a.jpg") / "a.jpg")

    def locked(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    root = tree(tmp_path, "a/1.jpg", "b/1.jpg")
    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match=r"a cannot be read: Permission denied"):
        scan(root)


def test_evaluation_takes_what_training_does_not(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, "hat/1.jpg"), training=False)
    assert found.classes == ("hat",)
    with pytest.raises(UserError, match="one class only"):
        check_trainable(found)


@settings(max_examples=60)
@given(st.lists(st.integers(2, 60), min_size=2, max_size=5), st.integers(0, 99))
def test_every_class_is_dealt_to_every_split(counts: list[int], seed: int) -> None:
    dataset = made(counts)
    dealt = split(dataset, seed=seed)
    assert sorted(map(str, dataset)) == sorted(map(str, dealt))  # nothing lost, nothing twice
    tally = {part: Counter(s.label for s in found) for part, found in dealt.splits.items()}
    for label, count in enumerate(counts):
        assert tally["train"][label] >= 1
        assert tally["val"][label] == max(1, round(count / 10))
        if count >= 3:
            assert tally["test"][label] == max(1, round(count / 10))


def test_split_depends_on_names_and_seed_alone() -> None:
    dataset = made([40, 50])
    turned = Dataset(Path("elsewhere"), dataset.classes, {"all": tuple(
        Sample(Path("elsewhere") / s.path.relative_to("photos"), s.label)
        for s in reversed(dataset.splits["all"]))})  # fmt: skip
    assert names(split(dataset)) == names(split(turned))
    assert names(split(dataset)) != names(split(dataset, seed=1))
    assert names(split(dataset))["val"] == [  # written down: a change would tear users' splits
        "class00/0.jpg", "class00/10.jpg", "class00/12.jpg", "class00/15.jpg", "class01/11.jpg",
        "class01/16.jpg", "class01/31.jpg", "class01/34.jpg", "class01/7.jpg",
    ]  # fmt: skip


def test_a_new_file_moves_few_others() -> None:
    before, after = split(made([200, 200])), split(made([203, 200]))
    moved = [n for part in ("train", "val", "test")
             for n in set(names(before)[part]) - set(names(after)[part])]  # fmt: skip
    assert len(moved) <= 6


@settings(max_examples=60)
@given(st.data())
def test_groups_stay_together(data: st.DataObject) -> None:
    dataset = made([20, 30, 5])
    every = [dataset.name(sample) for sample in dataset]
    groups = data.draw(
        st.lists(st.lists(st.sampled_from(every), min_size=2, max_size=6), max_size=8)
    )
    dealt = split(dataset, groups=groups)
    home = {name: part for part, found in names(dealt).items() for name in found}
    assert len(home) == len(every)
    for group in groups:
        assert len({home[name] for name in group}) == 1
    assert {s.label for s in dealt.splits["train"]} == {0, 1, 2}


def test_one_group_holding_a_class_goes_to_train() -> None:
    dataset = made([4, 30])
    dealt = split(dataset, groups=[[f"class00/{i}.jpg" for i in range(4)]])
    assert {s.label for s in dealt.splits["val"]} == {1}
    assert sum(s.label == 0 for s in dealt.splits["train"]) == 4


def test_contradicting_labels_go_to_train() -> None:
    groups = [[f"class00/{i}.jpg", f"class01/{i}.jpg"] for i in range(15)]
    dealt = split(made([20, 20]), groups=groups)
    assert {name for group in groups for name in group} <= set(names(dealt)["train"])
    assert {s.label for s in dealt.splits["val"]} == {0, 1}


def test_large_shares_leave_a_picture_for_each_split() -> None:
    dealt = split(made([3, 4]), val=0.45, test=0.5)
    for found in dealt.splits.values():
        assert {s.label for s in found} == {0, 1}


def test_large_classes_are_dealt_quickly() -> None:
    start = time.process_time()
    split(made([20_000, 20_000]))
    assert time.process_time() - start < 10


def test_only_missing_splits_are_made(tmp_path: Path) -> None:
    parts = [f"train/{c}/{i}.jpg" for c in "ab" for i in range(20)]
    root = tree(tmp_path, *parts, "test/a/x.jpg")
    dealt = split(scan(root))
    assert {part: len(found) for part, found in dealt.splits.items()} == {
        "train": 36, "val": 4, "test": 1}  # fmt: skip
    tree(root, "val/a/y.jpg")
    given_splits = scan(root)
    assert split(given_splits) is given_splits
    (root / "test/a/x.jpg").unlink()
    (root / "val/a/y.jpg").unlink()
    assert "test" not in split(scan(root)).splits


def test_shares() -> None:
    dealt = split(made([100, 100]), val=0.2, test=0)
    assert {part: len(found) for part, found in dealt.splits.items()} == {"train": 160, "val": 40}
    for shares in ({"val": -0.1}, {"val": 0.5, "test": 0.5}):
        with pytest.raises(UserError, match="shares"):
            split(made([9, 9]), **shares)


@pytest.mark.data
def test_real_folders(data_root: Path) -> None:
    clothing = scan(data_root / "clothing")
    assert {k: len(v) for k, v in clothing.splits.items()} == {
        "train": 3068, "val": 341, "test": 372}  # fmt: skip
    assert len(clothing.classes) == 10
    woof = split(scan(data_root / "imagewoof2-160"))
    assert {k: len(v) for k, v in woof.splits.items()} == {"train": 9025, "val": 3929}
