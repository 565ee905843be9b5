"""Augmentation carried out after the crop: policies for a picture, mixing for a batch.

torchvision is imported where it is used: that takes a second, and most runs crop and mirror alone.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mbconv.data.augmentation import Augmentation

if TYPE_CHECKING:
    from torchvision.transforms import v2

GREY = 128  # what rotation, shearing and erasing leave behind
_BINS = 31  # RandAugment's magnitudes in torchvision are 0 to 30


@cache
def pipeline(augmentation: Augmentation, magnitude: float | None) -> "v2.Compose | None":
    """What follows crop and mirror: Pillow picture -> Pillow picture, drawn from torch's generator.

    `magnitude`, where given, replaces the augmentation's own. None where nothing follows.
    """
    if augmentation.policy == "none" and not augmentation.erasing:
        return None
    from torchvision.transforms import InterpolationMode, v2

    steps: list[Any] = []
    strength = augmentation.magnitude if magnitude is None else magnitude
    drawn: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR, "fill": GREY}
    if augmentation.policy == "autoaugment":
        steps.append(v2.AutoAugment(**drawn))
    elif augmentation.policy == "randaugment":
        index = round(strength * (_BINS - 1) / 10)
        steps.append(v2.RandAugment(augmentation.operations, index, _BINS, **drawn))
    elif augmentation.policy == "trivialaugment":
        steps.append(v2.TrivialAugmentWide(**drawn))
    if augmentation.erasing:
        steps.append(v2.RandomErasing(augmentation.erasing, value=GREY))
    return v2.Compose(steps)


def mix(
    x: Tensor, labels: Tensor, *, mixup: float, cutmix: float, classes: int
) -> tuple[Tensor, Tensor]:
    """Mix each picture with its neighbour in the batch; draws from torch's generator.

    Normalised pictures [N, 3, H, W] and labels [N] -> pictures and shares [N, classes], or both
    unchanged where both alphas are 0. One share is drawn for the whole batch.
    """
    if not mixup and not cutmix:
        return x, labels
    from torchvision.transforms import v2

    cuts = cutmix > 0 and (not mixup or torch.rand(()).item() < 0.5)
    kind = v2.CutMix if cuts else v2.MixUp
    transform = kind(alpha=cutmix if cuts else mixup, num_classes=classes)
    mixed, shares = transform(x, labels)
    return mixed, shares
