"""The network as it is shipped: batch norms folded for good, and written down by torch.export."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from mbconv.nn.conv import Conv2d, ConvNormAct
from mbconv.nn.model import Hidden, MBConvNet
from mbconv.runtime.artifact import Precision, seal_archive


class FoldedConv(nn.Module):
    """A `ConvNormAct` whose batch norm became part of its convolution."""

    def __init__(self, triple: ConvNormAct) -> None:
        super().__init__()
        weight, bias = triple.folded()
        self.conv: Conv2d = triple.conv
        self.conv.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        self.act = triple.act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.conv.convolve(x, self.conv.weight, self.bias))
        return y


class InBfloat16(nn.Module):
    """float32 in and out, bfloat16 inside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x.to(torch.bfloat16))
        return y.float()


@torch.no_grad()
def folded(model: MBConvNet) -> MBConvNet:
    """A copy in evaluation mode, on the CPU and without batch norms; the same function."""
    network = copy.deepcopy(model).cpu().float().eval()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ConvNormAct):
                setattr(parent, name, FoldedConv(child))
    for module in network.modules():
        if isinstance(module, Hidden) and module.norm is not None:
            _fold_hidden(module, module.norm)
    return network


def trace(
    model: MBConvNet, resolution: int, *, batch: int | None = None, precision: Precision = "float32"
) -> torch.export.ExportedProgram:
    """The program of `model` for normalised pictures [batch, 3, resolution, resolution].

    `batch` None stands for any number. Paddings are numbers in it, since the size is fixed.
    """
    network: nn.Module = folded(model)
    if precision == "bfloat16":
        network = InBfloat16(network).eval()
    x = torch.zeros(batch or 2, model.spec.in_channels, resolution, resolution)
    return capture(network, x, batch)


def capture(
    network: nn.Module, x: Tensor, batch: int | None, most: int | None = None
) -> torch.export.ExportedProgram:
    """The program that `network` computes for `x`: for its `batch` only, or any up to `most`."""
    shapes = None if batch else ({0: torch.export.Dim("batch", max=most)},)
    with torch.no_grad():
        return torch.export.export(network, (x,), dynamic_shapes=shapes)


def write(program: torch.export.ExportedProgram, path: Path, description: str) -> None:
    """Write the program with its description to `path`, a `.pt2`."""
    torch.export.save(program, path)
    seal_archive(path, description)


def _fold_hidden(hidden: Hidden, norm: nn.BatchNorm1d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    hidden.linear.weight = nn.Parameter(hidden.linear.weight * scale[:, None])
    hidden.linear.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
    hidden.norm = None
