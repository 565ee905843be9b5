"""A network without its head, for decoders and feature pyramids."""

from collections.abc import Iterable

from torch import Tensor, nn

from mbconv.arch.fields import known
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet


class Encoder(nn.Module):
    """Stem and stages of `model`: pictures in, a list of maps out, finest first.

    The modules are the model's own, not copies. What lies behind the last map is left out, so that
    every parameter gets a gradient. `taps` names the maps, as in `model.features`; by default they
    are those of `spec.pyramid()`, the last at each reduction. `encoder.taps` holds their widths
    and reductions in order, `encoder.out_channels` the widths of all that `forward` returns, and
    `encoder.preprocessing` is what the weights expect.

    Raises UserError for a name that is none of the maps, and for no name at all.
    """

    def __init__(self, model: MBConvNet, taps: Iterable[str] | None = None) -> None:
        super().__init__()
        spec = model.spec
        names = [tap.name for tap in spec.taps()]
        wanted = {tap.name for tap in spec.pyramid()} if taps is None else set(taps)
        known(f"The network {spec.name!r}", wanted, set(names), kind="map")
        if not wanted:
            raise UserError(f"An encoder needs at least one map; {spec.name!r} has {names}.")
        self.taps = tuple(tap for tap in spec.taps() if tap.name in wanted)
        self.in_channels = spec.in_channels
        self.preprocessing = model.preprocessing
        self.stem = model.stem
        self.stages = model.stages[: names.index(self.taps[-1].name)]
        self._kept = [name in wanted for name in names]

    @property
    def out_channels(self) -> list[int]:
        """Widths of the list that `forward` returns; the first is that of the picture."""
        return [self.in_channels, *(tap.channels for tap in self.taps)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised pictures [N, in_channels, H, W] -> the pictures, then a map for each tap.

        Each map is [N, C, H / reduction, W / reduction], rounded up at every stride.
        """
        maps = [x]
        for part, kept in zip((self.stem, *self.stages), self._kept, strict=False):
            x = part(x)
            if kept:
                maps.append(x)
        return maps
