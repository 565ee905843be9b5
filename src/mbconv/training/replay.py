"""A step that came out not finite, computed once more from what its run folder keeps."""

from pathlib import Path

import torch

from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.training import folder
from mbconv.training.diagnosis import FILE, Trace, trace
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.recipe import Recipe
from mbconv.training.teacher import find_teacher


def replay(run: str | Path) -> tuple[int, Trace]:
    """The number of the failed step, from 1, and what every layer gave in it.

    Raises UserError where `run` holds no failed step or its files do not fit.
    """
    run = Path(run)
    config = folder.read_config(run / "config.json")
    if not (run / FILE).is_file():
        raise UserError(f"{run} holds no {FILE}: no step of this run failed, nothing to replay.")
    machine = Machine.from_dict(config["machine"])
    try:
        step = torch.load(run / FILE, map_location=machine.device, weights_only=True)
        network = folder.network_of(config, step.get("spec"))
        network.load_state_dict(step["weights"])
    except Exception as error:  # torch raises many kinds for a broken or foreign file
        raise UserError(
            f"{run / FILE} is broken or belongs to another network ({error}); start the run anew."
        ) from error
    recipe = Recipe.from_dict(config["recipe"])
    trainer = Trainer(network, recipe, machine, step["total"], teacher=find_teacher(run, config))
    trainer.class_weights = step["class_weights"]
    batch = Batch(step["pixels"].cpu(), step["labels"].cpu(), ())
    return step["index"] + 1, trace(trainer, batch, step["index"], step["seed"])
