"""The cache of decoded pictures: bounded, shared, close to no cache, and never left behind."""

import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import mbconv
from images import encoded, photo, write_tree
from mbconv.data import memory
from mbconv.data.augmentation import Augmentation
from mbconv.data.cache import cache_dir
from mbconv.data.crop import draw_box
from mbconv.data.decode import decode
from mbconv.data.loader import Batch, Draw, Pictures, training_batches
from mbconv.data.memory import OVERSAMPLE, PictureCache, kept_size, place_bytes, room
from mbconv.data.picture import Picture, open_picture
from mbconv.data.source import Sample
from mbconv.data.transform import prepare
from mbconv.errors import UserError
from mbconv.preprocessing import Preprocessing
from mbconv.training import setup
from mbconv.training.console import Reporter
from mbconv.training.recipe import Phase, Recipe
from small import write_classes, write_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cache needs Linux")
SIDE = 36  # kept, for pictures of 24 px


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    files = {f"{i}.jpg": encoded(photo(i, 150, 100 + i), quality=95) for i in range(7)}
    root = write_tree(tmp_path / "photos", files | {"7.png": encoded(photo(7, 20, 30), "PNG")})
    return [Sample(root / name, 0) for name in [*files, "7.png"]]


@pytest.fixture
def cache() -> Iterator[PictureCache]:
    with PictureCache(SIDE, 8) as cache:
        yield cache


def test_a_centre_is_that_of_evaluation_and_fills_the_cache(
    samples: list[Sample], cache: PictureCache
) -> None:
    wanted = Preprocessing(resolution=24, resize=28, interpolation="bilinear")
    plain, kept = (Pictures(samples, Augmentation(), c) for c in (None, cache))
    for number, sample in enumerate(samples):
        expected = prepare(decode(sample.path), wanted).astype(int)
        assert cache.find(number) is None
        for pictures in (plain, kept, kept):
            found = pictures.centre(number, wanted)
            assert found.shape == (24, 24, 3)
            assert np.abs(found - expected).mean() < 4  # pixels beside the box, a size between
        assert cache.find(number) is not None


def left_over() -> list[str]:
    return [path.name for path in cache_dir().glob("pictures-*")]


def batches(samples: list[Sample], cache: PictureCache | None, workers: int = 0) -> list[Batch]:
    pictures = Pictures(samples, Augmentation(crop_scale=0.5), cache)
    draws = [[Draw(i, 24, (3, epoch)) for i in range(8)] for epoch in (1, 2)]
    return list(training_batches(pictures, draws * 2, workers=workers))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return all(torch.equal(x.pixels, y.pixels) for x, y in zip(a, b, strict=True))


def test_the_same_batches_whatever_is_there_and_whoever_prepares_them(
    samples: list[Sample], cache: PictureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = batches(samples, cache)
    assert equal(first[:2], first[2:])  # both passes: from files, then from memory
    with PictureCache(SIDE, 3) as smaller:
        assert equal(batches(samples, smaller), first)
        assert [smaller.find(i) is not None for i in range(8)] == [True] * 3 + [False] * 5
    with PictureCache(SIDE, 8) as shared:
        assert equal(batches(samples, shared, workers=2), first)
        assert all(shared.find(i) for i in range(8))  # the other processes have filled it

    def never(path: Path) -> Picture:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr("mbconv.data.loader.open_picture", never)
    assert equal(batches(samples, cache), first)
    copy = pickle.loads(pickle.dumps(cache))
    assert equal(batches(samples, copy), first)
    copy.close()
    assert equal(batches(samples, cache), first), "a copy takes nothing away"
    assert cache.path.exists()


def test_boxes_are_those_without_cache_and_pixels_close(samples: list[Sample]) -> None:
    """Sides double the part's: nothing is lost but what a second resampling smooths."""
    with PictureCache(SIDE, 8) as cache:
        for a, b in zip(batches(samples, cache), batches(samples, None), strict=True):
            assert (a.pixels.int() - b.pixels.int()).abs().float().mean() < 2
    small = open_picture(samples[7].path)
    with PictureCache(SIDE, 8) as cache:
        kept = cache.kept(7, small)
        assert (kept.width, kept.height, kept.pixels.shape) == (20, 30, (30, 20, 3))  # as it was
        box = (2, 3, 17, 22)
        np.testing.assert_array_equal(kept.part(box, (9, 9)), small.part(box, (9, 9)))


@pytest.mark.data
def test_cached_photographs_are_close_to_those_decoded_anew(data_root: Path) -> None:
    paths = sorted((data_root / "clothing/test").glob("*/*.jpg"))[::12]
    found = []
    with PictureCache(round(OVERSAMPLE * 160), len(paths)) as cache:
        for i, path in enumerate(paths):
            picture = open_picture(path)
            box = draw_box(picture.width, picture.height, 0.35, Random(i))
            anew = picture.part(box, (160, 160)).astype(int)
            found.append(np.abs(cache.kept(i, picture).part(box, (160, 160)) - anew).mean())
    assert np.mean(found) < 2
    assert max(found) < 6


def test_kept_sizes() -> None:
    assert kept_size(400, 300, 150) == (150, 200)
    assert kept_size(300, 400, 150) == (200, 150)
    assert kept_size(100, 80, 150) == (80, 100)  # never enlarged
    assert kept_size(65_536, 64, 150) == (1, 300)
    for width, height in ((640, 480), (3000, 100), (1, 5000), (149, 301), (151, 299)):
        rows, columns = kept_size(width, height, 150)
        assert 3 * rows * columns <= place_bytes(150)


def test_room_is_half_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=10_000_000_000)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: usage)
    assert room(100, 8_000_000) == int(4_000_000 / (60_000 + 16))
    usage.free = 1_000_000
    assert room(100, 8_000_000) == int(500_000 / (60_000 + 16))
    assert not cache_dir().exists()


