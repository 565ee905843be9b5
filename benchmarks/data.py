"""Random resized crops from a folder of JPEGs: pictures a second on one core, ours and others'.

    python benchmarks/data.py DATA [--side 224] [--scale 0.08] [--pictures 300] [--rounds 5]

All contestants read the same files in one process and one thread, in turn, round by round; a
ratio is taken within a round. Each gives uint8 pixels, cropped (bilinear, antialiased) and
mirrored half of the time; nothing is normalised. Files are in the system's cache: a round before
the first reads them all.

Beside it, how far our pixels are from torchvision's antialiased ones on the same boxes, in grey
levels of 0..255: from the same decoded picture, and from one decoded at reduced scale as training
does.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from mbconv.data.crop import draw_box, random_resized_crop
from mbconv.data.decode import decode
from mbconv.data.loader import OVERSAMPLE, Draw, Pictures
from mbconv.data.source import Sample, scan
from mbconv.record import Record, write_records

RATIO = (3 / 4, 4 / 3)
Read = Callable[[int], Any]
OURS = ("mbconv", "mbconv own crop")


def contestants(samples: list[Sample], side: int, scale: float) -> dict[str, Read]:
    """How each makes picture number i; a picture's number is its place in `samples`."""
    paths = [str(sample.path) for sample in samples]
    pictures = Pictures(samples, crop_scale=scale, flip=True)
    crop = v2.RandomResizedCrop(side, (scale, 1.0), interpolation=InterpolationMode.BILINEAR)
    plain = v2.Compose([crop, v2.RandomHorizontalFlip()])
    with_pillow = v2.Compose([plain, v2.PILToTensor()])
    timms = create_transform(
        side, is_training=True, scale=(scale, 1.0), interpolation="bilinear", color_jitter=0.0,
        use_prefetcher=True,
    )  # fmt: skip

    def own_crop(i: int) -> Any:
        generator = _generator(i)
        image = decode(samples[i].path, min_side=round(OVERSAMPLE * side))
        pixels = random_resized_crop(image, side, (scale, 1.0), RATIO, generator)
        return np.ascontiguousarray(pixels[:, ::-1]) if generator.random() < 0.5 else pixels

    return {
        "mbconv": lambda i: pictures[Draw(i, side, (0, 1))],
        "mbconv own crop": own_crop,
        "torchvision ImageFolder": lambda i: with_pillow(default_loader(paths[i])),
        "torchvision decode_image": lambda i: plain(decode_image(paths[i], ImageReadMode.RGB)),
        "timm": lambda i: timms(Image.open(paths[i]).convert("RGB")),
    }


def run_rounds(readers: dict[str, Read], count: int, rounds: int) -> dict[str, list[float]]:
    """Pictures a second, a figure a round; the first round, which is not counted, warms up."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, read in readers.items():
            start = time.perf_counter()
            for i in range(count):
                read(i)
            rate = count / (time.perf_counter() - start)
            if number:
                rates[name].append(rate)
                print(f"round {number}: {name:26} {rate:7.0f} img/s", flush=True)
    return rates


def differences(samples: list[Sample], side: int, scale: float) -> Iterator[tuple[float, float]]:
    """Mean absolute difference from torchvision's crop: whole pictures, and reduced ones."""
    for i, sample in enumerate(samples):
        whole = decode(sample.path)
        left, top, right, bottom = draw_box(*whole.size, (scale, 1.0), RATIO, _generator(i))
        theirs = v2.functional.resized_crop(
            v2.functional.pil_to_tensor(whole), top, left, bottom - top, right - left,
            [side, side], InterpolationMode.BILINEAR, antialias=True,
        ).permute(1, 2, 0).numpy().astype(int)  # fmt: skip
        reduced = decode(sample.path, min_side=round(OVERSAMPLE * side))
        found = [
            random_resized_crop(image, side, (scale, 1.0), RATIO, _generator(i)).astype(int)
            for image in (whole, reduced)
        ]
        yield float(np.abs(found[0] - theirs).mean()), float(np.abs(found[1] - theirs).mean())


def _generator(i: int) -> np.random.Generator:
    return np.random.default_rng((0, 1, i))


def figures(rates: dict[str, list[float]]) -> Iterator[Record]:
    """Rates, and for each of ours the ratio to each of the others within a round."""
    for name, values in rates.items():
        yield _figure(name, values, "img/s")
    for ours in OURS:
        for name in rates:
            if name not in OURS:
                pairs = zip(rates[ours], rates[name], strict=True)
                yield _figure(f"{ours} / {name}", [a / b for a, b in pairs], "x")
    pairs = zip(rates[OURS[1]], rates[OURS[0]], strict=True)
    yield _figure(f"{OURS[1]} / {OURS[0]}", [a / b for a, b in pairs], "x")


def _figure(name: str, values: list[float], unit: str) -> Record:
    return Record(
        name=name, value=statistics.median(values), unit=unit, n=len(values), low=min(values),
        high=max(values), spread=statistics.stdev(values) if len(values) > 1 else 0.0,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--scale", type=float, default=0.08, help="smallest share of the area")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write Records here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # decode_image is to move elsewhere
    torch.manual_seed(0)
    samples = list(scan(args.data, training=False))
    chosen = np.random.default_rng(0).permutation(len(samples))[: args.pictures].tolist()
    samples = [samples[i] for i in chosen]
    readers = contestants(samples, args.side, args.scale)
    records = list(figures(run_rounds(readers, len(samples), args.rounds)))
    whole, reduced = zip(*differences(samples, args.side, args.scale), strict=True)
    records += [_figure("difference, same picture", list(whole), "levels"),
                _figure("difference, reduced picture", list(reduced), "levels")]  # fmt: skip
    for r in records:
        print(f"{r.name:50} {r.value:8.2f} {r.unit} ({r.low:.2f} to {r.high:.2f})")
    if args.out is not None:
        write_records(args.out, records)


if __name__ == "__main__":
    main()
