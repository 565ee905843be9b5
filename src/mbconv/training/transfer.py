"""What learns and how fast: frozen stages, batch-norm policy, groups of parameters."""

from typing import Any

from torch import nn

from mbconv.nn.block import MBConvBlock
from mbconv.nn.model import MBConvNet
from mbconv.training.recipe import Optimizer, Transfer


def freeze(model: MBConvNet, stages: int) -> None:
    """Take the stem and the first `stages` stages out of the training; 0 frees everything."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if stages:
        for part in (model.stem, model.stages[:stages]):
            for parameter in part.parameters():
                parameter.requires_grad_(False)


def set_drop_path(model: MBConvNet, rate: float) -> None:
    """Give the blocks the rates that a spec with `drop_path=rate` would; the spec stays."""
    rates = model.spec.replace(drop_path=rate).drop_path_rates()
    blocks = (module for module in model.stages.modules() if isinstance(module, MBConvBlock))
    for block, own in zip(blocks, rates, strict=True):
        if block.shortcut is not None:
            block.drop_path.rate = own


def set_norm_momentum(model: MBConvNet, least: float) -> None:
    """Let running statistics follow batches at least so fast; the spec stays."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = max(module.momentum or 0.0, least)


def set_training(model: MBConvNet, transfer: Transfer) -> None:
    """Train mode, but for frozen stages, and for batch norms whose statistics are to stay."""
    model.train()
    if transfer.frozen_stages:
        model.stem.eval()
        model.stages[: transfer.frozen_stages].eval()
    if transfer.norms == "frozen":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def parameter_groups(
    model: MBConvNet, optimizer: Optimizer, transfer: Transfer
) -> tuple[list[dict[str, Any]], list[float]]:
    """Parameters that learn, in groups for an optimizer, and the share of the rate for each.

    Norms and biases are apart, without weight decay unless `bias_decay` asks for it; with a layer
    decay below 1 so is each stage, whose share is that power of its distance from the head (Clark
    et al. 2020, arXiv 2003.10555).
    """
    parts: list[nn.Module] = [model.stem, *model.stages, model.head]
    if transfer.layer_decay == 1:
        parts = [model]
    groups: list[dict[str, Any]] = []
    shares = []
    for depth, part in enumerate(parts):
        learning = [p for p in part.parameters() if p.requires_grad]
        if not learning:
            continue
        decayed = {"params": [p for p in learning if p.ndim > 1],
                   "weight_decay": optimizer.weight_decay}  # fmt: skip
        rest = optimizer.weight_decay if optimizer.bias_decay else 0.0
        spared = {"params": [p for p in learning if p.ndim <= 1], "weight_decay": rest}
        groups += [decayed, spared]
        shares += [transfer.layer_decay ** (len(parts) - 1 - depth)] * 2
    return groups, shares


def describe(model: MBConvNet, transfer: Transfer) -> str | None:
    """One line on what stays as it is, after `freeze`; None where everything learns."""
    if not transfer.frozen_stages and transfer.norms == "train":
        return None
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    frozen = {0: "", 1: "stem and first stage frozen, "}.get(
        transfer.frozen_stages, f"stem and first {transfer.frozen_stages} stages frozen, "
    )
    norms = "stay" if transfer.norms == "frozen" else "follow the new pictures"
    return f"{frozen}batch-norm statistics {norms}: {learning:,} of {total:,} parameters learn"
