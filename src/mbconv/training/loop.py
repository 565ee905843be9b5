"""The training step and the loop over steps: optimizer, moving average, learning rate."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from mbconv.data.augment import mix
from mbconv.data.loader import Batch, Pictures, training_batches
from mbconv.data.transform import normalise
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.nn.synced import sync_norms
from mbconv.training import diagnosis, schedule
from mbconv.training.checkpointing import stem_and_stages
from mbconv.training.distributed import World
from mbconv.training.loss import batch_loss, class_weights
from mbconv.training.machine import Machine
from mbconv.training.optimizer import make_optimizer
from mbconv.training.recipe import Phase, Recipe
from mbconv.training.reducer import Reducer
from mbconv.training.teacher import as_seen_by, taught
from mbconv.training.transfer import (
    freeze,
    parameter_groups,
    set_drop_path,
    set_norm_momentum,
    set_training,
)


@dataclass
class EpochStats:
    """What one epoch was like; `waited` are the seconds in which the step had no data."""

    loss_sum: float = 0.0
    pictures: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    failures: list[tuple[Any, str]] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: Sequence["EpochStats"]) -> "EpochStats":
        """Those of all processes in one; the seconds are theirs in parallel."""
        return cls(
            sum(part.loss_sum for part in parts),
            sum(part.pictures for part in parts),
            max(part.seconds for part in parts),
            sum(part.waited for part in parts) / len(parts),
            [failure for part in parts for failure in part.failures],
        )


class Trainer:
    """A network that learns by a recipe, its moving average and its optimizer.

    `total` is the number of steps; `counts` has the training pictures of each class, which a
    recipe that weighs classes needs. In a `world` of several processes each steps with its share
    of a batch, and the weights stay the same in all. `teacher` is a network of the same classes
    whose answers are learnt as well.
    """

    def __init__(
        self,
        model: MBConvNet,
        recipe: Recipe,
        machine: Machine,
        total: int,
        counts: Sequence[int] | None = None,
        world: World | None = None,
        teacher: MBConvNet | None = None,
    ) -> None:
        self.world = world or World()
        self.recipe = recipe
        self.machine = machine
        self.total = total
        self.figures: dict[str, float] = {}  # of the last step: loss, learning rate, gradient norm
        self.teacher = teacher and teacher.eval().to(machine.device)
        weights = class_weights(recipe.loss, counts)
        self.class_weights = None if weights is None else weights.to(machine.device)
        self.take(model)

    def take(self, model: MBConvNet) -> None:
        """Train this network from now on, with a fresh optimizer and moving average."""
        recipe, machine, shared = self.recipe, self.machine, self.world.size > 1
        if recipe.transfer.norms == "synced" and shared:
            sync_norms(model)
        self.model = model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
        self.compile(machine.compiled)
        freeze(model, recipe.transfer.frozen_stages)
        if recipe.regularization.drop_path is not None:
            set_drop_path(model, recipe.regularization.drop_path)
        if recipe.transfer.norm_momentum is not None:
            set_norm_momentum(model, recipe.transfer.norm_momentum)
        groups, self.shares = parameter_groups(model, recipe.optimizer, recipe.transfer)
        self.optimizer = make_optimizer(recipe.optimizer, groups)
        self.averaged = AveragedModel(
            model,
            multi_avg_fn=_warm_average(recipe.regularization.ema_decay),
            use_buffers=True,
        )
        self.reducer = Reducer(model, self.world, recipe.batch_size) if shared else None

    @property
    def ema(self) -> MBConvNet:
        """The moving average of the weights."""
        return cast(MBConvNet, self.averaged.module)

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return max(1, self.total // self.recipe.epochs)

    def rate(self, index: int) -> float:
        """The learning rate of a step."""
        return schedule.learning_rate(
            index,
            self.total,
            self.per_epoch,
            peak=self.recipe.optimizer.learning_rate,
            schedule=self.recipe.schedule,
        )

    def step(self, batch: Batch, index: int, seed: int) -> float:
        """One optimizer step; returns the loss. Its randomness depends on (seed, index) alone."""
        return self.move(batch, index, seed, self.rate(index))

    def move(self, batch: Batch, index: int, seed: int, rate: float) -> float:
        """The same at a given learning rate.

        Raises `diagnosis.Diverged`, with the weights as they were before, where the loss or a
        gradient is not finite.
        """
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = rate * share
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # batch norms change theirs
        self.seed(index, seed)
        loss = self.backward(batch, index, self.reducer)
        if self.reducer is not None:
            loss = self.reducer.finish(loss, len(batch.labels))
            if not self.reducer.pictures:  # no process could read any
                return 0.0
        value = loss.item()
        learning = [p for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm([cast(Tensor, p.grad) for p in learning])
        length = norm.item()
        self.figures = {"loss": value, "lr": rate, "gradient_norm": length}
        if not (math.isfinite(value) and math.isfinite(length)):
            raise diagnosis.diverged(self, batch, index, seed, buffers)
        if self.recipe.optimizer.clip is not None:
            clip_grads_with_norm_(learning, self.recipe.optimizer.clip, norm)
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        return value

    def compile(self, wanted: bool = True) -> None:
        """Compute the forward pass by torch.compile from now on, or as it is written."""
        self._run = torch.compile(self._forward) if wanted else self._forward

    def seed(self, index: int, seed: int) -> None:
        """Make what follows depend on (seed, index) alone."""
        torch.manual_seed(hash((seed, index)) & 0x7FFFFFFF)

    def backward(self, batch: Batch, index: int = 0, reducer: Reducer | None = None) -> Tensor:
        """The loss of a batch at a step, with fresh gradients in the parameters.

        Computed in equal parts where the recipe's micro_batch says so. With a `reducer` both are
        this process's share of those of the whole batch.
        """
        phase = self.recipe.phase(index // self.per_epoch + 1)
        set_training(self.model, self.recipe.transfer)
        self._set_dropout(phase)
        self.optimizer.zero_grad()
        count = len(batch.labels)
        whole = self.recipe.batch_size if reducer else count
        total = torch.zeros((), device=self.machine.device)
        parts = self._parts(count)
        if not count:
            return total
        for number, (pixels, labels) in enumerate(
            zip(batch.pixels.tensor_split(parts), batch.labels.tensor_split(parts), strict=True), 1
        ):
            loss = self._loss(pixels, labels, phase)
            if len(labels) != whole:
                loss = loss * (len(labels) / whole)
            if reducer and number == parts:
                reducer.arm()
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _parts(self, count: int) -> int:
        """In how many parts so many pictures are computed: in all processes the same number."""
        most = count if self.world.size == 1 else -(-self.recipe.batch_size // self.world.size)
        parts = -(-most // (self.recipe.optimizer.micro_batch or most)) if most else 0
        if count < parts and self.world.size > 1 and self.recipe.transfer.norms == "synced":
            raise UserError(
                f"Only {count} of the step's pictures can be read here, and batch norms over all "
                "processes need some in each: mbconv data check names broken files."
            )
        return min(parts, count)

    def _set_dropout(self, phase: Phase) -> None:
        wanted = phase.dropout
        if wanted is None:
            wanted = self.recipe.regularization.dropout
        self.model.head.dropout.p = self.model.spec.dropout if wanted is None else wanted

    def _loss(self, pixels: Tensor, labels: Tensor, phase: Phase) -> Tensor:
        augmentation = self.recipe.augmentation
        pixels = pixels.to(self.machine.device, non_blocking=True)
        x, targets = mix(
            normalise(pixels, self.model.preprocessing),
            labels.to(self.machine.device),
            mixup=augmentation.mixup if phase.mixup is None else phase.mixup,
            cutmix=augmentation.cutmix,
            classes=self.model.spec.num_classes,
        )
        x = x.contiguous(memory_format=self.machine.memory_format)
        logits = self._run(x).float()
        loss = batch_loss(logits, targets, self.recipe.loss, self.class_weights)
        if self.teacher is None or not self.recipe.loss.teacher:
            return loss
        with torch.no_grad(), self.machine.autocast(self.machine.frozen_dtype):
            answers = self.teacher(as_seen_by(self.teacher, x, self.model.preprocessing))
        return taught(loss, logits, answers.float(), self.recipe.loss.teacher)

    def _forward(self, x: Tensor) -> Tensor:
        """The frozen stages without graph and in their own format, then the ones that learn."""
        model, frozen = self.model, self.recipe.transfer.frozen_stages
        if frozen:
            with torch.no_grad(), self.machine.autocast(self.machine.frozen_dtype):
                x = model.stages[:frozen](model.stem(x))
            x = x.to(torch.float32)
        with self.machine.autocast(self.machine.dtype):
            if self.recipe.checkpointing:
                y = stem_and_stages(model, x, frozen)
            else:
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
    on_batch: Callable[[Batch], None] = lambda batch: None,
) -> Iterator[tuple[schedule.Step, EpochStats]]:
    """Train from step `start` on; yield after each epoch its last step and its statistics.

    `on_step(index, stats)` is called after each step, `on_batch` with the pictures before it; what
    they raise ends the training there.
    """
    recipe, samples, world = trainer.recipe, pictures.samples, trainer.world
    labels = [sample.label for sample in samples]

    def plan() -> Iterator[schedule.Step]:
        return schedule.steps(recipe, len(samples), seed, start, labels)

    batches = training_batches(
        pictures,
        (world.share(step.draws) for step in plan()),
        workers=trainer.machine.workers,
        ahead=max(1, min(4, 128 // recipe.batch_size)),  # large batches take much memory
    )
    stats, begun = EpochStats(), time.perf_counter()
    for step in plan():
        asked = time.perf_counter()
        batch = next(batches)
        stats.waited += time.perf_counter() - asked
        stats.failures.extend(batch.failures)
        on_batch(batch)
        if len(batch.labels) or world.size > 1:
            loss = trainer.step(batch, step.index, world.seed(seed))
            stats.loss_sum += loss * len(batch.labels)
            stats.pictures += len(batch.labels)
        stats.seconds = time.perf_counter() - begun
        on_step(step.index, stats)
        if step.ends_epoch:
            yield step, EpochStats.joined(world.gather(stats))
            stats, begun = EpochStats(), time.perf_counter()


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
