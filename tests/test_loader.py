"""Training batches: the same pictures whatever prepares them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mbconv.data.augmentation import Augmentation
from mbconv.data.loader import Batch, Draw, Pictures, training_batches
from mbconv.data.source import Sample
from small import write_classes


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    root = write_classes(tmp_path, classes=2, each=4)
    return [Sample(p, int(p.parent.name[-1])) for p in sorted(root.glob("*/*.png"))]


def draws(epoch: int = 1) -> list[list[Draw]]:
    order = [[0, 5, 2, 7], [1, 4, 3, 6]]
    return [[Draw(i, 24 + 8 * k, (9, epoch)) for i in row] for k, row in enumerate(order)]


def collected(samples: list[Sample], workers: int, epoch: int = 1) -> list[Batch]:
    pictures = Pictures(samples, Augmentation(crop_scale=0.3))
    return list(training_batches(pictures, draws(epoch), workers=workers))


def test_workers_change_nothing(samples: list[Sample]) -> None:
    state = torch.random.get_rng_state()
    here = collected(samples, workers=0)
    assert torch.equal(torch.random.get_rng_state(), state)  # this process draws as before
    there = collected(samples, workers=2)
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.labels, b.labels)
    assert [tuple(b.pixels.shape) for b in here] == [(4, 24, 24, 3), (4, 32, 32, 3)]
    assert here[0].labels.tolist() == [0, 1, 0, 1]
    other = collected(samples, workers=0, epoch=2)
    assert not torch.equal(here[0].pixels, other[0].pixels)


def test_crops_and_flips_happen_and_can_be_switched_off(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, :20] = 255  # white left half
    Image.fromarray(pixels).save(tmp_path / "half.png")
    sample = [Sample(tmp_path / "half.png", 0)]
    plain = Pictures(sample, Augmentation(crop_scale=1.0, flip=False))
    flipping = Pictures(sample, Augmentation(crop_scale=1.0))
    cropping = Pictures(sample, Augmentation(crop_scale=0.1, flip=False))

    def left_minus_right(pictures: Pictures) -> list[float]:
        images = [pictures[Draw(0, 16, (0, e))][0] for e in range(40)]
        return [float(i[:, :4].mean() - i[:, -4:].mean()) for i in images if i is not None]

    assert min(left_minus_right(plain)) > 200
    flipped = sum(d < 0 for d in left_minus_right(flipping))
    assert 10 <= flipped <= 30
    assert len({round(d) for d in left_minus_right(cropping)}) > 3


def test_what_cannot_be_read_is_named_and_left_out(samples: list[Sample]) -> None:
    samples[5].path.write_bytes(b"gone")
    first, second = collected(samples, workers=1)
    assert [path for path, _ in first.failures] == [samples[5].path]
    assert first.labels.tolist() == [0, 0, 1]
    assert len(first.pixels) == 3
    assert second.failures == ()
