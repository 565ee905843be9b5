"""Recipes: functions that return one complete frozen config. Nothing else holds hyperparameters."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mbconv.errors import UserError

SMALLEST = 96  # px; below it the last maps are too small for pretrained weights to help


@dataclass(frozen=True)
class Phase:
    """So many epochs at one resolution."""

    resolution: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a network learns, apart from the network and the pictures."""

    name: str
    phases: tuple[Phase, ...]
    batch_size: int = 32
    head_resolution: int | None = None  # fit the classifier first, on frozen features; None: do not
    head_penalty: float = 0.03  # weight of the squared norm of the standardised classifier
    frozen_stages: int = 0  # the stem and so many stages keep their weights
    norms: Literal["frozen", "train"] = "train"  # frozen: statistics stay, scale and shift learn
    learning_rate: float = 1e-3  # of AdamW, at its highest
    warmup: float = 0.1  # share of all steps
    weight_decay: float = 0.01  # of matrices and kernels; norms and biases have none
    label_smoothing: float = 0.1
    drop_path: float | None = None  # None: what the spec says
    ema_decay: float = 0.98
    crop_scale: float = 0.35  # random resized crop: smallest share of the picture's area
    flip: bool = True  # mirror half of the pictures

    def __post_init__(self) -> None:
        phases = tuple(p if isinstance(p, Phase) else Phase(**p) for p in self.phases)
        object.__setattr__(self, "phases", phases)
        if not phases or min(min(p.resolution, p.epochs) for p in phases) < 1:
            raise UserError("A recipe needs at least one epoch, at a resolution of 1 or more.")
        if self.batch_size < 1:
            raise UserError(f"The batch size is {self.batch_size}; it must be 1 or more.")
        if not self.learning_rate > 0:
            raise UserError(f"The learning rate is {self.learning_rate}; it must be positive.")

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    @property
    def resolution(self) -> int:
        """The last phase's, which the finished network is used at."""
        return self.phases[-1].resolution

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Recipe":
        try:
            return cls(**data)
        except TypeError as error:
            raise UserError(f"This recipe does not fit this version of mbconv: {error}.") from error


def finetune(pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe:
    """Fine-tune pretrained weights on `pictures` training pictures, for use at `resolution`.

    The classifier is first fitted on frozen features; then all but the stem and the first four
    stages learn. Batch-norm statistics stay those of the pretraining, which small batches would
    blur, so that they can be folded into the convolutions. Resolution grows (Tan and Le 2021,
    arXiv 2104.00298). Without `epochs`: about 340 steps, between 4 and 40 epochs.
    """
    phases = growing(resolution, epochs or _default_epochs(pictures, steps=340))
    return Recipe(
        name="finetune",
        phases=phases,
        head_resolution=phases[0].resolution,
        frozen_stages=4,
        norms="frozen",
        learning_rate=4e-4,
        drop_path=0.0,  # so few epochs need no more noise than the crops bring
    )


def scratch(pictures: int, resolution: int, *, epochs: int | None = None) -> Recipe:
    """Train fresh weights: everything learns, batch norms included; about 6,000 steps."""
    return Recipe(
        name="scratch",
        phases=growing(resolution, epochs or _default_epochs(pictures, steps=6000)),
        learning_rate=3e-3,
        weight_decay=0.05,
        ema_decay=0.998,
    )


def growing(resolution: int, epochs: int) -> tuple[Phase, ...]:
    """The first half of the epochs at 5/7 of the resolution (160 of 224), the rest at all of it.

    The smaller side is a multiple of 32 and at least 96.
    """
    small = max(SMALLEST, round(resolution * 5 / 7 / 32) * 32)
    first = epochs // 2
    if first == 0 or small >= resolution:
        return (Phase(resolution, epochs),)
    return (Phase(small, first), Phase(resolution, epochs - first))


def plan_epochs(recipe: Recipe, pictures: int, seconds: float, pixel_rate: float) -> Recipe:
    """The same recipe with as many epochs as fit into `seconds` of stepping.

    `pixel_rate` is training pixels a second. Raises UserError where not one epoch fits.
    """
    for epochs in range(200, 0, -1):
        phases = growing(recipe.resolution, epochs)
        pixels = sum(p.epochs * p.resolution**2 for p in phases) * pictures
        if pixels / pixel_rate <= seconds:
            return replace(recipe, phases=phases)
    needed = recipe.resolution**2 * pictures / pixel_rate
    raise UserError(
        f"The budget leaves {max(0, seconds):.0f} s for training and one epoch at "
        f"{recipe.resolution} px takes about {needed:.0f} s here. Give a longer --budget or a "
        f"smaller --resolution."
    )


def _default_epochs(pictures: int, steps: int, batch_size: int = 32) -> int:
    return min(max(math.ceil(steps * batch_size / pictures), 4), 40)
