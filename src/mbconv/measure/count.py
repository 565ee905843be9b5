"""Parameters, multiply-adds and activation bytes of any module, counted in one forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mbconv import kernels

_BYTES = 4  # of an fp32 number


@dataclass(frozen=True)
class Counted:
    """For one picture, with the meanings of `mbconv.arch.cost.Cost`.

    `params` are trained ones; `macs` those of convolutions and matrix products; `activation_bytes`
    the fp32 bytes of all convolutions' outputs, so few for a network without convolutions.
    """

    params: int
    macs: int
    activation_bytes: int


class _Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what convolutions put out."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.elements += out.numel()
        return out


def count(module: nn.Module, x: Tensor) -> Counted:
    """Count `module` on one picture `x` [1, C, H, W], in evaluation mode; its mode is restored."""
    was = module.training
    outputs = _Outputs()  # type: ignore[no-untyped-call]
    try:
        # As plain products: the counter does not know the fused attention of CPUs.
        plain = sdpa_kernel(SDPBackend.MATH)
        flops = FlopCounterMode(display=False)
        with torch.no_grad(), plain, kernels.plain(), flops, outputs:
            module.eval()(x)
    finally:
        module.train(was)
    return Counted(
        params=sum(p.numel() for p in module.parameters()),
        macs=flops.get_total_flops() // 2,
        activation_bytes=_BYTES * outputs.elements,
    )
