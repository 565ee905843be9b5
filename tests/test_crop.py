"""The random resized crop: its boxes, and pixels beside torchvision's, from JPEGs and in parts."""

import io
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from images import encoded, photo
from mbconv import kernels
from mbconv.data.crop import Box, Pixels, draw_box, resample
from mbconv.data.decode import Unreadable, content, decode
from mbconv.data.picture import open_picture
from test_hostile import outcome, table


@pytest.fixture(params=["auto", "plain"], ids=["native", "Pillow"])
def both(request: pytest.FixtureRequest) -> str:
    kernels.use(request.param)
    if request.param == "auto" and not kernels.native_pictures():
        pytest.skip("the install found no compiler")
    return str(request.param)


def torchvisions(image: Image.Image, box: Box, side: int) -> NDArray[np.int64]:
    left, top, right, bottom = map(int, box)
    found = v2.functional.resized_crop(
        v2.functional.pil_to_tensor(image), top, left, bottom - top, right - left,
        [side, side], InterpolationMode.BILINEAR, antialias=True,
    )  # fmt: skip
    return found.permute(1, 2, 0).numpy().astype(np.int64)


def distance(a: Pixels, b: Pixels | NDArray[np.int64]) -> float:
    return float(np.abs(a.astype(int) - b).mean())


# -- boxes ----------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 2**32), st.floats(0.01, 1),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
)  # fmt: skip
def test_a_box_lies_in_the_picture(
    width: int, height: int, seed: int, scale: float, ratio: list[float]
) -> None:
    box = draw_box(width, height, scale, Random(seed), (ratio[0], ratio[1]))
    left, top, right, bottom = box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert all(float(edge).is_integer() for edge in box)


