"""Where a loss or a gradient stopped being finite, and what it takes to see it again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.files import atomic_path

if TYPE_CHECKING:
    from mbconv.training.loop import Trainer

FILE = "failed_step.pt"


class Diverged(UserError):
    """A step with a loss or a gradient that is not finite; `step` has all it takes to replay it."""

    def __init__(self, message: str, step: dict[str, Any]) -> None:
        super().__init__(message)
        self.step = step


@dataclass
class Trace:
    """One step, layer by layer: largest magnitudes by name, in the order of the network.

    `outputs` are of layers in the order in which they ran, `weights` and `gradients` of
    parameters; what is not finite stays nan or infinite.
    """

    loss: float = math.nan
    weights: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether everything was."""
        values = [self.loss, *self.weights.values(), *self.outputs.values()]
        return all(map(math.isfinite, [*values, *self.gradients.values()]))

    def culprit(self) -> str:
        """Where the first number that is not finite arose, in a sentence."""
        if (name := _first_broken(self.weights)) is not None:
            return f"The weights {name} were not finite even before the step."
        if (name := _first_broken(self.outputs)) is not None:
            return f"The first layer whose output is not finite is {name}."
        if not math.isfinite(self.loss):
            return "The output of every layer is finite, so it is the loss itself."
        backwards = dict(reversed(self.gradients.items()))
        if (name := _first_broken(backwards)) is not None:
            return f"Loss and outputs are finite; the first such gradient is that of {name}."
        return (
            "Computed again layer by layer everything is finite, so it comes from the fused "
            "kernels: go on with MBCONV_KERNELS=plain, and please report it."
        )


def trace(trainer: "Trainer", batch: Batch, index: int, seed: int) -> Trace:
    """Compute a step's loss and gradients again with a watch on every layer; no weight changes.

    Layers that are watched are computed by plain modules. Batch norms update their statistics.
    """
    found = Trace(weights=_magnitudes(trainer.model.named_parameters()))

    def watch(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.outputs[name] = _larger(found.outputs.get(name, 0.0), _magnitude(output))

    layers = [
        (name, module)
        for name, module in trainer.model.named_modules()
        if name and not isinstance(module, nn.Sequential)
    ]
    hooks = [module.register_forward_hook(partial(watch, name)) for name, module in layers]
    try:
        trainer.seed(index, seed)
        with torch.compiler.set_stance("force_eager"):  # compiled code does not see the hooks
            found.loss = trainer.backward(batch, index).item()
    finally:
        for hook in hooks:
            hook.remove()
    found.gradients = _magnitudes(
        (name, p.grad) for name, p in trainer.model.named_parameters() if p.grad is not None
    )
    return found


def diverged(
    trainer: "Trainer", batch: Batch, index: int, seed: int, buffers: Sequence[Tensor]
) -> Diverged:
    """The error for a step that came out not finite; puts `buffers` of before back.

    Of several processes' shares of the step it is about the first that is not finite by itself.
    """
    _restore(trainer.model, buffers)
    found = trace(trainer, batch, index, seed)
    _restore(trainer.model, buffers)
    what = "A gradient" if math.isfinite(found.loss) else "The loss"
    message = (
        f"{what} is no longer a finite number at step {index + 1}. {found.culprit()} Train with a "
        "lower learning rate (--set optimizer.learning_rate=...), with --set optimizer.clip=1, or "
        "in float32 if another number format was used."
    )
    step = {
        "pixels": batch.pixels,
        "labels": batch.labels,
        "index": index,
        "seed": seed,
        "total": trainer.total,
        "class_weights": trainer.class_weights,
        "spec": trainer.model.spec.to_dict(),
        "weights": trainer.model.state_dict(),
    }
    return Diverged(*trainer.world.pick((message, step), wanted=not found.finite))


def save_failed_step(run: Path, error: Diverged) -> Path:
    """Write the step into the run folder, for `mbconv replay`; returns the file."""
    with atomic_path(run / FILE) as path, path.open("wb") as opened:
        torch.save(error.step, opened)
    return run / FILE


def _restore(model: nn.Module, buffers: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _first_broken(values: dict[str, float]) -> str | None:
    return next((name for name, value in values.items() if not math.isfinite(value)), None)


def _magnitudes(named: Any) -> dict[str, float]:
    return {name: _magnitude(tensor) for name, tensor in named}


def _magnitude(x: Tensor) -> float:
    return x.detach().abs().max().item() if x.numel() else 0.0


def _larger(a: float, b: float) -> float:
    """The larger of two magnitudes, but nan if one is."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)
