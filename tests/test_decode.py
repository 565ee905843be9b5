"""Decoding: right colours and orientation for every kind of file, a reason for every broken one."""

import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from images import Pixels, encoded, photo, png
from mbconv.data.decode import Unreadable, decode, decode_with_facts, to_rgb

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")


def on_white(values: Pixels, alpha: Pixels) -> NDArray[np.float64]:
    share = alpha[..., None].astype(float) / 255
    return values * share + 255 * (1 - share)


# What must be done to the stored rows to see them upright: EXIF 2.3, table of the tag Orientation.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_orientation_is_applied(orientation: int, format: str) -> None:
    stored = photo(1, 40, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, format, exif=exif)
    image, facts = decode_with_facts(data)
    assert np.array_equal(np.asarray(image), UPRIGHT[orientation](np.asarray(stored)))
    assert (facts.width, facts.height) == image.size
    if format == "PNG":
        assert facts.rotated == (orientation > 1)


def test_broken_metadata_does_not_cost_the_picture() -> None:
    data = encoded(photo(1), exif=b"Exif\0\0" + b"MM\0*" + b"\xff" * 40)
    assert decode(data).size == (120, 90)


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_16_bits_keep_their_upper_8(color_type: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (20, 30, channels), dtype=np.uint16)
    image, facts = decode_with_facts(png(values, color_type))
    high = (values >> 8).astype(np.uint8)
    color = np.repeat(high[..., :1], 3, axis=2) if channels < 3 else high[..., :3]
    expected = on_white(color, high[..., -1]) if channels in (2, 4) else color
    assert np.abs(np.asarray(image) - expected).max() <= 1
    assert "16" in facts.mode


@pytest.mark.parametrize(("mode", "format"), [("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16", "PPM")])
def test_16_bit_grey_elsewhere(mode: str, format: str) -> None:
    values = (
        np.random.default_rng(0)
        .integers(0, 1 << 16, (20, 30))
        .astype(">u2" if mode.endswith("B") else "<u2")
    )
    image = decode(encoded(Image.frombytes(mode, (30, 20), values.tobytes()), format))
    assert np.array_equal(np.asarray(image)[..., 1], values >> 8)


def test_cmyk_becomes_rgb() -> None:
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    colors = [(255, 255, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]
    for ink, color in zip(inks, colors, strict=True):
        data = encoded(Image.new("CMYK", (32, 32), ink), quality=95)
        assert np.abs(np.asarray(decode(data)).astype(int) - color).max() <= 3, ink


def test_transparency_becomes_white() -> None:
    values = np.asarray(photo(2))
    alpha = np.asarray(photo(3).convert("L"))
    layers = np.dstack([values, alpha])
    expected = on_white(values, alpha)
    for format in ("PNG", "TIFF"):
        image = decode(encoded(Image.fromarray(layers), format))
        assert np.abs(np.asarray(image) - expected).max() <= 1
    grey = np.dstack([values[..., 0], alpha])
    image = decode(encoded(Image.fromarray(grey), "PNG"))
    assert np.abs(np.asarray(image)[..., 2] - expected[..., 0]).max() <= 1


def test_transparent_strips_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = np.dstack([np.asarray(photo(2)), np.asarray(photo(3).convert("L"))])
    data = encoded(Image.fromarray(layers), "PNG")
    whole = decode(data)
    monkeypatch.setattr("mbconv.data.decode._STRIP", 120 * 7)
    assert np.array_equal(np.asarray(decode(data)), np.asarray(whole))


def test_palette_with_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    image.putdata([0, 1, 2])
    for options in ({"transparency": 1}, {"transparency": bytes([255, 0, 255])}):
        pixels = np.asarray(decode(encoded(image, "PNG", **options)))[0]
        assert pixels.tolist() == [[200, 0, 0], [255, 255, 255], [0, 0, 50]]
    pixels = np.asarray(decode(encoded(image, "GIF", transparency=1)))[0]
    assert pixels.tolist() == [[200, 0, 0], [255, 255, 255], [0, 0, 50]]
    half = encoded(image, "PNG", transparency=bytes([128, 255, 255]))
    assert np.abs(np.asarray(decode(half))[0, 0].astype(int) - (227, 127, 127)).max() <= 1


@pytest.mark.parametrize(("mode", "value", "color"), [("1", 1, 255), ("L", 77, 77)])
def test_grey_and_black_and_white(mode: str, value: int, color: int) -> None:
    image, facts = decode_with_facts(encoded(Image.new(mode, (5, 4), value), "PNG"))
    assert np.unique(np.asarray(image)).tolist() == [color]
    assert (image.mode, facts.mode) == ("RGB", mode)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animated_files_give_their_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (24, 16), color) for color in ("red", "lime", "blue")]
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    image, facts = decode_with_facts(data)
    assert np.array_equal(np.asarray(image), np.asarray(frames[0]))
    assert facts.frames == 3


