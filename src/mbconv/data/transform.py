"""Preprocessing carried out: a picture becomes the pixels, a batch of them the input."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mbconv import kernels
from mbconv.data.crop import Box
from mbconv.kernels import native
from mbconv.preprocessing import Preprocessing

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def prepare(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize the short side (or both) and crop the centre: any RGB picture -> uint8 [R, R, 3].

    One resampling of the crop's part alone. Pillow's filter reads beyond that part, so the
    pixels are those of torchvision's Resize followed by CenterCrop, also for very long pictures,
    whose resized form need not fit into memory. Pictures smaller than the crop are enlarged.
    """
    crop = preprocessing.resolution
    box = centre_box(*image.size, preprocessing)
    resized_image = image.resize((crop, crop), _FILTERS[preprocessing.interpolation], box)
    return np.array(resized_image, dtype=np.uint8)


def centre_box(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """What of a picture is left by resizing and cropping its centre, in its own pixels."""
    side, crop = preprocessing.resize, preprocessing.resolution
    short = min(width, height)
    edges: list[tuple[float, float]] = []
    for length in (width, height):
        squashed = length == short or not preprocessing.keep_aspect
        resized = side if squashed else int(side * length / short)
        start = round((resized - crop) / 2)
        edges.append((start * length / resized, (start + crop) * length / resized))
    (left, right), (top, bottom) = edges
    return left, top, min(right, width), min(bottom, height)


def normalise(batch: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], channels_last, (pixel / 255 - mean) / std."""
    scale, shift = _scale_and_shift(preprocessing, batch.device)
    if batch.device.type == "cpu" and kernels.native_pictures():  # in one pass, the same bits
        tables = torch.arange(256.0).mul(scale.view(3, 1)).add_(shift.view(3, 1))
        return native.levels(batch, tables).permute(0, 3, 1, 2)
    pixels = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    return pixels.mul_(scale).add_(shift)


def _scale_and_shift(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float64).view(1, 3, 1, 1)
    scale, shift = (1 / (255 * std)).float(), (-mean / std).float()
    return scale.to(device), shift.to(device)
