"""The training step and the loop over steps: optimizer, moving average, learning rate."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mbconv.data.loader import Batch, Pictures, training_batches
from mbconv.data.transform import normalise
from mbconv.errors import UserError
from mbconv.nn.block import MBConvBlock
from mbconv.nn.model import MBConvNet
from mbconv.training import schedule
from mbconv.training.machine import Machine
from mbconv.training.recipe import Recipe


@dataclass
class EpochStats:
    """What one epoch was like; `waited` are the seconds in which the step had no data."""

    loss_sum: float = 0.0
    pictures: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    failures: list[tuple[Any, str]] = field(default_factory=list)


class Trainer:
    """A network that learns by a recipe, its moving average and its optimizer."""

    def __init__(self, model: MBConvNet, recipe: Recipe, machine: Machine, total: int) -> None:
        self.model = model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
        self.recipe = recipe
        self.machine = machine
        self.total = total
        freeze(model, recipe.frozen_stages)
        if recipe.drop_path is not None:
            set_drop_path(model, recipe.drop_path)
        self.optimizer = torch.optim.AdamW(
            _groups(model, recipe), lr=recipe.learning_rate, fused=True
        )
        self.averaged = AveragedModel(
            model,
            multi_avg_fn=_warm_average(recipe.ema_decay),
            use_buffers=True,
        )

    @property
    def ema(self) -> MBConvNet:
        """The moving average of the weights."""
        return cast(MBConvNet, self.averaged.module)

    def step(self, batch: Batch, index: int, seed: int) -> float:
        """One optimizer step; returns the loss. Its randomness depends on (seed, index) alone."""
        torch.manual_seed(hash((seed, index)) & 0x7FFFFFFF)
        rate = schedule.learning_rate(
            index, self.total, self.recipe.learning_rate, self.recipe.warmup
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.backward(batch)
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        value = loss.item()
        if value != value or abs(value) == float("inf"):
            raise UserError(
                f"The loss is no longer a finite number at step {index + 1}. Train with a lower "
                "learning rate, or with float32 if another number format was used."
            )
        return value

    def backward(self, batch: Batch) -> Tensor:
        """The loss of a batch, with fresh gradients in the parameters."""
        set_training(self.model, self.recipe)
        pixels = batch.pixels.to(self.machine.device, non_blocking=True)
        x = normalise(pixels, self.model.preprocessing).contiguous(
            memory_format=self.machine.memory_format
        )
        logits = self._forward(x)
        loss = F.cross_entropy(
            logits.float(),
            batch.labels.to(self.machine.device),
            label_smoothing=self.recipe.label_smoothing,
        )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _forward(self, x: Tensor) -> Tensor:
        """The frozen stages without graph and in their own format, then the ones that learn."""
        model, frozen = self.model, self.recipe.frozen_stages
        if frozen:
            with torch.no_grad(), self.machine.autocast(self.machine.frozen_dtype):
                x = model.stages[:frozen](model.stem(x))
            x = x.to(torch.float32)
        with self.machine.autocast(self.machine.dtype):
            y = model.stages[frozen:](x if frozen else model.stem(x))
            logits: Tensor = model.head(y)
        return logits


def epochs(
    trainer: Trainer,
    pictures: Pictures,
    seed: int,
    *,
    start: int = 0,
    on_step: Callable[[int, EpochStats], None],
) -> Iterator[tuple[schedule.Step, EpochStats]]:
    """Train from step `start` on; yield after each epoch its last step and its statistics.

    `on_step(index, stats)` is called after each step; what it raises ends the training there.
    """
    plan = list(schedule.steps(trainer.recipe, len(pictures.samples), seed, start))
    batches = training_batches(
        pictures, [step.draws for step in plan], workers=trainer.machine.workers
    )
    stats, begun = EpochStats(), time.perf_counter()
    for step in plan:
        asked = time.perf_counter()
        batch = next(batches)
        stats.waited += time.perf_counter() - asked
        stats.failures.extend(batch.failures)
        if len(batch.labels):
            stats.loss_sum += trainer.step(batch, step.index, seed) * len(batch.labels)
            stats.pictures += len(batch.labels)
        stats.seconds = time.perf_counter() - begun
        on_step(step.index, stats)
        if step.ends_epoch:
            yield step, stats
            stats, begun = EpochStats(), time.perf_counter()


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


def set_training(model: MBConvNet, recipe: Recipe) -> None:
    """Train mode, but for frozen stages, and for batch norms whose statistics are to stay."""
    model.train()
    if recipe.frozen_stages:
        model.stem.eval()
        model.stages[: recipe.frozen_stages].eval()
    if recipe.norms == "frozen":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _groups(model: MBConvNet, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters that learn, those of norms and biases apart, without weight decay."""
    learning = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _warm_average(decay: float) -> Callable[..., None]:
    """Update of the moving average, in the form that AveragedModel asks for."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        weight = 1 - schedule.ema_decay(int(updates), decay)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:
            for mean, value in zip(averaged, current, strict=True):
                mean.copy_(value)

    return update