def test_the_file_is_as_large_as_was_said_and_is_removed(samples: list[Sample]) -> None:
    with PictureCache(SIDE, 3) as cache:
        batches(samples, cache)
        assert cache.path.stat().st_size == 3 * (place_bytes(SIDE) + 16)
        assert left_over() == [cache.path.name]
        assert cache.path.stat().st_mode & 0o077 == 0  # photographs are nobody else's
    assert left_over() == []


def test_a_full_disk_costs_the_cache_alone(
    samples: list[Sample], cache: PictureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = batches(samples, cache)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory.os, "pwrite", full)
    with PictureCache(SIDE, 8) as none:
        assert equal(batches(samples, none), first)
        assert none.find(0) is None


def test_what_killed_processes_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal; from mbconv.data.memory import PictureCache; "
        "cache = PictureCache(32, 4); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    (dead,) = left_over()
    living = f"pictures-{platform.node()}-{os.getppid()}-x"
    elsewhere = dead.replace(platform.node(), "elsewhere")  # in a home that machines share
    for name in (living, elsewhere):
        (cache_dir() / name).touch()
    with PictureCache(SIDE, 1) as cache:
        assert sorted(left_over()) == sorted([cache.path.name, living, elsewhere])
    PictureCache(SIDE, 1).close()
    ends = "from mbconv.data.memory import PictureCache; cache = PictureCache(32, 4)"
    subprocess.run([sys.executable, "-c", ends], check=True)
    assert sorted(left_over()) == sorted([living, elsewhere])


# -- a run ----------------------------------------------------------------------------------------


def recipe(epochs: int) -> Recipe:
    phases = (Phase(32, epochs - 1), Phase(48, 1)) if epochs > 1 else (Phase(48, 1),)
    return Recipe(name="t", phases=phases, batch_size=4)


def test_when_a_run_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = room(72, setup.available_memory())
    assert setup.choose_cache("auto", recipe(3), 10) == {"side": 72}
    assert setup.choose_cache("auto", recipe(3), fits * 2) is None
    assert setup.choose_cache("memory", recipe(3), fits * 2) == {"side": 72}
    assert setup.choose_cache("auto", recipe(1), 10) is None  # nothing is read twice
    assert setup.choose_cache("off", recipe(3), 10) is None
    monkeypatch.setattr(setup, "available_memory", lambda: 1000)
    assert setup.choose_cache("auto", recipe(3), 10) is None
    with pytest.raises(UserError, match="no room"):
        setup.choose_cache("memory", recipe(3), 10)


def test_a_folder_that_cannot_be_written_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="--cache off"):
        setup.open_cache({"side": 36}, 10, Reporter(quiet=True))


def test_a_run_says_that_it_used_it_and_resumes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "m.safetensors")
    data = write_classes(tmp_path / "data", each=6, side=64)
    monkeypatch.setattr(setup, "choose_recipe", lambda *_: recipe(3))

    def weights(run: mbconv.Run) -> bytes:
        return (run.path / "model.safetensors").read_bytes()

    whole = mbconv.train(model, data, tmp_path / "whole")
    assert "cache: 12 of 12 training pictures" in capsys.readouterr().out
    assert left_over() == []

    def stop(_: Any, line: dict[str, Any]) -> None:
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    config = whole.path / "config.json"
    with pytest.raises(KeyboardInterrupt):
        mbconv.train(model, data, tmp_path / "cut", config=config, on_epoch=stop, quiet=True)
    assert left_over() == []
    monkeypatch.setattr(setup, "room", lambda *_: 5)  # less than at the start
    cut = mbconv.resume(tmp_path / "cut")
    assert "cache: 5 of 12 training pictures" in capsys.readouterr().out
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, cut.model.state_dict()[name]), name
