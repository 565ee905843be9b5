"""What is timed: a network in one way of computing, a pass or a training step a call."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.measure.ceilings import synchronise
from mbconv.measure.subject import Subject

Mode = Literal["inference", "training"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a network computes: autocast to `dtype`, memory layout, eager or compiled."""

    dtype: str = "float32"
    channels_last: bool = True
    compiled: bool = False
    device: str = "cpu"

    @property
    def layout(self) -> str:
        return "channels_last" if self.channels_last else "contiguous"

    def to_dict(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "layout": self.layout, "compiled": self.compiled,
                "device": self.device}  # fmt: skip


class Task:
    """A network, run in one way; calling it is one pass or one training step.

    The subject's own module stays as it is, unless `copied` is False.

    A pass is under inference mode. A step is forward, cross-entropy, backward and SGD with
    momentum. Pictures [batch, channels, resolution, resolution] are noise, and stay the same.
    """

    def __init__(
        self,
        subject: Subject,
        way: Way,
        mode: Mode,
        batch: int,
        resolution: int,
        *,
        copied: bool = True,
    ) -> None:
        self.subject, self.way, self.mode, self.batch = subject, way, mode, batch
        self.resolution = resolution
        self.without_grad: Callable[[], AbstractContextManager[Any]] = torch.inference_mode
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        module = copy.deepcopy(subject.module) if copied else subject.module
        network = module.to(way.device, memory_format=layout)  # type: ignore[call-overload]
        network.train(mode == "training")
        x = torch.randn(batch, subject.channels, resolution, resolution, device=way.device)
        self.pictures = x.contiguous(memory_format=layout)
        self.network = torch.compile(network) if way.compiled else network
        if mode == "training":
            self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    @property
    def name(self) -> str:
        return self.subject.name

    def __call__(self) -> None:
        if self.mode == "training":
            self._step()
        else:
            with self.without_grad():
                self.forward()
        synchronise(self.way.device)

    def forward(self) -> Tensor:
        """Logits [batch, classes]."""
        with torch.autocast(
            torch.device(self.way.device).type,
            getattr(torch, self.way.dtype),
            enabled=self.way.dtype != "float32",
        ):
            y: Tensor | tuple[Tensor, ...] = self.network(self.pictures)
        return y[0] if isinstance(y, tuple) else y  # some have auxiliary classifiers

    def _step(self) -> None:
        logits = self.forward().float()
        targets = torch.arange(self.batch, device=logits.device) % logits.shape[1]
        loss = F.cross_entropy(logits, targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
