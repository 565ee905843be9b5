"""The commands worth typing next, with this run's own paths filled in."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mbconv.report.figures import best_epoch
from mbconv.report.folder import RunFolder, number

# Pretrained networks that need nothing but a package, each a step larger than the one before.
_LADDER = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
_USUAL_RESOLUTION = 224


@dataclass(frozen=True)
class Command:
    """A command line and, in one sentence, why one would run it."""

    text: str
    why: str


def next_commands(run: RunFolder) -> list[Command]:
    """Predict, evaluate and train on; for a run without a score, resume it first."""
    if run.evaluation is None:
        return [_resume(run), *([_predict(run)] if run.model_bytes else [])]
    return [_predict(run), _evaluate(run), _train(run)]


def _resume(run: RunFolder) -> Command:
    words = ["train", "--resume", str(run.path)]
    return Command(shell_line(words), "Go on where this run stopped.")


def _predict(run: RunFolder) -> Command:
    splits = run.splits
    paths = splits.get("test") or splits.get("val") or []
    files = run.root and "source" not in run.data  # else what the names mean, no shell knows
    picture = str(Path(run.root) / paths[0]) if files and paths else "PICTURE.jpg"
    why = "Name what is in a picture; give any files or folders instead of this one."
    return Command(shell_line(["predict", str(run.path), picture]), why)


def _evaluate(run: RunFolder) -> Command:
    """The user's own test folder if there is one; never pictures that were trained on."""
    test = run.splits.get("test") or []
    files = run.root and "source" not in run.data
    if files and test and all(path.startswith("test/") for path in test):
        words = ["eval", str(run.path), str(Path(run.root) / "test")]
        return Command(
            shell_line(words), "Score the run again on the test folder, or on another one."
        )
    why = "Score it on pictures it has never seen, in one folder per class as for training."
    return Command(shell_line(["eval", str(run.path), "NEW_PICTURES"]), why)


def _train(run: RunFolder) -> Command:
    options, why = _improvement(run)
    words = ["train", run.root or "DATA", "--out", str(free_name(run.path)), *options]
    return Command(shell_line(words), why)


def _improvement(run: RunFolder) -> tuple[list[str], str]:
    """Options of the next training and why: more epochs, larger pictures or another network."""
    config = run.config
    model = str(config.get("model") or _LADDER[0])
    resolution = int(number(config.get("resolution")) or _USUAL_RESOLUTION)
    epochs = int(number(config.get("epochs")) or len(run.epochs) or 1)
    best = best_epoch(run.epochs)
    longer = ["--model", model, "--resolution", str(resolution), "--epochs", str(2 * epochs)]
    if best is not None and best[0] == len(run.epochs) - 1:
        return longer, "The last epoch was the best one, so more epochs may well help."
    if resolution < _USUAL_RESOLUTION:
        larger = min(_USUAL_RESOLUTION, (resolution * 4 // 3 + 31) // 32 * 32)
        options = ["--model", model, "--resolution", str(larger), "--epochs", str(epochs)]
        return options, f"Larger pictures show finer details ({larger} px instead of {resolution})."
    if model in _LADDER[:-1]:
        larger_model = _LADDER[_LADDER.index(model) + 1]
        options = ["--model", larger_model, "--epochs", str(epochs)]
        return options, "A larger network: slower, and often better."
    return longer, "Twice the epochs: the simplest thing that may help."


def free_name(path: Path) -> Path:
    """runs/x -> runs/x-2, or the first number that is free: a run never overwrites another."""
    number = 2
    while (name := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return name


def shell_line(words: Sequence[str]) -> str:
    """Quoted for this machine's shell."""
    line = subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
    return "mbconv " + line
