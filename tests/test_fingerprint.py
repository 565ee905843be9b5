"""Prints of pictures: a copy is found at any size and quality, a similar picture is not."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from images import encoded, photo
from mbconv.data.decode import decode
from mbconv.data.fingerprint import LENGTH, make_print, near_groups


def printed(image: Image.Image) -> bytes:
    made = make_print(image)
    assert made is not None
    return made


def product(seed: int, hue: tuple[int, int, int] = (180, 40, 50)) -> Image.Image:
    """The same garment on the same cloth, with another small motif on its chest."""
    image = np.empty((240, 200, 3))
    image[:] = (140, 20, 60)
    image[40:210, 50:150] = hue
    rng = np.random.default_rng(seed)
    motif = rng.integers(0, 256, (3, 3, 3)).repeat(20, axis=0).repeat(20, axis=1)
    image[70:130, 70:130] = motif
    return Image.fromarray(image.astype(np.uint8))


def test_form() -> None:
    assert LENGTH == len(printed(photo(0))) == 1056
    assert make_print(photo(0, 31, 200)) is None
    assert make_print(photo(0, 32, 200)) is not None


@pytest.mark.parametrize("seed", range(8))
def test_copies_are_found(seed: int) -> None:
    original = photo(seed, 400, 300)
    small = original.resize((85, 64), Image.Resampling.BICUBIC)
    copies = {
        "64 px": small,
        "quality 50": decode(encoded(original, quality=50)),
        "64 px at quality 50": decode(encoded(small, quality=50)),
        "reduced decoding": decode(encoded(original), min_side=64),
        "brighter": ImageEnhance.Brightness(original).enhance(1.1),
        "webp": decode(encoded(original, "WEBP", quality=60)),
    }
    for name, copy in copies.items():
        others = [printed(photo(100 + i, 300, 400)) for i in range(5)]
        assert near_groups([printed(original), *others, printed(copy)]) == [[0, 6]], name


def test_similar_products_are_not_copies() -> None:
    prints = [printed(product(seed)) for seed in range(6)]
    prints.append(printed(product(0, hue=(40, 60, 180))))  # another colour
    assert near_groups(prints) == []
    half = product(0).resize((100, 120), Image.Resampling.BICUBIC)
    assert near_groups([*prints, printed(half)]) == [[0, 7]]


def test_fine_detail_that_the_hash_cannot_see() -> None:
    """The same garment with the inverse of a fine check: equal in every low coefficient."""
    cells = (np.indices((15, 10)).sum(axis=0) % 2 * 100 - 50).repeat(6, axis=0).repeat(6, axis=1)
    pair = []
    for sign in (1, -1):
        image = np.asarray(product(0)).astype(int)
        image[80:170, 70:130] = (150, 90, 90) + sign * cells[..., None]
        pair.append(Image.fromarray(image.astype(np.uint8)))
    prints = np.frombuffer(b"".join(map(printed, pair)), np.uint8).reshape(2, -1)
    assert np.corrcoef(prints)[0, 1] > 0.9
    assert near_groups([row.tobytes() for row in prints]) == []


def test_the_same_picture_in_other_colours() -> None:
    luma, blue, red = photo(2).convert("YCbCr").split()
    swapped = Image.merge("YCbCr", (luma, red, blue)).convert("RGB")
    grey = photo(2).convert("L").convert("RGB")
    assert near_groups([printed(photo(2)), printed(swapped), printed(grey)]) == []


def test_pale_copies_are_found() -> None:
    """Contrast so low that compression at quality 50 shows."""
    for seed in range(8):
        pale = ImageEnhance.Contrast(photo(seed, 400, 300)).enhance(0.3)
        copy = decode(encoded(pale.resize((85, 64), Image.Resampling.BICUBIC), quality=50))
        assert near_groups([printed(pale), printed(copy)]) == [[0, 1]], seed


def test_flat_pictures_show_nothing_to_compare() -> None:
    flat = [Image.new("RGB", (64, 64), (v, v, v)) for v in (0, 10, 250, 250)]
    assert near_groups([printed(image) for image in flat]) == []
    assert near_groups([]) == []
    assert near_groups([printed(photo(0))]) == []


def test_links_make_groups() -> None:
    steps = [ImageEnhance.Contrast(photo(3)).enhance(1 + i / 20) for i in range(4)]
    prints = [printed(image) for image in (*steps, photo(4), photo(5), photo(4))]
    assert near_groups(prints) == [[0, 1, 2, 3], [4, 6]]


def test_all_pairs_across_tiles() -> None:
    """Pairs far apart in a long list, against the number that was put in."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (9000, LENGTH), dtype=np.uint8)
    values[8990] = values[3]
    values[5000] = values[4095]
    values[70] = values[63]
    found = near_groups([row.tobytes() for row in values])
    assert found == [[3, 8990], [63, 70], [4095, 5000]]


def test_thousands_of_copies_need_little_memory() -> None:
    base = np.frombuffer(printed(photo(1)), np.uint8).astype(int)
    rng = np.random.default_rng(0)
    prints = [
        np.clip(base + rng.integers(-2, 3, LENGTH), 0, 255).astype(np.uint8).tobytes()
        for _ in range(4000)
    ]
    tracemalloc.start()
    found = near_groups(prints)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(group) for group in found] == [4000]
    assert peak < 300e6  # all 8 million pairs would take 17 GB
