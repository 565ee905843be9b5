"""Preparing pictures: the pixels of torchvision's Resize and CenterCrop, then plain arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from images import Pixels, photo
from mbconv import kernels
from mbconv.data.transform import normalise, prepare
from mbconv.preprocessing import Preprocessing

SIZES = [(400, 533), (533, 400), (256, 256), (100, 37), (1000, 257), (3, 200), (1, 1), (2048, 1536)]


def plain(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Two separate steps, by another library."""
    mode = v2.InterpolationMode(preprocessing.interpolation)
    side = preprocessing.resize
    size = [side] if preprocessing.keep_aspect else [side, side]
    resized = v2.Resize(size, mode)(image)
    return np.asarray(v2.CenterCrop(preprocessing.resolution)(resized))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        Preprocessing(resolution=64, resize=71, interpolation="bilinear"),
        Preprocessing(resolution=32, resize=32),
        Preprocessing(resolution=64, resize=71, keep_aspect=False),
    ],
    ids=["224 of 256", "64 of 71", "32 of 32", "squashed"],
)
def test_equals_resize_then_crop(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    # Middle tones: Pillow clips between its two passes and orders them by the sizes.
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(80, 176, (size[1], size[0], 3), dtype=np.uint8))
    ours = prepare(noise, preprocessing)
    assert ours.shape == (preprocessing.resolution, preprocessing.resolution, 3)
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - plain(noise, preprocessing)).max() <= 2


def test_very_long_pictures_need_no_large_intermediate() -> None:
    """Resized as a whole, this one would be 256 x 16,776,960 pixels."""
    line = Image.fromarray(np.arange(65535, dtype=np.uint16).view(np.uint8)[None, ::2].copy())
    assert prepare(line.convert("RGB"), Preprocessing()).shape == (224, 224, 3)


def test_pixels_can_be_written() -> None:
    pixels = prepare(photo(0), Preprocessing(resolution=32, resize=32))
    torch.from_numpy(pixels)  # would warn about read-only memory
    pixels[0] = 0


def test_normalise_is_the_formula() -> None:
    preprocessing = Preprocessing(mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4))
    values = np.random.default_rng(1).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    batch = torch.from_numpy(values.copy())
    out = normalise(batch, preprocessing)
    expected = (values / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    assert out.dtype == torch.float32
    assert out.shape == (3, 3, 5, 7)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(out.numpy() - expected.transpose(0, 3, 1, 2)).max() < 1e-5
    assert np.array_equal(batch.numpy(), values)


def test_normalise_on_127_and_128() -> None:
    """The Lite weights: (pixel - 127) / 128 on 0..255."""
    preprocessing = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    batch = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    out = normalise(batch, preprocessing)
    expected = (torch.arange(256.0).view(16, 16) - 127) / 128
    assert torch.allclose(out[0, 2], expected, atol=1e-6)


@pytest.mark.skipif(not kernels.native_pictures(), reason="the install found no compiler")
def test_normalising_in_one_pass_gives_the_same_bits() -> None:
    """Evaluation uses it too: not even the last place may differ."""
    every = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    noise = torch.randint(0, 256, (5, 9, 14, 3), dtype=torch.uint8)
    for mean, std in (
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((127 / 255,) * 3, (0.3,) * 3),
    ):
        preprocessing = Preprocessing(resolution=16, mean=mean, std=std)
        for batch in (every, noise, noise[:0], noise[1:4], noise.transpose(1, 2), noise[:, ::2]):
            kernels.use("auto")
            ours = normalise(batch, preprocessing)
            kernels.use("plain")
            plain = normalise(batch, preprocessing)
            assert torch.equal(ours, plain)
            assert ours.is_contiguous(memory_format=torch.channels_last)
