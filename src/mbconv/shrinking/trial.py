"""Each removal tried alone: how far the answers move, and how much time it saves."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbconv.arch.cost import cost
from mbconv.nn.model import MBConvNet
from mbconv.shrinking.change import HEAD, Change, smaller
from mbconv.shrinking.cut import Surgeon
from mbconv.shrinking.statistics import named_blocks

Progress = Callable[[int, int], None]
_ROUNDS, _CALLS = 7, 5  # of timing; the least of the rounds counts


@dataclass(frozen=True)
class Answers:
    """What some pictures should give: `inputs` normalised [N, 3, R, R], labels, source's logits."""

    inputs: Tensor
    labels: Tensor
    logits: Tensor


@dataclass
class Effect:
    """Mean divergence from the source's answers and mean cross-entropy, nats a picture."""

    divergence: float = 0.0
    loss: float = 0.0

    def add(self, logits: Tensor, batch: Answers, total: int) -> None:
        wanted = batch.logits.double().log_softmax(1)
        given = logits.double().log_softmax(1)
        kl = F.kl_div(given, wanted, log_target=True, reduction="sum")
        self.divergence += float(kl) / total
        self.loss += float(F.nll_loss(given, batch.labels, reduction="sum")) / total


class _Tried:
    """A change as modules that stand in for the network's own."""

    def __init__(self, change: Change, surgeon: Surgeon) -> None:
        self.change = change
        self.at = HEAD if change.module == HEAD else change.module
        self.module: nn.Module | None = None
        if change.kind == "block":
            return
        if change.module == HEAD:
            self.module = surgeon.apply([change]).head
        else:
            self.module = surgeon.block(change)

    def __call__(self, x: Tensor) -> Tensor:
        if self.module is None:
            return x
        y: Tensor = self.module(x)
        return y


@torch.inference_mode()
def effects(
    model: MBConvNet,
    surgeon: Surgeon,
    changes: Sequence[Change],
    batches: Sequence[Answers],
    progress: Progress | None = None,
) -> tuple[Effect, list[Effect]]:
    """Of the network as it is, and with each change alone, in float32.

    What lies before a change is computed once for all of them.
    """
    tried = [_Tried(change, surgeon) for change in changes]
    whole, each = Effect(), [Effect() for _ in changes]
    total = sum(len(batch.labels) for batch in batches)
    chain: list[tuple[str, nn.Module]] = [*named_blocks(model), (HEAD, model.head)]
    names = [name for name, _ in chain]
    done = 0
    for batch in batches:
        x, entering = model.stem(batch.inputs), {}
        for name, module in chain:
            entering[name] = x
            x = module(x)
        whole.add(x, batch, total)
        for option, effect in zip(tried, each, strict=True):
            y = option(entering[option.at])
            for _, module in chain[names.index(option.at) + 1 :]:
                y = module(y)
            effect.add(y, batch, total)
        done += len(batch.labels)
        if progress is not None:
            progress(done, total)
    return whole, each


def effect_of(model: MBConvNet, batches: Sequence[Answers]) -> Effect:
    """Of a network as it is."""
    effect, total = Effect(), sum(len(batch.labels) for batch in batches)
    with torch.inference_mode():
        for batch in batches:
            effect.add(model(batch.inputs), batch, total)
    return effect


def counted_savings(
    model: MBConvNet, changes: Sequence[Change], by: str, resolution: int
) -> list[float]:
    """The share of the network's multiply-adds or parameters that each change saves."""
    before = getattr(cost(model.spec, resolution), by)
    after = (getattr(cost(smaller(model.spec, c), resolution), by) for c in changes)
    return [(before - there) / before for there in after]


def timed_savings(
    model: MBConvNet, surgeon: Surgeon, changes: Sequence[Change], resolution: int
) -> list[float]:
    """The share of a pass of one picture that each change saves, float32, module by module.

    All modules and their stand-ins are timed in turn, so that a busy machine slows all alike.
    """
    x = torch.randn(1, model.spec.in_channels, resolution, resolution)
    chain: list[tuple[str, nn.Module]] = [*named_blocks(model), (HEAD, model.head)]
    calls: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        x = x.contiguous(memory_format=torch.channels_last)
        calls["stem"] = partial(model.stem, x)
        x = model.stem(x)
        for name, module in chain:
            calls[name] = partial(module, x)
            for number, change in enumerate(changes):
                if change.module == name and change.kind != "block":
                    option = _Tried(change, surgeon)
                    assert option.module is not None
                    option.module.to(memory_format=torch.channels_last)
                    calls[str(number)] = partial(option, x)
            x = module(x)
    seconds = least_seconds(calls)
    whole = seconds["stem"] + sum(seconds[name] for name, _ in chain)
    return [
        (seconds[change.module] - seconds.get(str(number), 0.0)) / whole
        for number, change in enumerate(changes)
    ]


def least_seconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each call, the least of some in turn: what the machine does undisturbed."""
    best = dict.fromkeys(calls, float("inf"))
    with torch.inference_mode():
        for _ in range(_ROUNDS):
            for name, call in calls.items():
                call()  # brings it into the cache
                for _ in range(_CALLS):
                    begun = time.perf_counter()
                    call()
                    best[name] = min(best[name], time.perf_counter() - begun)
    return best


def whole_seconds(networks: Iterable[MBConvNet], resolution: int) -> list[float]:
    """Seconds of a pass of one picture of each network, taken in turn."""
    networks = list(networks)
    x = torch.randn(1, networks[0].spec.in_channels, resolution, resolution)
    x = x.contiguous(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], object]] = {
        str(number): partial(network, x) for number, network in enumerate(networks)
    }
    return list(least_seconds(calls).values())
