"""Networks to grow: random, but with batch-norm statistics that fit their weights."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec
from mbconv.nn.model import MBConvNet, build


def in_stage(spec: Spec, number: int, **changes: Any) -> Spec:
    """`spec` with fields changed, widths too, in all blocks of the stage, numbered from 1."""
    return spec.map_blocks(lambda block: replace(block, **changes), [number])


@torch.no_grad()
def calibrated(spec: Spec, side: int = 64, *, seed: int = 0, batch: int = 4) -> MBConvNet:
    """A network in evaluation mode whose every number is far from its default.

    Batch-norm statistics are measured on noise and then shifted: with statistics of their own,
    deep random networks blow up. Norms before shortcuts get small scales for the same reason.
    """
    torch.manual_seed(seed)
    model = build(spec).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.weight.copy_(torch.rand_like(norm.weight) + 0.5)
        norm.bias.normal_(0, 0.3)
        norm.momentum = 1.0
    for s, b, channels, block in spec.blocks():
        if block.has_skip(channels):
            name = f"stages.{s}.{b}.{_last(block, channels)}.norm"
            model.get_submodule(name).weight.mul_(0.2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and ".norm." not in name:
            parameter.normal_(0, 0.3)
    model(torch.randn(batch, spec.in_channels, side, side))
    for norm in norms:
        norm.momentum = spec.bn_momentum
        norm.running_mean.add_(0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt())
        norm.running_var.mul_(0.8 + 0.4 * torch.rand_like(norm.running_var))
        norm.running_var.clamp_(min=0.05 * float(norm.running_var.mean()))
    return model.eval()


def _last(block: Block, channels: int) -> str:
    return [p.name for p in block.parts(channels) if p.name != "gate"][-1]


@torch.no_grad()
def relative(source: nn.Module, grown: nn.Module, x: Tensor) -> float:
    """Largest difference of the logits over their largest magnitude; new classes do not count."""
    old, new = source(x), grown(x)
    return float((new[:, : old.shape[1]] - old).abs().max() / old.abs().max())
