"""`mbconv runs`: every folder gets its line, whatever state it is in."""

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fake_run import fake_run
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.files import is_locked, locked
from mbconv.interval import wilson
from mbconv.report.runs import LOCK, RunRow, list_runs, read_row


def command(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def row(path: Path) -> RunRow:
    found = read_row(path)
    assert found is not None
    return found


def test_a_finished_run_tells_everything(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "runs/a", epochs=8)
    found = json.loads(command("runs", tmp_path / "runs", "--json").output)
    record = json.loads((folder / "evaluation.jsonl").read_text())
    (only,) = found
    assert only["name"] == str(folder)
    assert (only["state"], only["split"], only["n"]) == ("finished", "test", 372)
    assert (only["score"], only["low"], only["high"]) == (
        record["value"], record["low"], record["high"])  # fmt: skip
    assert (only["network"], only["pretrained"]) == ("efficientnet_lite0", True)
    assert (only["epoch"], only["epochs"]) == (7, 8)
    assert only["seconds"] == pytest.approx(21.5 + 7 * 38.25)
    words = command("runs", tmp_path / "runs").output
    for word in ("efficientnet_lite0", "clothing", f"{100 * record['value']:.1f}%", "test", "7/8",
                 "finished", "4 min 49 s"):  # fmt: skip
        assert word in words
    assert "from scratch" not in words


def test_a_run_without_final_score_shows_its_validation_score(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "a", interrupted=True, pretrained=False)
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) | {"val_n": 341} for line in path.read_text().splitlines()]
    best = max(max(line["val_raw"], line["val_ema"] or 0) for line in lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 9, "val')
    found = row(folder)
    assert (found.state, found.split, found.n, found.score) == ("interrupted", "val", 341, best)
    assert (found.low, found.high) == wilson(round(best * 341), 341)
    words = command("runs", folder).output
    assert "validation" in words
    assert "(from scratch)" in words


def test_what_became_of_a_run(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "a", interrupted=True, epochs=0)
    assert (row(folder).state, row(folder).score) == ("interrupted", None)
    with locked(folder / LOCK, "busy"):
        assert is_locked(folder / LOCK)
        assert row(folder).state == "running"
        with pytest.raises(UserError, match="busy"), locked(folder / LOCK, "busy"):
            pass
    assert row(folder).state == "interrupted"
    (folder / "failed_step.pt").write_bytes(b"")
    assert row(folder).state == "failed"
    state = folder / "last/state.pt"
    state.write_bytes(b"")
    os.utime(state, (2e9, 2e9))  # gone on since
    assert row(folder).state == "interrupted"
    os.utime(state, (1e9, 1e9))
    assert row(folder).state == "failed"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{", "no valid JSON"),
        ("config.json", "[]", "must hold a JSON object"),
        ("metrics.jsonl", "{\n{}\n", "line 1"),
        ("evaluation.jsonl", "7\n", "is no record"),
        ("config.json", '{"recipe": 7}', "AttributeError"),
        ("config.json", '{"date": "yesterday"}', "isoformat"),
    ],
)
def test_a_broken_folder_gets_a_line_and_stops_nothing(
    name: str, content: str, words: str, tmp_path: Path
) -> None:
    fake_run(tmp_path / "good")
    (fake_run(tmp_path / "bad") / name).write_text(content)
    done = command("runs", tmp_path)
    assert done.exit_code == 0
    assert "finished" in done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith(f"{tmp_path / 'bad'}:")]
    assert words in line
    states = {r.name: r.state for r in list_runs([tmp_path])}
    assert states == {str(tmp_path / "good"): "finished", str(tmp_path / "bad"): "broken"}


def test_what_is_no_run_is_passed_over(tmp_path: Path) -> None:
    fake_run(tmp_path / "study/seed0")
    fake_run(tmp_path / "study/seed0/last/copy")  # inside a run nothing is looked for
    fake_run(tmp_path / ".trash/run")
    for name, config in (("timm", {"architecture": "x"}), ("ours", {"library_name": "mbconv"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert [r.name for r in list_runs([tmp_path, tmp_path / "study"])] == [
        str(tmp_path / "study/seed0")
    ]


def test_the_order(tmp_path: Path) -> None:
    for name, options, date in (
        ("b", {"accuracy": 0.5}, "2026-01-02T00:00:00+00:00"),
        ("a", {"accuracy": 0.9, "epochs": 2}, "2026-01-01T00:00:00+00:00"),
        ("c", {"interrupted": True, "epochs": 0}, "2026-01-03T00:00:00+00:00"),
    ):
        folder = fake_run(tmp_path / name, **options)
        config = json.loads((folder / "config.json").read_text()) | {"date": date}
        (folder / "config.json").write_text(json.dumps(config))

    def order(sort: str) -> str:
        return "".join(Path(r.name).name for r in list_runs([tmp_path], sort))

    assert order("date") == "cba"
    assert order("name") == "abc"
    assert order("score") == "abc"  # c has none
    assert order("time") == "bac"
    assert order("state") == "abc"
    for sort in ("network", "data"):
        assert order(sort) == "abc"
        assert command("runs", tmp_path, "--sort", sort).exit_code == 0


def test_a_narrow_terminal_gets_fewer_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mbconv.report.runs import show_runs

    monkeypatch.chdir(tmp_path)
    fake_run(Path("runs/a"))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    for columns, there in ((200, True), (80, False)):
        monkeypatch.setenv("COLUMNS", str(columns))
        show_runs(list_runs([Path("runs")]))
        words = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        assert ("recipe" in words, "when" in words) == (there, there)
        assert "runs/a" in words
        assert "finished" in words
        assert max(map(len, words.splitlines())) <= columns


def test_no_runs_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = command("runs")
    assert missing.exit_code == 2
    assert "There is no folder runs" in missing.output
    (tmp_path / "runs").mkdir()
    assert command("runs").output == "no runs below runs\n"
    assert json.loads(command("runs", "--json").output) == []
