"""Our networks trained on the same pictures, in the same order, within the same time."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mbconv.errors import UserError
from mbconv.measure.bench import failure
from mbconv.measure.subject import FOREIGN
from mbconv.nn.model import MBConvNet
from mbconv.record import Record
from mbconv.report.folder import read_run
from mbconv.training.console import Reporter
from mbconv.training.run import train
from mbconv.weights.model import create_model, has_weights

_KEPT = ("split", "answers", "labels")  # of an evaluation's detail; the rest is in the run's folder


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What the networks learn from, and for how long: `budget` is seconds for each training."""

    data: str
    budget: float
    resolution: int | None = None  # None: the smallest that one of them chooses
    scratch: bool = False  # without pretrained weights, also where there are some
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.budget > 0:
            raise UserError(f"budget is {self.budget}; it must be above zero.")


def is_foreign(name: str) -> bool:
    """Whether `name` is another library's module, which our trainer does not take."""
    return name.partition(":")[0] in FOREIGN and not Path(name).exists()


def learn(lesson: Lesson, names: Sequence[str], runs: Path, reporter: Reporter) -> Iterator[Record]:
    """A `top1` Record of each training: each network at its own resolution, then all at one.

    Its own is what a run chooses by the network, the pictures and the budget. A network whose own
    is the common one is trained once; its record then counts for both. Runs that fail are Records
    with the reason.
    """
    own: dict[str, Record] = {}
    ours = [name for name in names if not is_foreign(name)]
    for number, name in enumerate(ours, start=1):
        reporter.say(f"\n{name}, training {number} of {len(ours)}, at its own resolution", "bold")
        taught = _taught(lesson, name, None, runs, reporter)
        yield taught
        if taught.n:
            own[name] = taught
    if not own:
        return
    common = lesson.resolution or min(r.detail["resolution"] for r in own.values())
    again = [name for name, record in own.items() if record.detail["resolution"] != common]
    for number, name in enumerate(again, start=1):
        reporter.say(f"\n{name}, training {number} of {len(again)}, at {common} px", "bold")
        yield _taught(lesson, name, common, runs, reporter)


def _taught(
    lesson: Lesson, name: str, resolution: int | None, runs: Path, reporter: Reporter
) -> Record:
    folder = runs / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{resolution or 'own'}"
    about = {"network": name, "library": "mbconv", "data": lesson.data, "seed": lesson.seed,
             "budget": lesson.budget}  # fmt: skip
    try:
        pretrained = not lesson.scratch and has_weights(name)
        torch.manual_seed(lesson.seed)  # of fresh weights
        fresh = lesson.scratch and has_weights(name)
        model: MBConvNet | str = create_model(create_model(name).spec) if fresh else name
        run = train(model, lesson.data, folder, budget=lesson.budget, resolution=resolution,
                    seed=lesson.seed, device=lesson.device)  # fmt: skip
    except UserError as error:
        reporter.say(f"{name}: {error}", style="yellow")
        return failure("top1", about | {"resolution": resolution}, str(error))
    found = read_run(folder)
    kept = {key: run.record.detail[key] for key in _KEPT if key in run.record.detail}
    about |= {"resolution": found.config["resolution"], "pretrained": pretrained, **kept,
              "run": folder.name, "view": "same" if resolution else "own",
              "epochs": sum(line.get("phase") == "full" for line in found.epochs),
              "seconds": max((line["seconds"] for line in found.epochs), default=0.0)}  # fmt: skip
    return replace(run.record, detail=about)
