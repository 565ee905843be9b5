"""Random resized crop (Szegedy et al. 2015, "Going deeper with convolutions"): box and pixels."""

import math
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mbconv import kernels
from mbconv.kernels import native

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
RATIO = (3 / 4, 4 / 3)  # width to height
_TRIES = 10


def draw_box(
    width: int, height: int, scale: float, random: Random, ratio: tuple[float, float] = RATIO
) -> Box:
    """A part of a picture: whole pixels, as torchvision's RandomResizedCrop draws it.

    Its share of the area is uniform from `scale` to 1, its ratio uniform in the logarithm, its
    place uniform. Where ten draws do not fit: the largest part in the middle whose ratio does.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = width * height * random.uniform(scale, 1)
        aspect = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resample(pixels: Pixels, box: Box, size: tuple[int, int], mirrored: bool = False) -> Pixels:
    """A part of a picture [H, W, 3] at `size` (height, width): bilinear, antialiased.

    What lies outside of `box`, up to whole pixels, has no part in it. Without the native kernel
    Pillow does the same; the two differ by one level of 255 at most.
    """
    if kernels.native_pictures():
        return native.resample(pixels, box, size, mirrored)
    left, top, right, bottom = box
    x, y = math.floor(left), math.floor(top)
    part = Image.fromarray(pixels[y : math.ceil(bottom), x : math.ceil(right)])
    inner = (left - x, top - y, right - x, bottom - y)
    small = part.resize(size[::-1], Image.Resampling.BILINEAR, inner)
    if mirrored:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(small)
