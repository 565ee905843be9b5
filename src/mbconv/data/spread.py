"""A few of many pictures: splits are sorted by class, so that the first ones would not do."""

import numpy as np


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of the places 0 to `count` - 1, drawn with a fixed seed, in shuffled order."""
    order: list[int] = np.random.default_rng(0).permutation(count)[:most].tolist()
    return order
