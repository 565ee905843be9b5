"""What a study folder holds: its plan, its runs' scores, and how the arms compare."""

from dataclasses import dataclass
from pathlib import Path

from mbconv.errors import UserError
from mbconv.record import Record
from mbconv.report.contrasts import Contrast, Interval, contrasts, mean_interval
from mbconv.report.folder import Json, number, read_evaluation, read_lines, read_object


@dataclass(frozen=True)
class ArmRow:
    """What is known of an arm: its runs by seed, and how it compares."""

    name: str
    planned: Json
    scores: dict[int, Record]
    seconds: tuple[float, ...]  # of the finished runs
    failures: dict[int, str]
    contrast: Contrast | None

    @property
    def mean(self) -> Interval | None:
        values = [record.value for record in self.scores.values()]
        return mean_interval(values) if values else None


@dataclass(frozen=True)
class StudyFolder:
    """A study's plan and what its runs came to so far."""

    path: Path
    plan: Json
    arms: tuple[ArmRow, ...]

    @property
    def runs(self) -> int:
        """Runs that have come to an end."""
        return sum(len(arm.scores) + len(arm.failures) for arm in self.arms)

    @property
    def planned(self) -> int:
        return len(self.arms) * int(self.plan["seeds"])


def read_study(folder: str | Path) -> StudyFolder:
    """Read a study folder; UserError where it is none or a file in it is broken."""
    folder = Path(folder)
    plan = read_object(folder / "study.json")
    if not plan.get("arms"):
        raise UserError(f"{folder} holds no study.json, so it is no study; give a study's folder.")
    found = {arm["name"]: _scores(folder, arm, plan["seeds"]) for arm in plan["arms"]}
    cells = {(name, seed): record.value
             for name, scores in found.items() for seed, record in scores.items()}  # fmt: skip
    answers = {(name, seed): record.detail.get("answers")
               for name, scores in found.items() for seed, record in scores.items()}  # fmt: skip
    beside = {arm["name"]: arm["beside"] for arm in plan["arms"] if arm["beside"]}
    compared = contrasts(cells, answers, beside)
    rows = tuple(
        ArmRow(arm["name"], arm, found[arm["name"]], _seconds(folder, arm, found[arm["name"]]),
               _failures(folder, arm, plan["seeds"]), compared.get(arm["name"]))
        for arm in plan["arms"]
    )  # fmt: skip
    return StudyFolder(folder, plan, rows)


def _run(folder: Path, arm: Json, seed: int) -> Path:
    return folder / "runs" / str(arm["slug"]) / f"seed{seed}"


def _scores(folder: Path, arm: Json, seeds: int) -> dict[int, Record]:
    paths = {seed: _run(folder, arm, seed) / "evaluation.jsonl" for seed in range(seeds)}
    records = {seed: read_evaluation(path) for seed, path in paths.items()}
    return {seed: record for seed, record in records.items() if record is not None}


def _seconds(folder: Path, arm: Json, scores: dict[int, Record]) -> tuple[float, ...]:
    lines = [read_lines(_run(folder, arm, seed) / "metrics.jsonl") for seed in scores]
    return tuple(number(run[-1].get("seconds")) or 0.0 for run in lines if run)


def _failures(folder: Path, arm: Json, seeds: int) -> dict[int, str]:
    paths = {seed: _run(folder, arm, seed).with_name(f"seed{seed}-failed.json")
             for seed in range(seeds)}  # fmt: skip
    return {seed: str(read_object(path).get("reason")) for seed, path in paths.items()
            if path.is_file()}  # fmt: skip
