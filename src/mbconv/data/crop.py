"""Random resized crop (Szegedy et al. 2015, "Going deeper with convolutions"), drawn by numpy."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
_TRIES = 10


def random_resized_crop(
    image: Image.Image,
    side: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """RGB picture -> uint8 [side, side, 3]: a part of it, bilinear and antialiased.

    The part has a share of the area within `scale` and a width to height within `ratio`, drawn
    from `generator` alone. torch resamples bytes with vector instructions, Pillow without.
    """
    part = image.crop(draw_box(image.width, image.height, scale, ratio, generator))
    pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1)[None]  # [1, 3, h, w], channels last
    small = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def draw_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> Box:
    """Area uniform in `scale`, ratio uniform in its logarithm, place uniform.

    Where ten draws do not fit into the picture, the largest part in its middle whose ratio does.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, shape, x, y in generator.random((_TRIES, 4)).tolist():
        pixels = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(low + (high - low) * shape)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
