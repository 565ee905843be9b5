"""Batch norm as the operators take it.

Several norms travel in one tensor: `affine` [2, C] holds gamma and beta, `statistics` [2, C] mean
and biased variance, C being the channels of all of them, one after the other.
"""

import torch
from torch import Tensor


def wide(x: Tensor) -> torch.dtype:
    """The format that maps like x are computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def channels_last(x: Tensor) -> Tensor:
    """[N, C, H, W] in any layout -> [N, H, W, C] without gaps; no copy where it lies so."""
    return x.permute(0, 2, 3, 1).contiguous()


def pack(affine: Tensor, statistics: Tensor, eps: float) -> Tensor:
    """[2, C] and [2, C] -> mean, 1 / deviation, gamma, beta: [4, C]."""
    packed = torch.cat([statistics, affine])
    packed[1].add_(eps).rsqrt_()
    return packed
