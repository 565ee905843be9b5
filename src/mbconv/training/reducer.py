"""Gradients of a batch that several processes share, as one process would have them.

Rather than DistributedDataParallel, which averages over processes: shares may differ in size or
come out empty (11, 11 and 10 of 32 pictures; one unreadable), and the network is called in parts
(frozen stages apart, micro-batches, a step computed again for its diagnosis).
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mbconv.nn.synced import SyncBatchNorm
from mbconv.training.distributed import World, talking

BUCKET = 8 << 20  # bytes: several for B0's 21 MB, each long enough to fill a network link


class Reducer:
    """Sums gradients over processes while backward still computes the earlier layers'.

    Each process computes its share of the mean over `batch_size` pictures. `arm` before the
    last backward of a step, `finish` behind it.
    """

    def __init__(self, model: nn.Module, world: World, batch_size: int) -> None:
        self.model, self.world, self.batch_size = model, world, batch_size
        self.pictures = 0  # of the last step, in all processes
        self.buckets = buckets([p for p in model.parameters() if p.requires_grad])
        self._missing: list[int] = []  # gradients that each bucket waits for; armed if not empty
        self._sent: list[tuple[Tensor, Any]] = []
        for number, bucket in enumerate(self.buckets):
            for parameter in bucket:
                hook = partial(self._filled, number)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def arm(self) -> None:
        self._missing = [len(bucket) for bucket in self.buckets]

    def finish(self, loss: Tensor, pictures: int) -> Tensor:
        """Complete the gradients; `loss` and `pictures` are this process's, returned is the whole.

        Running statistics become the mean over processes, weighed by their pictures, and a wish
        to stop becomes known to all.
        """
        self._missing = [0] * len(self.buckets)  # what no backward has reached is zero
        self._send()
        statistics = self.statistics()
        head = torch.stack([loss, loss.new_tensor(pictures), loss.new_tensor(self.world.asked)])
        weighed = [buffer * (pictures / self.batch_size) for buffer in statistics]
        tail = torch.cat([head, *(buffer.to(head) for buffer in weighed)])
        with talking():
            dist.all_reduce(tail)
            for _, work in self._sent:
                work.wait()
        self.pictures, self.world.agreed = int(tail[1].item()), bool(tail[2].item())
        factor = self.batch_size / max(1, self.pictures)  # 1 unless some could not be read
        for bucket, (flat, _) in zip(self.buckets, self._sent, strict=True):
            grads = [p.grad for p in bucket if p.grad is not None]
            _spread(flat if factor == 1 else flat * factor, grads)
        if self.pictures:
            _spread(tail[3:] if factor == 1 else tail[3:] * factor, statistics)
        self._missing, self._sent = [], []
        return tail[0] * factor

    def _filled(self, number: int, parameter: nn.Parameter) -> None:
        if self._missing:
            self._missing[number] -= 1
            self._send()

    def _send(self) -> None:
        """Send off what is full, in the same order everywhere."""
        while len(self._sent) < len(self.buckets) and not self._missing[len(self._sent)]:
            bucket = self.buckets[len(self._sent)]
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            flat = torch.cat([p.grad.flatten() for p in bucket if p.grad is not None])
            with talking():
                self._sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def statistics(self) -> list[Tensor]:
        """Running statistics that differ from process to process."""
        return [
            buffer
            for module in self.model.modules()
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            and module.training
            and not isinstance(module, SyncBatchNorm)
            for buffer in module.buffers()
            if buffer.is_floating_point()
        ]


def buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Last layers first, as backward reaches them."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not buckets or size > room:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(parameter)
        room -= size
    return buckets


@torch.no_grad()
def _spread(flat: Tensor, into: list[Tensor]) -> None:
    """Copy consecutive parts of `flat` into tensors of any shape."""
    parts = torch.split(flat, [tensor.numel() for tensor in into])
    for tensor, part in zip(into, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))
