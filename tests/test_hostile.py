"""Real files that break image code: each does what its table says, in little memory."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mbconv.data.decode import Unreadable, decode, decode_with_facts

pytestmark = pytest.mark.data

MEASURED = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mbconv.data.audit import audit
from mbconv.data.decode import Unreadable, decode
from mbconv.data.source import scan

def size(path):
    try:
        return decode(path).size
    except Unreadable:
        return None

folder = Path(sys.argv[1])
list(ThreadPoolExecutor(4).map(size, sorted((folder / "all").iterdir())))
found = audit(scan(folder, training=False))
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent of the fork
kib = int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"kib": kib, "torch": "torch" in sys.modules, "audit": found.to_dict()}))
"""


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "EXPECTED.csv").open() as stream:
        return list(csv.DictReader(stream))


def outcome(path: Path, min_side: int | None) -> tuple[str, str, str]:
    try:
        _, facts = decode_with_facts(path, min_side=min_side)
    except Unreadable as error:
        return ("refused" if error.refused else "unreadable"), "", ""
    return "read", str(facts.width), str(facts.height)


@pytest.mark.parametrize("min_side", [None, 64])
def test_every_file_does_what_the_table_says(data_root: Path, min_side: int | None) -> None:
    folder = data_root / "hostile"
    rows = table(folder)
    assert len(rows) >= 16
    for row in rows:
        kind, *size = outcome(folder / row["file"], min_side)
        assert kind == row["outcome"], row["file"]
        if kind == "read":
            assert size == [row["upright_width"], row["upright_height"]], row["file"]


def test_rotated_landscapes_show_the_same_scene(data_root: Path) -> None:
    """The four differ in tone and in a numeral in the middle, not in their left quarter."""
    first, *others = (
        np.asarray(decode(data_root / f"hostile/Landscape_{i}.jpg"), dtype=float)[:, :150].ravel()
        for i in (1, 3, 6, 8)
    )
    for other in others:
        assert np.corrcoef(first, other)[0, 1] > 0.9


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory is read from /proc")
def test_decoding_and_auditing_stay_small(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "all").symlink_to(data_root / "hostile", target_is_directory=True)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEASURED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(done.stdout)
    assert measured["kib"] < 300_000
    assert not measured["torch"]
    found = measured["audit"]
    bad = {f"all/{r['file']}" for r in table(data_root / "hostile") if r["outcome"] != "read"}
    assert {item["path"] for item in found["unreadable"]} == bad
    assert (found["exif_rotated"], found["animated"]) == (3, 2)
    assert [f"all/Landscape_{i}.jpg" for i in (1, 3, 6, 8)] in found["near"]
    assert not done.stderr
