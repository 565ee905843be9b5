"""Activation checkpointing: a block keeps its input alone and is computed again in backward."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mbconv.nn.model import MBConvNet


def stem_and_stages(model: MBConvNet, x: Tensor, frozen: int) -> Tensor:
    """x [N, C, H, W] through the stem and all stages; behind `frozen` of those, if any, only.

    Gradients, random draws and running statistics are those of the plain call, bit for bit; what
    is kept for backward is the input of each block (Chen et al. 2016, arXiv 1604.06174).
    """
    parts: list[nn.Module] = [] if frozen else [model.stem]
    for stage in model.stages[frozen:]:
        parts += stage.children()
    for part in parts:
        x = checkpoint(part, x, use_reentrant=False, context_fn=partial(_contexts, part))
    return x


def _contexts(part: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _buffers_kept(part)


@contextmanager
def _buffers_kept(part: nn.Module) -> Iterator[None]:
    """Batch norms count each batch once: what the second computation adds is taken back."""
    before = [buffer.clone() for buffer in part.buffers()]
    try:
        yield
    finally:  # which is also reached where the computation ends early, with an exception
        with torch.no_grad():
            for buffer, value in zip(part.buffers(), before, strict=True):
                buffer.copy_(value)
