"""Activation checkpointing changes what is kept for backward, and nothing else."""

from typing import Any

import pytest
import torch

import mbconv
from mbconv import kernels
from mbconv.data.loader import Batch
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.override import changed
from mbconv.training.recipe import Phase, Recipe
from small import SMALL

PLAIN = Machine(threads=1, workers=0)
NOISY = SMALL.replace(drop_path=0.4, dropout=0.3)


def stepped(checkpointing: bool, changes: list[str]) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients and the network after two steps; elements kept for backward in the second."""
    torch.manual_seed(0)
    network = mbconv.build(NOISY)
    recipe = Recipe(name="t", phases=(Phase(32, 1),), batch_size=8, checkpointing=checkpointing)
    trainer = Trainer(network, changed(recipe, changes), PLAIN, total=2)
    pixels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.numel()
        return x

    for index in range(2):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            trainer.step(Batch(pixels, torch.arange(8) % 4, ()), index, seed=1)
    gradients = {f"{n} grad": p.grad for n, p in network.named_parameters() if p.grad is not None}
    return gradients | network.state_dict() | {"ema": trainer.ema.stem.conv.weight}, sum(
        kept.values()
    )


@pytest.mark.parametrize("mode", ["auto", "reference", "plain"])
@pytest.mark.parametrize(
    ("changes", "batches"),
    [
        ([], 2),
        (["optimizer.micro_batch=3"], 6),
        (["transfer.frozen_stages=1", "transfer.norms=frozen"], 0),
        (["transfer.frozen_stages=1"], 2),
    ],
    ids=["whole", "in parts", "frozen", "frozen stage"],
)
def test_a_step_is_the_plain_one_bit_for_bit(mode: Any, changes: list[str], batches: int) -> None:
    kernels.use(mode)
    plain, much = stepped(False, changes)
    lean, little = stepped(True, changes)
    assert plain.keys() == lean.keys()
    for name, value in plain.items():
        assert torch.equal(value, lean[name]), name
    assert lean["head.conv.norm.num_batches_tracked"] == batches
    assert lean["stages.2.0.expand.norm.num_batches_tracked"] == batches
    assert any("grad" in name for name in plain)
    assert little < 0.7 * much