def test_area_ratio_and_place_are_spread_as_torchvision_spreads_them() -> None:
    random = Random(0)
    boxes = np.array([draw_box(1000, 800, 0.35, random) for _ in range(4000)])
    torch.manual_seed(0)
    peer, canvas = v2.RandomResizedCrop(8, (0.35, 1.0)), torch.zeros(1, 800, 1000)
    drawn = [peer.make_params([canvas]) for _ in range(4000)]
    theirs = np.array(
        [(d["left"], d["top"], d["left"] + d["width"], d["top"] + d["height"]) for d in drawn]
    )
    for statistic in (np.mean, np.std):
        np.testing.assert_allclose(statistic(boxes, 0), statistic(theirs, 0), atol=10)
    size = boxes[:, 2:] - boxes[:, :2]
    area, ratio = size.prod(1) / 800_000, np.log(size[:, 0] / size[:, 1])
    assert area.min() == pytest.approx(0.35, abs=0.01)
    assert abs(ratio).max() == pytest.approx(np.log(4 / 3), abs=0.01)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((30, 30), (0, 0, 30, 30))],
)
def test_what_no_draw_fits(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert draw_box(*size, 1.0, Random(1)) == expected


# -- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(500, 375), (300, 260), (90, 120)])
def test_pixels_are_those_of_torchvision(both: str, size: tuple[int, int]) -> None:
    image = photo(3, *size)
    for seed in range(20):
        box = draw_box(*size, 0.08, Random(seed))
        ours = resample(np.asarray(image), box, (96, 96))
        assert (ours.shape, ours.dtype, ours.flags.c_contiguous) == ((96, 96, 3), np.uint8, True)
        assert np.abs(ours.astype(int) - torchvisions(image, box, 96)).max() <= 1
        mirrored = resample(np.asarray(image), box, (96, 96), True)
        np.testing.assert_array_equal(mirrored, ours[:, ::-1])


@pytest.mark.data
def test_photographs_are_close_to_torchvisions(both: str, data_root: Path) -> None:
    """Decoded as finely as the part needs, so that at 64 px most are at a half or a fourth."""
    paths = sorted((data_root / "clothing/test").glob("*/*.jpg"))[::12]
    assert len(paths) >= 25
    for side, bound in ((224, 0.3), (160, 1.5), (64, 2.0)):
        found = []
        for seed, path in enumerate(paths):
            picture, whole = open_picture(path), decode(path)
            assert (picture.width, picture.height) == whole.size
            assert isinstance(picture.source, bytes)  # the usual way, nothing decoded yet
            box = draw_box(*whole.size, 0.35, Random(seed))
            expected = torchvisions(whole, box, side)
            found.append(distance(picture.part(box, (side, side)), expected))
        assert np.mean(found) < bound, side
        assert max(found) < 5, side


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_are_decoded_to_the_pixels_that_decode_gives(reduction: int, mode: str) -> None:
    data = encoded(photo(1, 203, 171).convert(mode), quality=90)
    picture = open_picture(data)
    assert isinstance(picture.source, bytes)
    expected = np.asarray(decode(data, min_side=171 // reduction))
    assert expected.shape[:2] == (-(-171 // reduction), -(-203 // reduction))
    size = 171 // reduction, 203 // reduction  # the most that this reduction still has
    edges = (0, 0, 203 / reduction, 171 / reduction)
    found = picture.part((0, 0, 203, 171), size)
    np.testing.assert_array_equal(found, resample(expected, edges, size))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turn", range(1, 9))
def test_turned_photographs_are_upright(turn: int, mirrored: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(photo(2, 120, 90), quality=95, exif=exif)
    upright, picture = np.asarray(decode(data)), open_picture(data)
    assert (picture.height, picture.width) == upright.shape[:2]
    for box, size in (((7, 11, 80, 90), (40, 61)), ((0, 0, 90, 90), (90, 90))):
        ours = picture.part(box, size, mirrored)
        assert ours.flags.c_contiguous
        assert np.abs(ours.astype(int) - resample(upright, box, size, mirrored)).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "CMYK", "GIF"])
def test_other_files_go_the_long_way(format: str) -> None:
    image = photo(4)
    cmyk = format == "CMYK"
    data = encoded(image.convert("CMYK") if cmyk else image, "JPEG" if cmyk else format)
    picture, whole = open_picture(data), np.asarray(decode(data))
    found = picture.part((0, 0, picture.width, picture.height), whole.shape[:2])
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("keep", [0, 1, 3, 200, 2000, -3])
def test_a_cut_off_jpeg_is_refused_as_decode_does(keep: int) -> None:
    data = encoded(photo(5, 300, 200), quality=95)[:keep]
    for padding in (b"", bytes(100)):
        reasons = []
        for read in (decode, lambda d: open_picture(d).part((0, 0, 300, 200), (200, 300))):
            try:
                read(data + padding)
                reasons.append("read")
            except Unreadable as error:
                reasons.append(error.reason)
        assert reasons[0] == reasons[1]
        assert keep == -3 or reasons[0] != "read"


@pytest.mark.data
def test_hostile_files_do_what_the_table_says(data_root: Path) -> None:
    for row in table(data_root / "hostile"):
        path = data_root / "hostile" / row["file"]
        kind, refused = "read", False
        try:
            picture = open_picture(path)
            whole = (0, 0, picture.width, picture.height)
            ours = picture.part(whole, (64, 64))
            assert (str(picture.width), str(picture.height)) == outcome(path, None)[1:]
            expected = resample(np.asarray(decode(path)), whole, (64, 64))
            assert distance(ours, expected) < 4, row["file"]
        except Unreadable as error:
            kind, refused = "unreadable", error.refused
        assert ("refused" if refused else kind) == row["outcome"], row["file"]


def test_a_file_that_is_none_has_no_content(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    for path, reason in (("empty.jpg", "empty"), ("gone.jpg", "no such file"), (".", "not a file")):
        with pytest.raises(Unreadable, match=reason):
            content(tmp_path / path)
    exif = io.BytesIO()
    photo(1).save(exif, "JPEG", exif=b"Exif\0\0broken")
    assert open_picture(exif.getvalue()).orientation == 1
