"""The audit: what it finds in folders made to be wrong, what it costs, and what follows from it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from images import encoded, photo, write_tree
from mbconv.data import audit as audit_module
from mbconv.data import examine as examine_module
from mbconv.data.audit import Audit, audit, drop_unreadable
from mbconv.data.source import scan, split
from mbconv.errors import UserError
from mbconv.report.audit import print_audit


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Two classes in two splits with one of everything that can be wrong."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {f"train/hat/{i}.jpg": encoded(photo(i)) for i in range(6)}
    files |= {f"train/shoe/{i}.jpg": encoded(photo(10 + i)) for i in range(2)}
    files |= {f"val/hat/{i}.png": encoded(photo(20 + i, 90, 120), "PNG") for i in range(2)}
    files |= {f"val/shoe/{i}.jpg": encoded(photo(30 + i).convert("L")) for i in range(2)}
    files["val/hat/copy.jpg"] = files["train/hat/0.jpg"]  # exact, in two splits
    files["train/hat/small.jpg"] = encoded(photo(1).resize((85, 64)), quality=60)  # near
    files["train/shoe/hat.jpg"] = encoded(photo(2), quality=60)  # near, with another label
    files["train/hat/cut.jpg"] = files["train/hat/3.jpg"][:900]
    files["train/hat/note.jpg"] = b"no picture"
    files["train/hat/turned.jpg"] = encoded(photo(40, 80, 60), exif=exif)
    gif = [photo(50 + i).quantize(16) for i in range(3)]
    files["train/shoe/moving.gif"] = encoded(gif[0], "GIF", save_all=True, append_images=gif[1:])
    files["train/shoe/tiny a.png"] = encoded(photo(60, 8, 8), "PNG")
    files["train/shoe/tiny b.png"] = encoded(photo(60, 8, 8), "PNG", compress_level=0)
    files["train/shoe/README.txt"] = b""
    return write_tree(tmp_path / "photos", files)


def test_findings(bad: Path) -> None:
    found = audit(scan(bad))
    assert (found.files, found.checked, found.sampled, found.ignored) == (21, 21, False, 1)
    assert found.unreadable == [
        {"path": "train/hat/cut.jpg", "reason": "cut off before its end"},
        {"path": "train/hat/note.jpg", "reason": "not a picture in a known format"},
    ]
    leak = ["train/hat/0.jpg", "val/hat/copy.jpg"]
    label = ["train/hat/2.jpg", "train/shoe/hat.jpg"]
    assert found.exact == [leak]
    assert found.near == [["train/hat/1.jpg", "train/hat/small.jpg"], label]  # not the tiny ones
    assert found.across_splits == [leak]
    assert found.label_conflicts == [label]
    assert found.class_counts == {"train": {"hat": 10, "shoe": 6}, "val": {"hat": 3, "shoe": 2}}
    assert found.imbalance == pytest.approx(10 / 6)
    assert found.sizes["width"] == {"min": 8, "median": 120, "max": 120}
    assert found.sizes["height"]["max"] == 120
    assert found.modes == {"RGB": 16, "L": 2, "P": 1}
    assert (found.exif_rotated, found.animated) == (1, 1)


def test_sentences(bad: Path) -> None:
    found = audit(scan(bad)).findings()
    assert len(found) == 5
    assert found[0].startswith("2 files cannot be read and will be left out: train/hat/cut.jpg")
    assert "train/hat/0.jpg = val/hat/copy.jpg" in found[1]
    assert Audit(files=1, checked=1).findings() == []
    assert "--full" in Audit(files=9, checked=1, sampled=True).findings()[0]
    assert "7.0 times" in Audit(files=9, checked=9, imbalance=7.0).findings()[0]


def test_printed_for_people(bad: Path) -> None:
    console = Console(width=60, record=True, force_terminal=False)
    found = audit(scan(bad)).to_dict()
    print_audit(found, console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert "    train/hat/0.jpg  =  val/hat/copy.jpg" in lines
    assert "    train/hat/cut.jpg: cut off before its end" in lines  # not wrapped at 60
    assert ["hat", "10", "3"] in [line.split() for line in lines]
    assert ["total", "16", "5"] in [line.split() for line in lines]
    assert any("1 other file was ignored" in line for line in lines)


def test_names_are_no_markup() -> None:
    console = Console(width=60, record=True)
    found = Audit(
        files=30, checked=30, near=[[f"[red]{i}/a.jpg", "b.jpg"] for i in range(30)],
        class_counts={"all": {f"[bold]{i:02}": 40 - i for i in range(40)}},
    )  # fmt: skip
    print_audit(found.to_dict(), console)
    text = console.export_text()
    assert "[red]0/a.jpg" in text
    assert "[bold]00" in text
    assert "and 20 more; --json lists them all" in text
    assert "10 smaller classes" in text


def test_the_dictionary_goes_both_ways(bad: Path) -> None:
    found = audit(scan(bad))
    text = json.dumps(found.to_dict())
    assert Audit.from_dict(json.loads(text)) == found
    assert Audit.from_dict({**json.loads(text), "later": 1}) == found
    for broken in ({}, {"files": 1}, ["files"]):
        with pytest.raises(UserError, match="no audit"):
            Audit.from_dict(broken)  # type: ignore[arg-type]


def test_a_second_audit_decodes_nothing(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = audit(scan(bad)).to_dict()
    decoded: list[int] = []
    original = examine_module.decode_with_facts

    def counted(source: bytes, *, min_side: int) -> object:
        decoded.append(len(source))
        return original(source, min_side=min_side)

    monkeypatch.setattr(examine_module, "decode_with_facts", counted)
    (bad / "val/hat/copy.jpg").rename(bad / "val/hat/again.jpg")  # known by its content
    (bad / "train/hat/5.jpg").write_bytes(encoded(photo(99)))
    second = audit(scan(bad)).to_dict()
    assert len(decoded) == 3  # the new one and the two that cannot be read
    assert second["exact"] == [["train/hat/0.jpg", "val/hat/again.jpg"]]
    for field in ("near", "unreadable", "sizes", "modes", "exif_rotated", "animated"):
        assert first[field] == second[field]
    assert not [path for path in bad.rglob("*") if "sqlite" in path.name]


def test_rows_that_cannot_be_understood_are_made_again(
    bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = audit(scan(bad))
    monkeypatch.setattr(examine_module.Store, "get", lambda self, key: ("{broken", b""))
    assert audit(scan(bad)).near == first.near


def test_without_a_cache(bad: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the cache folder's place")
    assert len(audit(scan(bad)).near) == 2


def test_large_files_are_read_in_parts(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = audit(scan(bad)).to_dict()
    monkeypatch.setattr(examine_module, "_WHOLE", 100)
    second = audit(scan(bad)).to_dict()
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_what_is_no_file(bad: Path) -> None:
    (bad / "train/hat/link.jpg").symlink_to(bad / "nowhere.jpg")
    (bad / "train/hat/empty.jpg").touch()
    (bad / "train/hat/empty too.jpg").touch()
    found = audit(scan(bad))
    reasons = {item["path"]: item["reason"] for item in found.unreadable}
    assert reasons["train/hat/link.jpg"] == "no such file or directory"
    assert reasons["train/hat/empty.jpg"] == "empty"
    assert len(found.exact) == 1  # what cannot be read is no duplicate


def test_progress_and_interruption(bad: Path) -> None:
    seen: list[tuple[int, int]] = []
    audit(scan(bad), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 21) for i in range(21)]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(scan(bad), progress=interrupt)


def test_large_datasets_are_sampled(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "SAMPLE", 8)
    dataset = scan(bad)

    def looked_at(run: Callable[[], Audit]) -> tuple[int, int, bool]:
        found = run()
        return found.files, found.checked, found.sampled

    assert looked_at(lambda: audit(dataset)) == (21, 8, True)
    assert looked_at(lambda: audit(dataset, full=True)) == (21, 21, False)
    once, again = audit(dataset, seed=3), audit(dataset, seed=3)
    assert (once.modes, once.sizes, once.near) == (again.modes, again.sizes, again.near)


def test_drop_unreadable(bad: Path) -> None:
    dataset = scan(bad)
    kept = drop_unreadable(dataset, audit(dataset))
    gone = {dataset.name(s) for s in dataset} - {kept.name(s) for s in kept}
    assert gone == {"train/hat/cut.jpg", "train/hat/note.jpg"}


def test_drop_unreadable_leaves_enough_to_train(tmp_path: Path) -> None:
    files = {"a/1.jpg": b"x", "a/2.jpg": b"y", "b/1.jpg": b"z", "b/2.jpg": b""}
    dataset = scan(write_tree(tmp_path / "none", files))
    with pytest.raises(UserError, match="None of the 4 pictures"):
        drop_unreadable(dataset, audit(dataset))
    files |= {f"a/{i}.jpg": encoded(photo(i)) for i in (1, 2)} | {"b/1.jpg": encoded(photo(3))}
    dataset = scan(write_tree(tmp_path / "one", files))
    with pytest.raises(UserError, match=r"class b in .* has one picture to train on"):
        drop_unreadable(dataset, audit(dataset))


def test_duplicates_are_not_torn_by_our_own_split(tmp_path: Path) -> None:
    files = {f"{c}/{i}.jpg": encoded(photo(ord(c) * 100 + i)) for c in "ab" for i in range(20)}
    for i in range(8):
        files[f"a/{i} copy.jpg"] = files[f"a/{i}.jpg"]
        files[f"a/{i} small.jpg"] = encoded(photo(ord("a") * 100 + i).resize((85, 64)))
    dataset = scan(write_tree(tmp_path / "photos", files))
    found = audit(dataset)
    assert len(found.groups()) == 8
    assert all(len(group) == 3 for group in found.groups())
    dealt = split(dataset, groups=found.groups(), val=0.2, test=0.2)
    assert found.recount(dealt).across_splits == []
    torn = found.recount(split(dataset, val=0.2, test=0.2))
    assert torn.across_splits
    assert set(torn.class_counts) == {"train", "val", "test"}
    assert found.imbalance == pytest.approx(36 / 20)


def test_digits_are_compared_exactly_only(tmp_path: Path) -> None:
    """8 x 8 digits: a hash of them would take most for copies."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    files = {}
    for i in range(300):
        pixels = (digits.images[i] * 255 / 16).astype(np.uint8)
        files[f"{digits.target[i]}/{i}.png"] = encoded(Image.fromarray(pixels), "PNG")
    found = audit(scan(write_tree(tmp_path / "digits", files)))
    assert found.near == []
    assert found.unreadable == []


@pytest.mark.data
def test_clothing(data_root: Path) -> None:
    dataset = scan(data_root / "clothing")
    cold, warm = audit(dataset), audit(dataset)
    assert (cold.files, cold.checked, cold.unreadable, cold.exact) == (3781, 3781, [], [])
    # One photograph stands in two classes; nothing else, though many products look alike.
    assert cold.near == cold.label_conflicts == [[
        "train/shorts/6075b4a5-5b1a-4ce0-aea0-9dbfbca7c35c.jpg",
        "train/skirt/637a56e4-7fa6-4f75-8859-0f8902461554.jpg",
    ]]  # fmt: skip
    assert cold.across_splits == []
    assert cold.seconds < 30  # 3 s on two free cores
    assert warm.seconds < cold.seconds
    assert {**warm.to_dict(), "seconds": 0} == {**cold.to_dict(), "seconds": 0}
