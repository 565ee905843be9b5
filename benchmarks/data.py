"""Training pictures from a folder of JPEGs: how many a second one core prepares, ours and others'.

    python benchmarks/data.py DATA [--side 224] [--scale 0.35] [--pictures 320] [--rounds 5]

Every contestant reads the same files, cuts a random part out of each, resamples it (bilinear,
antialiased), mirrors half of them and ends with a batch of normalised float32 tensors. All of them
run in one process and one thread, in turn, round by round; a ratio is taken within a round. The
first round is not counted: after it the files are in the system's memory, and the pictures in our
cache. Freed memory is kept, as `mbconv train` does.

Beside it, how far our pixels are from those of torchvision's resized_crop on Pillow's decoded
picture, on the same boxes, in levels of 0..255: the mean of each picture.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.datasets.folder import default_loader
from torchvision.transforms import InterpolationMode, v2

from mbconv import kernels
from mbconv.data.augmentation import Augmentation
from mbconv.data.crop import draw_box
from mbconv.data.decode import decode
from mbconv.data.loader import Draw, Pictures
from mbconv.data.memory import OVERSAMPLE, Kept, PictureCache
from mbconv.data.picture import Picture, open_picture
from mbconv.data.source import Sample, scan
from mbconv.data.transform import normalise
from mbconv.measure.memory import keep_freed_memory
from mbconv.preprocessing import Preprocessing
from mbconv.record import Record, write_records

BATCH = 32
LIBRARIES = ("torch", "torchvision", "timm", "pillow", "simplejpeg")
Read = Callable[[list[int]], Tensor]
OURS, CACHED = "mbconv", "mbconv, cached"


def contestants(
    samples: list[Sample], side: int, scale: float, cache: PictureCache
) -> dict[str, Read]:
    """How each makes a batch of the pictures with these numbers: [N, 3, side, side], float32."""
    from timm.data.transforms_factory import create_transform

    preprocessing = Preprocessing(resolution=side)
    crop = v2.RandomResizedCrop(side, (scale, 1.0), interpolation=InterpolationMode.BILINEAR)
    norm = v2.Normalize(list(preprocessing.mean), list(preprocessing.std))
    transform = v2.Compose(
        [crop, v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), norm]
    )
    timms = create_transform(
        side, is_training=True, scale=(scale, 1.0), interpolation="bilinear", color_jitter=0.0
    )

    def ours(held: PictureCache | None) -> Read:
        pictures = Pictures(samples, Augmentation(crop_scale=scale), held)

        def read(numbers: list[int]) -> Tensor:
            items = [pictures[Draw(i, side, (0, 1))] for i in numbers]
            return normalise(pictures.collate(items).pixels, preprocessing)

        return read

    def theirs(load: Callable[[str], Image.Image], change: Callable[[Image.Image], Tensor]) -> Read:
        def read(numbers: list[int]) -> Tensor:
            batch: Tensor = default_collate([change(load(str(samples[i].path))) for i in numbers])
            return batch

        return read

    return {
        OURS: ours(None),
        CACHED: ours(cache),
        "torchvision ImageFolder": theirs(default_loader, transform),
        "timm": theirs(lambda path: Image.open(path).convert("RGB"), timms),
    }


def run_rounds(readers: dict[str, Read], count: int, rounds: int) -> dict[str, list[float]]:
    """Pictures a second, a figure a round, after one round that warms up."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, read in readers.items():
            start = time.perf_counter()
            for first in range(0, count, BATCH):
                read(list(range(first, min(first + BATCH, count))))
            if number:
                rates[name].append(count / (time.perf_counter() - start))
                print(f"round {number}: {name:24} {rates[name][-1]:7.0f} img/s", flush=True)
    return rates


def differences(
    samples: list[Sample], side: int, scale: float, cache: PictureCache
) -> Iterator[tuple[float, float]]:
    """Mean absolute difference from torchvision's antialiased crop: decoded anew, and cached."""
    for i, sample in enumerate(samples):
        picture, whole = open_picture(sample.path), decode(sample.path)
        box = draw_box(picture.width, picture.height, scale, Random(i))
        left, top, right, bottom = map(int, box)
        theirs = v2.functional.resized_crop(
            v2.functional.pil_to_tensor(whole), top, left, bottom - top, right - left,
            [side, side], InterpolationMode.BILINEAR, antialias=True,
        ).permute(1, 2, 0).numpy().astype(int)  # fmt: skip

        def distance(picture: Picture | Kept, box=box, theirs=theirs) -> float:  # type: ignore[no-untyped-def]
            return float(np.abs(picture.part(box, (side, side)).astype(int) - theirs).mean())

        yield distance(picture), distance(cache.kept(i, picture))


def figures(rates: dict[str, list[float]]) -> Iterator[Record]:
    """Rates, and for each of ours the ratio to each of the others within a round."""
    for name, values in rates.items():
        yield figure(name, values, "img/s")
    for ours in (OURS, CACHED):
        for name in rates:
            if name not in (OURS, CACHED):
                pairs = zip(rates[ours], rates[name], strict=True)
                yield figure(f"{ours} / {name}", [a / b for a, b in pairs], "x")


def figure(name: str, values: list[float], unit: str) -> Record:
    """The median, from the least to the largest."""
    return Record(
        name=name, value=statistics.median(values), unit=unit, n=len(values), low=min(values),
        high=max(values), spread=statistics.stdev(values) if len(values) > 1 else 0.0,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--scale", type=float, default=0.35, help="smallest share of the area")
    parser.add_argument("--pictures", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write Records here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    samples = list(scan(args.data, training=False))
    chosen = np.random.default_rng(0).permutation(len(samples))[: args.pictures].tolist()
    samples = [samples[i] for i in chosen]
    print(", ".join(f"{name} {version(name)}" for name in LIBRARIES), end="; ")
    print(f"native kernels: {'yes' if kernels.native_pictures() else 'no'}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MBCONV_CACHE"] = folder
        with PictureCache(round(OVERSAMPLE * args.side), len(samples)) as cache:
            readers = contestants(samples, args.side, args.scale, cache)
            records = list(figures(run_rounds(readers, len(samples), args.rounds)))
            found = zip(*differences(samples, args.side, args.scale, cache), strict=True)
            for name, values in zip((OURS, CACHED), found, strict=True):
                records.append(figure(f"{name}, from torchvision's", list(values), "levels"))
    for r in records:
        print(f"{r.name:45} {r.value:8.2f} {r.unit} ({r.low:.2f} to {r.high:.2f})")
    if args.out is not None:
        write_records(args.out, records)


if __name__ == "__main__":
    main()
