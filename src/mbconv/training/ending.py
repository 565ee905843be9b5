"""The end of a run: its best network, scored, with Records and a report."""

import time
from pathlib import Path
from typing import Any, Protocol

from mbconv.data.source import Dataset
from mbconv.measure.accuracy import evaluate
from mbconv.measure.gradcam import explain_mistakes
from mbconv.nn.model import MBConvNet
from mbconv.record import Record, write_records
from mbconv.report.run import write_report
from mbconv.training.console import Reporter
from mbconv.training.distributed import World
from mbconv.training.recipe import Recipe
from mbconv.training.stages import grow_to_last
from mbconv.training.tracking import Trackers
from mbconv.weights.model import MODEL_FILE, load


class Learnt(Protocol):
    """A run that has learnt all that it is going to."""

    path: Path
    config: dict[str, Any]
    recipe: Recipe
    dataset: Dataset
    world: World
    trackers: Trackers
    reporter: Reporter
    next_step: int
    started: float


def finish(run: Learnt) -> tuple[MBConvNet, Record]:
    """Score the best network on the test split (else on val), write records and report."""
    if run.recipe.grows:
        if run.world.first:
            grow_to_last(run.path, run.recipe, run.config["seed"])
        run.world.wait()
    network = load(run.path)
    split = "test" if "test" in run.dataset.splits else "val"
    record = evaluate(run.world.predictor(network), run.dataset, split=split)
    if run.world.first:
        _write_score(run, network, record, split)
    run.world.wait()
    return network, record


def _write_score(run: Learnt, network: MBConvNet, record: Record, split: str) -> None:
    explain_mistakes(network, record, run.dataset)
    run.trackers.log(run.next_step, {f"{split}/final_top1": record.value})
    run.trackers.saved()
    write_records(run.path / "evaluation.jsonl", [record])
    write_report(run.path)
    seconds = time.perf_counter() - run.started
    run.reporter.say(
        f"{split} accuracy {100 * record.value:.1f}% "
        f"[{100 * (record.low or 0):.1f}, {100 * (record.high or 0):.1f}], n = {record.n}; "
        f"{seconds:.0f} s in all"
    )
    run.reporter.say(f"model:  {run.path / MODEL_FILE}")
    run.reporter.say(f"report: {run.path / 'report.html'}")
