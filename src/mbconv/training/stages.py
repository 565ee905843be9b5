"""Stages of a run whose network grows: when one becomes the next, and what comes along."""

from pathlib import Path
from typing import Any

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.growing.transfer import difference, grow
from mbconv.training.console import Reporter
from mbconv.training.growth import grow_in_place
from mbconv.training.loop import Trainer
from mbconv.training.recipe import Recipe
from mbconv.weights import file
from mbconv.weights.model import MODEL_FILE


def due(trainer: Trainer, step: int) -> Spec | None:
    """The network that step `step` is to train, where the trainer has another one."""
    wanted = trainer.recipe.phase(step // trainer.per_epoch + 1).network
    return wanted if isinstance(wanted, Spec) and wanted.hash != trainer.model.spec.hash else None


def grow_if_due(run: Path, trainer: Trainer, step: int, seed: int, reporter: Reporter) -> None:
    """Grow the trainer's network, its average and moments, before a step that trains a larger one.

    Nothing is drawn but from `seed`, so that a run which is resumed from before the growth ends as
    one that is not. The network that `run` keeps grows too; the first process writes it.
    """
    target = due(trainer, step)
    if target is None:
        return
    old, world = trainer.model, trainer.world
    moved = grow_in_place(trainer, target, seed)
    world.copy([*trainer.model.state_dict().values(), *trainer.averaged.state_dict().values()])
    if not world.first:
        return
    grow_kept(run, target, seed)
    apart = difference(old, trainer.model)
    now = stage(trainer)
    resolution = trainer.recipe.phase(step // trainer.per_epoch + 1).resolution
    reporter.say(
        f"stage {now['stage']}: {old.spec.name} has grown into {target.name}, "
        f"{now['params']:,} parameters, {resolution} px; moments of {moved:,} tensors came along, "
        f"on noise the logits differ by {apart:.1e} of the largest one"
    )


def stage(trainer: Trainer) -> dict[str, Any]:
    """What a line of metrics says of the network where that grows: its number, name and size."""
    if not trainer.recipe.grows:
        return {}
    phases = trainer.recipe.phases
    hashes = [phase.network.hash for phase in phases if isinstance(phase.network, Spec)]
    spec = trainer.model.spec
    number = list(dict.fromkeys(hashes)).index(spec.hash) + 1
    return {"stage": number, "network": spec.name, "params": cost(spec).params}


def grow_kept(run: Path, target: Spec, seed: int) -> None:
    """Let the network that the run keeps grow to `target`, unless it is larger already.

    Its answers stay, so that it remains the best so far.
    """
    path = run / MODEL_FILE
    if not path.is_file():
        return
    kept = file.load(path)
    if kept.spec.hash != target.hash and cost(kept.spec).params <= cost(target).params:
        about = {**(kept.provenance or {}), "grown_from": kept.spec.name}
        file.save(grow(kept, target, seed=seed), path, about)


def grow_to_last(run: Path, recipe: Recipe, seed: int) -> None:
    """The same through all stages that a run which ended early has not come to."""
    for phase in recipe.phases:
        if isinstance(phase.network, Spec):
            grow_kept(run, phase.network, seed)
