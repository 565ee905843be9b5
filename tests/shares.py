"""What a step leaves in each of several processes; started by torchrun with a file to write.

Imported, it has the same cases for one process.
"""

import os
import sys
from itertools import product
from typing import Any

import torch

import mbconv
from mbconv import kernels
from mbconv.data.loader import Batch
from mbconv.training.distributed import World, joined
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.override import changed
from mbconv.training.recipe import Optimizer, Phase, Recipe, Regularization
from small import SMALL

PICTURES = 7  # so that shares differ
MODES = ("auto", "plain")
CASES = {
    "frozen": ["transfer.norms=frozen", "transfer.frozen_stages=1"],
    "frozen, in parts": ["transfer.norms=frozen", "optimizer.micro_batch=2"],
    "synced": ["transfer.norms=synced", "optimizer.clip=0.01"],
    "synced, recomputed": ["transfer.norms=synced", "checkpointing=true"],
    "train": ["transfer.norms=train"],
    "train, recomputed": ["transfer.norms=train", "checkpointing=true"],
}
# Without noise, so that a step is a function of its pictures; SGD, which is one of gradients.
QUIET = Recipe(
    name="t",
    phases=(Phase(32, 1),),
    batch_size=PICTURES,
    optimizer=Optimizer(name="sgd", learning_rate=0.1, nesterov=False),
    regularization=Regularization(drop_path=0.0, dropout=0.0),
)
Tensors = dict[str, torch.Tensor]


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(0, 256, (PICTURES, 32, 32, 3), dtype=torch.uint8), torch.arange(7) % 4


def trainer(changes: list[str], world: World | None = None) -> Trainer:
    torch.manual_seed(0)
    machine = Machine(threads=1, workers=0)
    return Trainer(mbconv.build(SMALL), changed(QUIET, changes), machine, 1, world=world)


def left_by(trainer: Trainer) -> Tensors:
    """Gradients, weights, statistics, moving average."""
    left = {f"{n} grad": p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    left |= {f"{n} ema": value for n, value in trainer.ema.state_dict().items()}
    return {n: value.clone() for n, value in (left | trainer.model.state_dict()).items()}


def step(changes: list[str], world: World, unread: int = 0) -> tuple[float, Tensors]:
    """The loss of a step with this process's share, without the batch's first pictures."""
    pixels, labels = pictures()
    mine = [i for i in world.share(range(PICTURES)) if i >= unread]
    own = trainer(changes, world)
    loss = own.step(Batch(pixels[mine], labels[mine], ()), 0, world.seed(0))
    return loss, left_by(own)


def everything(world: World) -> dict[str, Any]:
    """Each case in each mode, and one in which the first process can read nothing."""
    found = {}
    for mode, name in product(MODES, CASES):
        kernels.use(mode)  # type: ignore[arg-type]
        found[f"{name}, {mode}"] = step(CASES[name], world)
    found["made once"] = world.on_each_machine(os.getpid)
    found["nothing read"] = step(CASES["frozen"], world, unread=PICTURES // world.size)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as world:
        found = world.gather(everything(world))
        if world.first:
            torch.save(found, sys.argv[1])
