"""How a picture becomes a network's input. It belongs to the weights and is plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from mbconv.errors import UserError

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize the short side to `resize`, crop the centre `resolution` x `resolution`, normalise.

    Without `keep_aspect` both sides are resized to `resize`, as large networks are evaluated.
    `mean` and `std` are for RGB pixels scaled to 0..1. The defaults are ImageNet's usual ones.
    """

    resolution: int = 224
    resize: int = 256
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    keep_aspect: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if not 0 < self.resolution <= self.resize:
            raise UserError(
                f"Preprocessing: resolution {self.resolution} and resize {self.resize} do not fit; "
                "both must be positive and the crop no larger than the resized picture."
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"Preprocessing: interpolation {self.interpolation!r} is unknown.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError("Preprocessing: mean and std are three numbers each, std positive.")

    def at(self, resolution: int) -> "Preprocessing":
        """The same for another resolution; the crop keeps its share of the resized picture."""
        resize = max(resolution, round(resolution * self.resize / self.resolution))
        return Preprocessing(**{**asdict(self), "resolution": resolution, "resize": resize})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocessing":
        known = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or set(data) - known:
            raise UserError(f"Preprocessing has fields {sorted(known)}; the file has others.")
        return cls(**data)
