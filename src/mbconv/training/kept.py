"""How good a run's network is, which one is kept, and what its file says of it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbconv.data.source import Dataset
from mbconv.measure.accuracy import collect, summarize
from mbconv.nn.model import MBConvNet
from mbconv.training.failing import tell_left_out
from mbconv.training.loop import Trainer
from mbconv.training.machine import DTYPES
from mbconv.weights import file as model_file
from mbconv.weights.model import MODEL_FILE


def score(
    trainer: Trainer,
    network: MBConvNet,
    dataset: Dataset,
    resolution: int,
    say: Callable[..., None],
) -> tuple[float, int]:
    """Validation accuracy of the trainer's network or its average, and on how many pictures."""
    dtype = DTYPES[trainer.machine.frozen_dtype]
    preprocessing = network.preprocessing.at(resolution)
    predictor = trainer.world.predictor(network, dtype=dtype, preprocessing=preprocessing)
    collected = collect(predictor, dataset.splits["val"])
    if network is trainer.model:  # the average is scored on the same pictures
        tell_left_out(collected.unreadable, say, " of validation")
    detail = summarize(collected.logits, collected.targets, dataset.classes)
    return float(detail["top1"]["value"]), len(collected.targets)


def is_kept(score: float, best: float, n: int) -> bool:
    """Whether a newer network with this accuracy on n pictures replaces the one that is kept.

    It does unless it is more than one standard error below the best so far (Breiman et al. 1984
    choose trees so): with a few hundred pictures the best of several epochs is mostly luck, and
    the last ones, whose learning rate has come down, are the better bet.
    """
    return score >= best - math.sqrt(best * (1 - best) / n)


def keep(run: Path, network: MBConvNet, config: dict[str, Any], line: dict[str, Any]) -> None:
    """Write the run's model file: `network` as the epoch of this line of metrics left it."""
    own = network.preprocessing
    network.preprocessing = own.at(line["resolution"])
    provenance = {
        "trained_on": Path(config["data"]).name, "epoch": line["epoch"],
        "val_top1": line["val_ema"], "recipe": config["recipe"]["name"],
        "pretrained": config.get("starts_from") if "stage" in line else config["model"],
        "base": config.get("base"),
    }  # fmt: skip
    try:
        model_file.save(network, run / MODEL_FILE, provenance)
    finally:
        network.preprocessing = own
