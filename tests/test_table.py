"""Lists of files: columns by any usual name, and one sentence for a list that does not fit."""

from pathlib import Path

import pytest

from images import write_tree
from mbconv.data.source import scan
from mbconv.errors import UserError
from packed import contents, write_csv, write_folder


def listed(root: Path, text: str, name: str = "list.csv") -> Path:
    write_tree(root, dict.fromkeys(("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"), b"x"))
    (root / name).write_text(text, encoding="utf-8")
    return root / name


FOUR = ("a.jpg,hat", "b.jpg,hat", "c.jpg,shoe", "sub/d.jpg,shoe")


@pytest.mark.parametrize(
    "heading", ["path,label", "filename,class", "Image, Target ", "file,label", "\ufefffile,label"]
)
def test_columns_by_their_usual_names(tmp_path: Path, heading: str) -> None:
    found = scan(listed(tmp_path, "\n".join((heading, *FOUR))))
    assert found.classes == ("hat", "shoe")
    assert [(found.name(s), s.label) for s in found.splits["all"]] == [
        ("a.jpg", 0), ("b.jpg", 0), ("c.jpg", 1), ("sub/d.jpg", 1)]  # fmt: skip
    assert found.root == tmp_path
    assert found.source == str(tmp_path / "list.csv")


def test_other_separators_quotes_and_columns(tmp_path: Path) -> None:
    text = 'id;label;path;note\n1;"hat; red";a.jpg;\n2;hat;b.jpg;x\n\n3;hat;c.jpg;"two\nlines"\n'
    found = scan(listed(tmp_path, text), training=False)
    assert [(found.name(s), found.classes[s.label]) for s in found] == [
        ("b.jpg", "hat"), ("c.jpg", "hat"), ("a.jpg", "hat; red")]  # fmt: skip
    tabs = "\n".join(("path\tlabel", *FOUR)).replace(",", "\t")
    assert len(scan(listed(tmp_path, tabs, "list.tsv"))) == 4


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    text = "path,label\na.jpg,10\nb.jpg,9\nc.jpg,2\nsub/d.jpg,9\n"
    found = scan(listed(tmp_path, text), training=False)
    assert found.classes == ("2", "9", "10")


def test_splits(tmp_path: Path) -> None:
    found = scan(write_csv(tmp_path / "csv"))
    assert {split: len(s) for split, s in found.splits.items()} == {"train": 12, "test": 4}
    assert contents(found) == contents(scan(write_folder(tmp_path / "folder")))


def test_files_anywhere(tmp_path: Path) -> None:
    write_tree(tmp_path / "other", {"x.jpg": b"x", "y.jpg": b"y"})
    absolute = (tmp_path / "other/x.jpg").as_posix()
    path = listed(tmp_path / "lists", f"path,label\n{absolute},hat\n../other/y.jpg,hat\na.jpg,hat")
    found = scan(path, training=False)
    assert sorted(found.name(s) for s in found) == sorted([absolute, "../other/y.jpg", "a.jpg"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column for the path; it has: none"),
        ("picture,label\na.jpg,hat", "no column for the path; it has: picture, label.*filename"),
        ("path,colour\na.jpg,hat", "no column for the label; it has: path, colour"),
        ("path,label", "a heading and no rows"),
        ("path,label\na.jpg,", "row 2: the label is empty"),
        ("path,label\n,hat", "row 2: the path is empty"),
        ("path,label\na.jpg,hat\nb.jpg", "row 3: 1 columns are too few"),
        ("path,label,split\na.jpg,hat,trian", "row 2: 'trian' is no split"),
        ("path,label\nno.jpg,hat\nnone.jpg,hat", "None of the 2 files .* exists.*no.jpg"),
        ("path,label\na.jpg,hat\na.jpg,shoe", "has the picture a.jpg twice"),
        ("path,label,split\na.jpg,hat,train\nb.jpg,shoe,test", "class shoe in the test split"),
        ("path,label,split\na.jpg,hat,val", "no train split"),
    ],
)
def test_bad_lists_get_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = listed(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        scan(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "shards.tar.gz").touch()
    with pytest.raises(UserError, match=r"is a file that lists no pictures.*not compressed"):
        scan(tmp_path / "shards.tar.gz")
    (tmp_path / "latin.csv").write_bytes(b"path,label\nna\xefve.jpg,hat")
    with pytest.raises(UserError, match="cannot be read as a CSV file in UTF-8"):
        scan(tmp_path / "latin.csv")


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def table(name: str, **columns: list[object]) -> Path:
        listed(tmp_path, "")
        parquet.write_table(arrow.table(columns), tmp_path / name)
        return tmp_path / name

    files = ["a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"]
    found = scan(table("a.parquet", image=files, extra=[1, 2, 3, 4], target=[1, 1, 0, 0]))
    assert [(found.name(s), found.classes[s.label]) for s in found] == [
        ("c.jpg", "0"), ("sub/d.jpg", "0"), ("a.jpg", "1"), ("b.jpg", "1")]  # fmt: skip
    split = table("b.parquet", path=files, label=list("xxyy"), split=["train"] * 4)
    assert list(scan(split).splits) == ["train"]
    gap = table("c.parquet", path=files, label=[1.0, None, 2.0, 2.0])
    with pytest.raises(UserError, match="row 2: the label is empty"):
        scan(gap)
    with pytest.raises(UserError, match="no column for the label; it has: path, colour"):
        scan(table("d.parquet", path=files, colour=files))
    (tmp_path / "e.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="cannot be read as a Parquet file"):
        scan(tmp_path / "e.parquet")
    with pytest.raises(UserError, match="row 1: the path"):
        scan(table("f.parquet", path=[None] * 4, label=files))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(UserError, match=r"mbconv\[parquet\]"):
        scan(tmp_path / "a.parquet")
