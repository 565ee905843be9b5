"""Two networks on the same pictures: how far their accuracies lie apart, and how sure that is."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbconv.interval import Z95


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
        """Half of the drop's 95% interval.

        Of a difference of matched proportions, with half a picture added to each of the four
        cells (Agresti and Min, Statistics in Medicine 24, 2005), so that two networks that agree
        on few pictures are not called equal for certain.
        """
        n, differ = self.n + 2, self.lost + self.won + 1
        return Z95 * math.sqrt(differ - (self.lost - self.won) ** 2 / n) / n

    @property
    def interval(self) -> tuple[float, float]:
        """The drop's 95% interval; it is centred a little nearer to zero than the drop."""
        centre = (self.lost - self.won) / (self.n + 2)
        return centre - self.half_width, centre + self.half_width

    def pictures_for(self, half_width: float) -> int:
        """How many pictures would give an interval of that half width, if as many differed."""
        share = (self.lost + self.won + 1) / (self.n + 2)
        variance = share - ((self.lost - self.won) / (self.n + 2)) ** 2
        return math.ceil(Z95**2 * variance / half_width**2) - 2


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compare what two networks named correctly, bool [n] each, the same pictures in order."""
    return Paired(
        n=len(first),
        first=float(first.mean()),
        second=float(second.mean()),
        lost=int((first & ~second).sum()),
        won=int((second & ~first).sum()),
    )
