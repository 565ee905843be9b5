"""What a network has learnt goes into a larger one: weights, moving average and moments."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.growing.plan import Move, Plan, plan
from mbconv.growing.transfer import grow, origins_of, transfer
from mbconv.nn.model import MBConvNet
from mbconv.training import folder
from mbconv.training.loop import Trainer
from mbconv.training.recipe import Recipe
from mbconv.training.state import NEWEST
from mbconv.training.transfer import freeze, parameter_groups
from mbconv.weights.model import load

# How a gradient's share goes into what optimizers keep: its power. What is not named is copied.
_POWERS = {
    "exp_avg": 1, "momentum_buffer": 1, "mean": 1, "exp_avg_sq": 2, "mean_square": 2,
}  # fmt: skip


def grown(source: str | Path, target: Any, seed: int) -> MBConvNet:
    """The network of a run or model, grown to `target`, with the same answers.

    Raises UserError where there is no exact way, and for a `target` that is a network.
    """
    if isinstance(target, MBConvNet):
        raise UserError("Say by a name or a spec what to grow into; this is a network already.")
    return grow(load(source), target, seed=seed)


def carry_over(trainer: Trainer, source: str | Path, seed: int) -> str | None:
    """Start a trainer of the grown network from what the source's run ended with, in place.

    The weights as they were trained, their moving average, and the optimizer's moments where the
    optimizer is of the same kind. None where `source` is no run whose state fits, and so the
    weights of its kept network stay; else a line that says what came along.
    """
    path = Path(source) / "last" / NEWEST
    if not path.is_file():
        return None
    config = folder.read_config(Path(source) / "config.json")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for a broken file
        return f"  grown from the kept network of {source}: {path} cannot be read"
    old = folder.network_of(config, state.get("spec"))
    model, recipe = trainer.model, Recipe.from_dict(config["recipe"])
    if old.spec.num_classes != model.spec.num_classes or model.labels != load(source).labels:
        return None  # the classifier starts afresh, so that the state is another network's
    moved = _carry(trainer, old, recipe, state, seed)
    text = f"  grown from {source} after {state['step']:,} steps: weights, their average"
    return f"{text}, moments of {moved:,} tensors" if moved else text


def grow_in_place(trainer: Trainer, target: Spec, seed: int) -> int:
    """Let the trainer go on with its network grown to `target`; returns as `_carry`.

    Raises UserError where there is no exact way.
    """
    old = trainer.model
    state = {
        "model": old.state_dict(),
        "averaged": trainer.averaged.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
    }
    trainer.take(grow(old, target, seed=seed))
    return _carry(trainer, old, trainer.recipe, state, seed)


def _carry(
    trainer: Trainer, old: MBConvNet, recipe: Recipe, state: dict[str, Any], seed: int
) -> int:
    """Give the trainer of a grown network what `old`, trained by `recipe`, had in its `state`.

    Returns for how many tensors the optimizer's moments came along: none where it is another.
    """
    model = trainer.model
    wanted = plan(old.spec, model.spec)
    averaged = {
        name.removeprefix("module."): tensor
        for name, tensor in state["averaged"].items()
        if name.startswith("module.")
    }
    where = next(iter(state["model"].values())).device
    fresh = {name: tensor.to(where) for name, tensor in model.state_dict().items()}
    for network, tensors in ((model, state["model"]), (trainer.ema, averaged)):
        network.load_state_dict(transfer(wanted, tensors, fresh, seed=seed))
    trainer.averaged.n_averaged.copy_(state["averaged"]["n_averaged"])
    same = recipe.optimizer.name == trainer.recipe.optimizer.name
    return _carry_moments(trainer, wanted, old, recipe, state["optimizer"]) if same else 0


def _carry_moments(
    trainer: Trainer, wanted: Plan, old: MBConvNet, recipe: Recipe, state: dict[str, Any]
) -> int:
    """Give the optimizer what the old one kept; returns for how many tensors."""
    kept = _by_name(old, recipe, state)
    moves = {move.name: move for move in wanted.moves}
    found = 0
    for name, parameter in trainer.model.named_parameters():
        move = moves[name]
        past = kept.get(move.source or "")
        if past is None or move.start != "source" or move.repeated or not parameter.requires_grad:
            continue
        trainer.optimizer.state[parameter] = {
            # In the parameter's own layout: fused optimizers go through both as they lie in memory.
            key: torch.empty_like(parameter).copy_(_moment(value, move, key))
            if isinstance(value, Tensor) and value.shape == torch.Size(move.source_shape)
            else value
            for key, value in past.items()
        }
        found += 1
    if found and recipe.optimizer.name == "sgd":  # whose fused form wants buffers of all or none
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                own = trainer.optimizer.state[parameter]
                own.setdefault("momentum_buffer", torch.zeros_like(parameter))
    for group, earlier in zip(trainer.optimizer.param_groups, state["param_groups"], strict=False):
        if found and "steps" in earlier:
            group["steps"] = earlier["steps"]
    return found


def _by_name(old: MBConvNet, recipe: Recipe, state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The optimizer's state of each parameter that learnt, by the parameter's name."""
    freeze(old, recipe.transfer.frozen_stages)
    groups, _ = parameter_groups(old, recipe.optimizer, recipe.transfer)
    names = {id(parameter): name for name, parameter in old.named_parameters()}
    ordered = [names[id(parameter)] for group in groups for parameter in group["params"]]
    return {ordered[number]: kept for number, kept in state["state"].items()}


def _moment(tensor: Tensor, move: Move, key: str) -> Tensor:
    """A moment in the new shape.

    A copied row's gradient is its share of the old one, as the copy's readers share; a column's is
    the old one whole, as the copy carries what the original does. What is new has none yet.
    """
    if move.source_shape[2:] != move.shape[2:]:
        margin = (move.shape[-1] - move.source_shape[-1]) // 2
        tensor = F.pad(tensor, (margin,) * (2 * len(move.shape[2:])))
    if move.rows:
        origins, live = origins_of(move.rows, tensor.device)
        copies = torch.bincount(origins[live], minlength=len(tensor)).clamp(min=1)
        share = (1 / copies.to(tensor)) ** _POWERS.get(key, 0)
        share = share[origins] * live
        tensor = tensor[origins] * share.view(-1, *[1] * (tensor.ndim - 1))
    if move.columns:
        origins, live = origins_of(move.columns, tensor.device)
        tensor = tensor[:, origins] * live.view(1, -1, *[1] * (tensor.ndim - 2)).to(tensor)
    return tensor
