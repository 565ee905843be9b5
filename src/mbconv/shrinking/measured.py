"""Removal by measurement: round after round, what costs least for what it saves goes."""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.data.decode import Unreadable
from mbconv.data.source import Sample
from mbconv.data.transform import normalise
from mbconv.errors import UserError
from mbconv.measure.noise import Calibration
from mbconv.nn.model import MBConvNet
from mbconv.runtime.predictor import Predictor
from mbconv.shrinking import trial
from mbconv.shrinking.change import HEAD, changes, module_after
from mbconv.shrinking.cut import Surgeon
from mbconv.shrinking.plan import Measure, Option, Plan, Step, choose
from mbconv.shrinking.statistics import named_blocks, statistics
from mbconv.shrinking.trial import Answers, Effect

ROUND = 0.1  # share of the source that a round removes at most; then all is measured anew
STATISTICS = 128  # training pictures that moments and batch-norm statistics are taken on
_BATCH = 16
_AGAIN = 3  # times that whole networks are timed once more on a busy machine

Tell = Callable[[str, int, int], None]  # what is done, pictures done, pictures in all


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How small, measured by what, and how carefully."""

    to: float
    by: Measure = "ms"
    pictures: int = 256
    multiple: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.to < 1:
            raise UserError(
                f"--to is {self.to:g}; give the share to keep, between 0 and 1, or the network "
                "to shrink back to."
            )


class Shrinking:
    """A network and the pictures that decide: `train` for statistics, `held_out` for costs."""

    def __init__(
        self,
        source: MBConvNet,
        train: Sequence[Sample],
        held_out: Sequence[Sample],
        wishes: Wishes,
        tell: Tell = lambda what, done, total: None,
    ) -> None:
        self.wishes, self.tell = wishes, tell
        self.source = _plain(source)
        self.resolution = source.preprocessing.resolution
        seen = _drawn(train, STATISTICS, wishes.seed)
        self.seen = [x for x, _ in _batches(self.source, seen)]
        asked = _drawn(held_out, wishes.pictures, wishes.seed)
        with torch.inference_mode():
            self.answers = [
                Answers(x, labels, self.source(x)) for x, labels in _batches(self.source, asked)
            ]
        if not self.answers or not self.seen:
            raise UserError("None of the pictures to measure on is readable.")
        self.names = {name: name for name in _modules(self.source)}  # here -> in the source
        self.steps: list[Step] = []
        self.calibration = Calibration() if wishes.by == "ms" else None
        self.noise = 1.0

    def run(self) -> tuple[MBConvNet, Plan]:
        """The smaller network, in evaluation mode, and what was done.

        Raises UserError where nothing is left to remove and the goal is not reached.
        """
        model, left, number = self.source, 1.0, 0
        while left > self.wishes.to:
            number += 1
            self.tell(f"round {number}: statistics", 0, 1)
            surgeon = Surgeon(model, statistics(model, self.seen))
            chosen = self._chosen(surgeon, left, number)
            if not chosen:
                raise UserError(
                    f"Nothing is left that can be removed from {self.source.spec.name}, and "
                    f"{left:.0%} of its {self.wishes.by} are still there; ask for more than that, "
                    "or for a narrower network (mbconv info --phi)."
                )
            model, left, chosen = self._applied(surgeon, chosen)
            self._note(chosen, number, trial.effect_of(model, self.answers), left)
        model, recalibrated = self._recalibrated(model)
        model.spec = self._named(model.spec)
        losses = [trial.effect_of(network, self.answers).loss for network in (self.source, model)]
        plan = Plan(
            source=self.source.spec, target=model.spec, by=self.wishes.by, goal=self.wishes.to,
            reached=left, steps=tuple(self.steps), loss=(losses[0], losses[1]),
            pictures=sum(len(batch.labels) for batch in self.answers), recalibrated=recalibrated,
            noise=self.noise,
        )  # fmt: skip
        return model, plan

    def _chosen(self, surgeon: Surgeon, left: float, number: int) -> list[Option]:
        """Try everything on the network as it is now, of which `left` is left, and choose."""
        model = surgeon.model
        tried = list(changes(model.spec, self.wishes.multiple))
        whole, each = trial.effects(
            model, surgeon, tried, self.answers,
            lambda done, total: self.tell(f"round {number}: {len(tried)} removals", done, total),
        )  # fmt: skip
        if self.wishes.by == "ms":
            saved = trial.timed_savings(model, surgeon, tried, self.resolution)
            self._quiet()
        else:
            saved = trial.counted_savings(model, tried, self.wishes.by, self.resolution)
        options = [
            Option(change=change, saved=less * left, loss=effect.loss - whole.loss,
                   cost=effect.divergence - whole.divergence)
            for change, effect, less in zip(tried, each, saved, strict=True)
        ]  # fmt: skip
        return choose(options, min(left - self.wishes.to, ROUND))

    def _applied(
        self, surgeon: Surgeon, chosen: list[Option]
    ) -> tuple[MBConvNet, float, list[Option]]:
        """The network after the removals, what is left, and which were needed.

        Where less is left than asked for, the last ones are kept out again, as far as they may.
        """
        made = _plain(surgeon.apply([option.change for option in chosen]))
        left = self._left(made)
        while len(chosen) > 1 and left < self.wishes.to:
            other = _plain(surgeon.apply([option.change for option in chosen[:-1]]))
            more = self._left(other)
            if more > self.wishes.to:
                break
            made, left, chosen = other, more, chosen[:-1]
        return made, left, chosen

    def _left(self, model: MBConvNet) -> float:
        """The share of the source's milliseconds, multiply-adds or parameters."""
        both = (self.source, model)
        if self.wishes.by == "ms":
            before, now = trial.whole_seconds(both, self.resolution)
            for _ in range(_AGAIN):
                if self._quiet():
                    break
                again = trial.whole_seconds(both, self.resolution)
                before, now = min(before, again[0]), min(now, again[1])
        else:
            before, now = (
                getattr(cost(network.spec, self.resolution), self.wishes.by) for network in both
            )
        return float(now / before)

    def _quiet(self) -> bool:
        """Whether nothing else runs on the machine that was just timed on; noted for the plan."""
        assert self.calibration is not None
        noise, limit = self.calibration.end().noise, self.calibration.limit
        self.noise = max(self.noise, noise)
        return noise <= limit

    def _note(self, chosen: Sequence[Option], number: int, effect: Effect, left: float) -> None:
        for option in chosen:
            change = option.change
            self.steps.append(
                Step(module=self.names[change.module], kind=change.kind, before=change.before,
                     after=change.after, round=number, cost=option.cost, loss=option.loss,
                     saved=option.saved, divergence=effect.divergence, left=left)
            )  # fmt: skip
        remaining = [option.change for option in chosen]
        while remaining:
            change = remaining.pop(0)
            if change.kind == "block":
                del self.names[change.module]
            self.names = {module_after(n, change): old for n, old in self.names.items()}
            remaining = [replace(c, module=module_after(c.module, change)) for c in remaining]

    def _recalibrated(self, model: MBConvNet) -> tuple[MBConvNet, bool]:
        """The network with batch-norm statistics of the training pictures, if that is better."""
        other = deepcopy(model)
        norms = [m for m in other.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # all batches count alike
            norm.train()
        with torch.no_grad():
            for x in self.seen:
                other(x)
        for norm in norms:
            norm.momentum = model.spec.bn_momentum
        old, new = (trial.effect_of(m, self.answers).divergence for m in (model, other.eval()))
        return (other, True) if new < old else (model, False)

    def _named(self, spec: Spec) -> Spec:
        source = self.source.spec.name
        return replace(
            spec,
            name=f"{source}_{self.wishes.by}{100 * self.wishes.to:.0f}",
            source=f"shrunk from {source}",
        )


def _plain(model: MBConvNet) -> MBConvNet:
    """A copy in float32 on the CPU, in the layout that passes are timed in."""
    copy = deepcopy(model).cpu().float().eval()
    copy.to(memory_format=torch.channels_last)
    return copy


def _modules(model: MBConvNet) -> Iterator[str]:
    yield from (name for name, _ in named_blocks(model))
    yield HEAD


def _drawn(samples: Sequence[Sample], most: int, seed: int) -> list[Sample]:
    order = np.random.default_rng(seed).permutation(len(samples))
    return [samples[i] for i in order[: math.floor(most)].tolist()]


def _batches(model: MBConvNet, samples: Sequence[Sample]) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised pictures [N, 3, R, R] as evaluation shows them, and labels [N]."""
    reader = Predictor(model)
    pixels, labels = [], []
    for sample in samples:
        try:
            pixels.append(reader.prepare(sample.path))
        except Unreadable:
            continue
        labels.append(sample.label)
    for at in range(0, len(labels), _BATCH):
        stacked = torch.from_numpy(np.stack(pixels[at : at + _BATCH]))
        yield normalise(stacked, model.preprocessing), torch.tensor(labels[at : at + _BATCH])
