"""What is done to training pictures, as data; imports no torch. `augment.py` carries it out."""

from dataclasses import dataclass
from typing import Literal

from mbconv.arch.fields import check, check_types


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Crop and mirror, then a policy of colours and shapes, then erasing; mixing of pictures last.

    `magnitude` is RandAugment's on the papers' scale: 10 is as strong as its operations go. Both
    alphas are of the Beta distribution that the share of a picture's partner is drawn from; where
    both are above zero, each batch is either mixed up or cut and mixed, with equal chances.
    """

    crop_scale: float = 0.35  # random resized crop: smallest share of the picture's area
    flip: bool = True  # mirror half of the pictures
    policy: Literal["none", "autoaugment", "randaugment", "trivialaugment"] = "none"
    operations: int = 2  # of RandAugment, one after the other
    magnitude: float = 9.0  # of RandAugment, 0 to 10
    erasing: float = 0.0  # chance that a rectangle is made grey (arXiv 1708.04896)
    mixup: float = 0.0  # alpha (arXiv 1710.09412); 0: none
    cutmix: float = 0.0  # alpha (arXiv 1905.04899); 0: none

    def __post_init__(self) -> None:
        where = "augmentation"
        check_types(where, self)
        check(where, "crop_scale", self.crop_scale, 0 < self.crop_scale <= 1, "in (0, 1]")
        check(where, "magnitude", self.magnitude, 0 <= self.magnitude <= 10, "from 0 to 10")
        check(where, "erasing", self.erasing, 0 <= self.erasing <= 1, "from 0 to 1")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            check(where, name, value, value >= 0, "zero or more")
