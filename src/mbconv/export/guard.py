"""The guard: what an artifact's accuracy is beside its source's, and whether that will do."""

from dataclasses import dataclass
from pathlib import Path

from mbconv.data.source import Dataset, Sample, scan, split
from mbconv.data.spread import spread
from mbconv.errors import UserError
from mbconv.measure.accuracy import Collected, Matched, Progress, collect, matched
from mbconv.measure.paired import Paired, paired
from mbconv.runtime.predictor import Predictor

CALIBRATION = 300  # pictures; NNCF's own default


@dataclass(frozen=True)
class Guard:
    """Holds artifacts against a network on the same labelled pictures.

    `task` are the pictures, `reference` the network's answers to them, `max_drop` a share of 1,
    `calibration` pictures of the train split.
    """

    task: Matched
    reference: Collected
    max_drop: float
    calibration: tuple[Sample, ...] = ()

    def compare(self, predictor: Predictor, progress: Progress | None = None) -> Paired:
        """Run an artifact over the pictures, in the runtime that will serve it."""
        answers = collect(predictor, self.task.samples, progress=progress)
        if answers.paths != self.reference.paths:
            raise UserError("Pictures changed while the artifact was measured; export it again.")
        return paired(self.reference.right, answers.right)

    def accepts(self, comparison: Paired) -> bool:
        """The point estimate decides; a drop of exactly the bound is within it."""
        return comparison.drop <= self.max_drop + 1e-9

    def warning(self, comparison: Paired) -> str | None:
        """What to tell where the interval is wider than the bound; else None."""
        if self.max_drop == 0 or comparison.half_width <= self.max_drop:
            return None
        return (
            f"{comparison.n:,} pictures do not settle a drop of {100 * self.max_drop:g} points: "
            f"the interval is {100 * comparison.half_width:.2f} points to either side. About "
            f"{comparison.pictures_for(self.max_drop):,} would."
        )


def make_guard(
    source: Predictor,
    data: str | Path | Dataset,
    max_drop: float,
    *,
    calibrate: bool = False,
    progress: Progress | None = None,
) -> Guard:
    """Answer the pictures of `data` with `source`: its test split, else val, else all.

    With `calibrate` the train split gives calibration pictures; splits that are missing are made
    first, as training makes them. Raises UserError where there is no train split to take them
    from, for a bound below zero, and as `evaluate` does.
    """
    if max_drop < 0:
        raise UserError(f"The largest drop is {100 * max_drop:g} points; it must be 0 or more.")
    dataset = data if isinstance(data, Dataset) else scan(data, training=False)
    chosen: tuple[Sample, ...] = ()
    if calibrate:
        if "all" in dataset.splits:
            dataset = split(dataset)
        if "train" not in dataset.splits:
            raise UserError(
                f"{dataset.source} has no train split, and INT8 is calibrated on training pictures "
                "only, so that the score stays honest. Name data that has one."
            )
        train = dataset.splits["train"]
        chosen = tuple(train[i] for i in spread(len(train), CALIBRATION))
    task = matched(source, dataset)
    return Guard(task, collect(source, task.samples, progress=progress), max_drop, chosen)