def test_a_damaged_later_frame_does_not_matter() -> None:
    frames = [photo(seed).quantize(64) for seed in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    first = decode(data)
    image, facts = decode_with_facts(data[: len(data) // 2 + 50])
    assert np.array_equal(np.asarray(image), np.asarray(first))
    assert facts.frames >= 1


def test_floats_and_wide_integers() -> None:
    ramp = np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 8)
    image = decode(encoded(Image.fromarray(ramp), "TIFF"))
    assert np.abs(np.asarray(image)[..., 0] - ramp * 255).max() <= 0.51
    for values in (ramp * 1000 - 1, (ramp * 1e6).astype(np.int32)):
        with pytest.raises(Unreadable, match="white point") as caught:
            decode(encoded(Image.fromarray(values), "TIFF"))
        assert not caught.value.refused


def test_the_pixel_limit_is_taken_from_the_header() -> None:
    data = encoded(photo(0, 20, 10), "PNG")
    assert decode(data, max_pixels=200).size == (20, 10)
    with pytest.raises(Unreadable) as caught:
        decode(data, max_pixels=199)
    assert caught.value.refused
    row = np.zeros((1, 1, 1), np.uint8)
    for side in (10_001, 14_000, 65_536):  # below and above the points where Pillow warns, raises
        with pytest.raises(Unreadable, match=f"{side * side / 1e6:,.0f} megapixels") as caught:
            decode(png(row, 0, size=(side, side)))
        assert caught.value.refused


def test_pillow_does_not_warn_below_the_limit() -> None:
    row = np.zeros((1, 1, 1), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Unreadable, match="cut off") as caught:
            decode(png(row, 0, size=(99_000_000, 1)))  # above Pillow's own 89 million
    assert not caught.value.refused


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("min_side", [None, 16])
def test_cut_off_files_are_never_padded(format: str, share: float, min_side: int | None) -> None:
    data = encoded(photo(4, 320, 240), format)
    with pytest.raises(Unreadable) as caught:
        decode(data[: int(len(data) * share)], min_side=min_side)
    assert not caught.value.refused
    assert len(str(caught.value)) < 100


def test_other_code_cannot_switch_padding_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(photo(4, 320, 240))
    with pytest.raises(Unreadable, match="cut off"):
        decode(data[: len(data) // 2])


def test_a_copy_that_ends_in_zeros_is_cut_off() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), quality=95)
    half = len(data) // 2
    broken = data[:half] + bytes(len(data) - half)
    with Image.open(io.BytesIO(broken)) as image:
        image.load()  # Pillow alone finds nothing wrong
    for min_side in (None, 32):
        with pytest.raises(Unreadable, match="zeros"):
            decode(broken, min_side=min_side)
    assert decode(data + bytes(4096)).size == (320, 240)  # whole, with a padded end


@settings(max_examples=60)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
def test_damage_gives_a_picture_or_a_reason(format: str, hits: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(photo(5, 48, 36), format))
    for place, value in hits:
        data[int(place * len(data))] = value
    try:
        mode = decode(bytes(data), max_pixels=1_000_000).mode
    except Unreadable:
        mode = "RGB"  # any other exception fails the test
    assert mode == "RGB"


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    expected = {"text": "known format", "empty": "empty", "folder": "not a file",
                "pipe": "not a file", "absent": "no such file"}  # fmt: skip
    for name, reason in expected.items():
        with pytest.raises(Unreadable, match=reason):
            decode(tmp_path / f"{name}.jpg")
    with pytest.raises(Unreadable, match="empty"):
        decode(b"")


def test_postscript_is_not_executed() -> None:
    with pytest.raises(Unreadable, match="known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize(("min_side", "size"), [(None, (800, 600)), (301, (800, 600)),
                                                (300, (400, 300)), (150, (200, 150)),
                                                (20, (100, 75)), (2000, (800, 600))])  # fmt: skip
def test_reduced_scale(min_side: int | None, size: tuple[int, int]) -> None:
    picture = photo(6, 800, 600)
    image, facts = decode_with_facts(encoded(picture, quality=95), min_side=min_side)
    assert image.size == size
    assert (facts.width, facts.height) == (800, 600)
    expected = picture.resize(size, Image.Resampling.BOX)
    assert np.abs(np.asarray(image, dtype=float) - np.asarray(expected)).mean() < 3


def test_reduced_scale_of_a_turned_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, facts = decode_with_facts(encoded(photo(6, 800, 600), exif=exif), min_side=150)
    assert image.size == (150, 200)
    assert (facts.width, facts.height, facts.rotated) == (600, 800, True)


def test_the_picture_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photo(7), exif=Image.Exif(), comment="x"))
    image = decode(str(path))
    path.unlink()
    assert image.getpixel((0, 0)) is not None
    assert image.info == {}


def test_many_threads_agree_and_pillow_stays_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS
    files = [encoded(photo(seed, 200, 150)) for seed in range(6)] * 8
    broken = encoded(photo(9, 200, 150))[:900]
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda data: int(np.asarray(decode(data)).sum()), files))
        bad = [pool.submit(decode, broken) for _ in range(8)]
        assert all(isinstance(future.exception(), Unreadable) for future in bad)
    assert sums == sums[:6] * 8
    assert len(set(sums)) == 6
    assert before == Image.MAX_IMAGE_PIXELS


def test_to_rgb_leaves_rgb_alone() -> None:
    picture = photo(8)
    assert to_rgb(picture) is picture
    assert to_rgb(picture.convert("L")).mode == "RGB"
