"""Training batches: decode and augment, in worker processes, in a fixed order.

Each picture's randomness is seeded by (seed, epoch, picture), so that a batch does not depend on
the number of workers and a resumed run sees what the uninterrupted one would have seen.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mbconv.data.augment import pipeline
from mbconv.data.augmentation import Augmentation
from mbconv.data.crop import Pixels, draw_box
from mbconv.data.decode import Unreadable
from mbconv.data.memory import Kept, PictureCache
from mbconv.data.picture import Picture, open_picture
from mbconv.data.place import Place
from mbconv.data.source import Sample
from mbconv.data.transform import centre_box
from mbconv.preprocessing import Preprocessing


class Draw(NamedTuple):
    """One picture of one epoch."""

    picture: int
    resolution: int
    seed: tuple[int, ...]  # of the run, the epoch, and the picture's earlier turns in it if any
    magnitude: float | None = None  # in place of the augmentation's own


@dataclass(frozen=True)
class Batch:
    """pixels uint8 [N, R, R, 3], labels int64 [N]; and what could not be read, with reasons."""

    pixels: Tensor
    labels: Tensor
    failures: tuple[tuple[Place, str], ...]


class Pictures(Dataset[tuple[NDArray[np.uint8] | None, int, str]]):
    """Augmented training pictures, addressed by a Draw."""

    def __init__(
        self,
        samples: Sequence[Sample],
        augmentation: Augmentation,
        cache: PictureCache | None = None,
    ) -> None:
        self.samples = samples
        self.augmentation = augmentation
        self.cache = cache
        pipeline(augmentation, None)  # what it imports is there before workers are forked

    def __getitem__(self, draw: Draw) -> tuple[NDArray[np.uint8] | None, int, str]:
        seed, side = hash((*draw.seed, draw.picture)) & 0x7FFFFFFF, draw.resolution
        random, chosen = Random(seed), self.augmentation
        try:
            picture = self._picture(draw.picture)
            box = draw_box(picture.width, picture.height, chosen.crop_scale, random)
            mirrored = chosen.flip and random.random() < 0.5
            pixels = picture.part(box, (side, side), mirrored)
        except Unreadable as error:
            return None, draw.picture, error.reason
        augment = pipeline(chosen, draw.magnitude)
        if augment is not None:
            # A worker's generator is its own; this process's must stay as it was.
            with torch.random.fork_rng(devices=[], enabled=get_worker_info() is None):
                # torch.manual_seed asks every kind of device, 0.15 ms a picture
                torch.default_generator.manual_seed(seed)
                pixels = np.asarray(augment(Image.fromarray(pixels)))
        return pixels, self.samples[draw.picture].label, ""

    def centre(self, number: int, preprocessing: Preprocessing) -> Pixels:
        """A picture [R, R, 3] as it is evaluated, but resampled as training does, bilinear.

        Like a training crop it is taken from the cache, or kept there. Raises Unreadable.
        """
        picture, side = self._picture(number), preprocessing.resolution
        return picture.part(centre_box(picture.width, picture.height, preprocessing), (side, side))

    def _picture(self, number: int) -> Picture | Kept:
        found = None if self.cache is None else self.cache.find(number)
        if found is not None:
            return found
        picture = open_picture(self.samples[number].path)
        return picture if self.cache is None else self.cache.kept(number, picture)

    def collate(self, items: list[tuple[NDArray[np.uint8] | None, int, str]]) -> Batch:
        good = [(pixels, label) for pixels, label, _ in items if pixels is not None]
        failures = tuple((self.samples[i].path, why) for p, i, why in items if p is None)
        pixels = np.stack([p for p, _ in good]) if good else np.zeros((0, 1, 1, 3), np.uint8)
        labels = torch.tensor([label for _, label in good], dtype=torch.int64)
        return Batch(torch.from_numpy(pixels), labels, failures)


def training_batches(
    pictures: Pictures, batches: Iterable[Sequence[Draw]], *, workers: int, ahead: int = 4
) -> Iterator[Batch]:
    """Yield one Batch for each list of draws, in order.

    Each of `workers` processes prepares up to `ahead` batches before they are asked for.
    """
    loader: DataLoader[Any] = DataLoader(
        pictures,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of index lists serves
        num_workers=workers,
        collate_fn=pictures.collate,
        generator=torch.Generator(),  # its draw would disturb the global one
        prefetch_factor=ahead if workers else None,
        worker_init_fn=_apart,
    )
    return iter(loader)


def _apart(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM go to whole process groups; the trainer finishes its step.

    For that it needs its workers; they end when it does.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
