"""The random resized crop: its boxes, its pixels beside torchvision's, what they depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from images import photo
from mbconv.data.crop import draw_box, random_resized_crop

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 2**32),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
)  # fmt: skip
def test_a_box_lies_in_the_picture(
    width: int, height: int, seed: int, scale: list[float], ratio: list[float]
) -> None:
    generator = np.random.default_rng(seed)
    left, top, right, bottom = draw_box(
        width, height, (scale[0], scale[1]), (ratio[0], ratio[1]), generator
    )
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_area_ratio_and_place_are_spread_as_asked() -> None:
    generator = np.random.default_rng(0)
    boxes = np.array([draw_box(1000, 800, (0.1, 0.5), RATIO, generator) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 800_000, np.log(width / height)
    assert area.min() == pytest.approx(0.1, abs=0.01)
    assert area.max() == pytest.approx(0.5, abs=0.01)
    assert area.mean() == pytest.approx(0.3, abs=0.01)
    assert abs(ratio).max() == pytest.approx(np.log(4 / 3), abs=0.01)
    assert ratio.mean() == pytest.approx(0, abs=0.02)
    shift = (boxes[:, 0] / (1000 - width)).mean(), (boxes[:, 1] / (800 - height)).mean()
    assert shift == pytest.approx((0.5, 0.5), abs=0.02)
    torch.manual_seed(0)
    peer, canvas = v2.RandomResizedCrop(8, (0.1, 0.5)), torch.zeros(1, 800, 1000)
    drawn = [peer.make_params([canvas]) for _ in range(2000)]
    theirs = np.mean([box["width"] * box["height"] for box in drawn])
    assert (width * height).mean() == pytest.approx(theirs, rel=0.03)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((30, 30), (0, 0, 30, 30))],
)
def test_what_no_draw_fits(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert draw_box(*size, (1.0, 1.0), RATIO, np.random.default_rng(1)) == expected


@pytest.mark.parametrize("size", [(500, 375), (300, 260), (90, 120)])
def test_pixels_are_those_of_torchvision(size: tuple[int, int]) -> None:
    """Antialiased, on the same boxes."""
    image = photo(3, *size)
    for seed in range(20):
        left, top, right, bottom = draw_box(*size, SCALE, RATIO, np.random.default_rng(seed))
        ours = random_resized_crop(image, 96, SCALE, RATIO, np.random.default_rng(seed))
        theirs = v2.functional.resized_crop(
            image, top, left, bottom - top, right - left, [96, 96],
            InterpolationMode.BILINEAR, antialias=True,
        )  # fmt: skip
        assert ours.shape == (96, 96, 3)
        assert ours.dtype == np.uint8
        assert ours.flags["C_CONTIGUOUS"]
        assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_a_pure_function_of_the_generator() -> None:
    image = Image.effect_noise((200, 150), 60).convert("RGB")

    def made(*seed: int) -> bytes:
        generator = np.random.default_rng(seed)
        return random_resized_crop(image, 32, SCALE, RATIO, generator).tobytes()

    assert made(1, 2, 3) == made(1, 2, 3)
    assert len({made(1, 2, 3), made(2, 2, 3), made(1, 3, 3), made(1, 2, 4)}) == 4
