"""Two networks on the same pictures: how far their accuracies lie apart, and how sure that is."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbconv.interval import Discordant, agresti_min


@dataclass(frozen=True)
class Paired:
    """The accuracies of two networks on the same `n` pictures; shares of 1.

    `lost` pictures only the first names correctly, `won` only the second.
    """

    n: int
    first: float
    second: float
    lost: int
    won: int

    @property
    def drop(self) -> float:
        """By how much the second's accuracy is lower."""
        return (self.lost - self.won) / self.n

    @property
    def half_width(self) -> float:
        """Half of the drop's 95% interval."""
        return self._centre_and_half[1]

    @property
    def interval(self) -> tuple[float, float]:
        """The drop's 95% interval; it is centred a little nearer to zero than the drop."""
        centre, half = self._centre_and_half
        return centre - half, centre + half

    @property
    def _centre_and_half(self) -> tuple[float, float]:
        return agresti_min(Discordant(self.n, only_first=self.won, only_second=self.lost))

    def pictures_for(self, half_width: float) -> int:
        """How many pictures would give an interval of that half width, if as many differed."""
        return math.ceil((self.half_width / half_width) ** 2 * (self.n + 2)) - 2


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compare what two networks named correctly, bool [n] each, the same pictures in order."""
    return Paired(
        n=len(first),
        first=float(first.mean()),
        second=float(second.mean()),
        lost=int((first & ~second).sum()),
        won=int((second & ~first).sum()),
    )
