"""Training batches: decode, random resized crop, flip; in worker processes, in a fixed order.

Each picture's randomness is seeded by (seed, epoch, picture), so that a batch does not depend on
the number of workers and a resumed run sees what the uninterrupted one would have seen.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import InterpolationMode, v2

from mbconv.data.decode import Unreadable, decode
from mbconv.data.place import Place
from mbconv.data.source import Sample

# Decoding at reduced scale keeps the short side at least this many times the crop's side.
OVERSAMPLE = 1.25


class Draw(NamedTuple):
    """One picture of one epoch."""

    picture: int
    resolution: int
    seed: tuple[int, int]  # of the run, and the epoch


@dataclass(frozen=True)
class Batch:
    """pixels uint8 [N, R, R, 3], labels int64 [N]; and what could not be read, with reasons."""

    pixels: Tensor
    labels: Tensor
    failures: tuple[tuple[Place, str], ...]


class Pictures(Dataset[tuple[NDArray[np.uint8] | None, int, str]]):
    """Augmented training pictures, addressed by a Draw."""

    def __init__(self, samples: Sequence[Sample], *, crop_scale: float, flip: bool) -> None:
        self.samples = samples
        self.crop_scale = crop_scale
        self.flip = flip

    def __getitem__(self, draw: Draw) -> tuple[NDArray[np.uint8] | None, int, str]:
        sample = self.samples[draw.picture]
        try:
            image = decode(sample.path, min_side=round(OVERSAMPLE * draw.resolution))
        except Unreadable as error:
            return None, draw.picture, error.reason
        augment = _augmentation(draw.resolution, self.crop_scale, self.flip)
        # A worker's generator is its own; this process's must stay as it was.
        with torch.random.fork_rng(devices=[], enabled=get_worker_info() is None):
            # torch.manual_seed asks every kind of device, 0.15 ms a picture
            torch.default_generator.manual_seed(hash((*draw.seed, draw.picture)) & 0x7FFFFFFF)
            return np.asarray(augment(image)), sample.label, ""

    def collate(self, items: list[tuple[NDArray[np.uint8] | None, int, str]]) -> Batch:
        good = [(pixels, label) for pixels, label, _ in items if pixels is not None]
        failures = tuple((self.samples[i].path, why) for p, i, why in items if p is None)
        pixels = np.stack([p for p, _ in good]) if good else np.zeros((0, 1, 1, 3), np.uint8)
        labels = torch.tensor([label for _, label in good], dtype=torch.int64)
        return Batch(torch.from_numpy(pixels), labels, failures)


@cache
def _augmentation(resolution: int, crop_scale: float, flip: bool) -> v2.Compose:
    crop = v2.RandomResizedCrop(
        resolution, (crop_scale, 1.0), interpolation=InterpolationMode.BILINEAR
    )
    return v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if flip else 0.0)])


def training_batches(
    pictures: Pictures, batches: Iterable[Sequence[Draw]], *, workers: int
) -> Iterator[Batch]:
    """Yield one Batch for each list of draws, in order, prepared ahead by `workers` processes."""
    loader: DataLoader[Any] = DataLoader(
        pictures,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of index lists serves
        num_workers=workers,
        collate_fn=pictures.collate,
        generator=torch.Generator(),  # its draw would disturb the global one
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)
