"""Fine-tuning on a folder of pictures: mbconv's default against a competent timm loop.

    python benchmarks/finetune.py DATA [--seeds 3] [--runs mbconv timm-128] [--out finetune.jsonl]

DATA holds train, validation and test folders. Every run is a process of its own, in turn, and its
clock starts with the process (imports, audit and all), but stands still while the score is taken.
The score are the validation and test pictures together; nothing trains on them or is selected by
them: mbconv holds its selection split out of train. Peers: timm's tf_efficientnet_lite0 with the
same weights, channels_last, AdamW with one cycle to 1e-3, label smoothing, random resized crop,
two workers; 6 epochs at 128 px and 4 at 224 px, all of train. `mbconv-plain` is mbconv without its
fused kernels.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbconv.data.source import Sample, scan
from mbconv.record import Record, write_records

PEERS = {"timm-128": (128, 6), "timm-224": (224, 4)}
OURS: dict[str, str] = {"mbconv": "auto", "mbconv-plain": "plain"}  # the kernels
RUNS = (*OURS, *PEERS)
GOALS = (0.85, 0.90)


class Clock:
    """Seconds since the process was started, without those spent on scoring."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.paused = 0.0

    def report(self, correct: Sequence[bool], since: float) -> None:
        """Print one point of the curve; the time since `since` was for scoring."""
        seconds = since - self.started - self.paused
        self.paused += time.time() - since
        line = {"seconds": seconds, "correct": "".join("01"[int(c)] for c in correct)}
        print(json.dumps(line), flush=True)


def score_samples(data: Path) -> list[Sample]:
    """Validation and test pictures together."""
    dataset = scan(data)
    return [*dataset.splits["val"], *dataset.splits["test"]]


def run_mbconv(data: Path, seed: int, clock: Clock) -> None:
    """What `mbconv train` does by default, on a folder that holds `train` alone."""
    import mbconv
    from mbconv.measure.accuracy import collect

    samples = score_samples(data)

    def score(network: mbconv.MBConvNet, resolution: int) -> None:
        since = time.time()
        at = network.preprocessing.at(resolution)
        collected = collect(mbconv.Predictor(network, preprocessing=at), samples)
        clock.report(collected.logits.argmax(1) == collected.targets, since)

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        (Path(folder) / "data" / "train").symlink_to((data / "train").resolve())
        run = mbconv.train(
            "efficientnet_lite0",
            Path(folder) / "data",
            Path(folder) / "run",
            seed=seed,
            on_epoch=lambda network, line: score(network, line["resolution"]),
            quiet=True,
        )
        score(run.model, run.model.preprocessing.resolution)


def run_timm(data: Path, seed: int, clock: Clock, resolution: int, epochs: int) -> None:
    """A plain, competent loop, as one would write it with timm and torchvision."""
    import timm
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode, v2

    import mbconv

    torch.manual_seed(seed)
    pretrained = mbconv.load("efficientnet_lite0")
    model = timm.create_model("tf_efficientnet_lite0")
    given = pretrained.state_dict().values()  # both list stem, blocks and head in order
    model.load_state_dict(dict(zip(model.state_dict(), given, strict=True)))
    model.reset_classifier(len(list((data / "train").iterdir())))  # type: ignore[operator]
    model = model.to(memory_format=torch.channels_last)
    of_weights = pretrained.preprocessing
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
              v2.Normalize(of_weights.mean, of_weights.std)]  # fmt: skip
    crop = v2.RandomResizedCrop(resolution, (0.35, 1.0), interpolation=InterpolationMode.BILINEAR)
    augment = v2.Compose([crop, v2.RandomHorizontalFlip(), *finish])
    prepare = v2.Compose([
        v2.Resize(round(resolution / 0.875), InterpolationMode.BICUBIC),
        v2.CenterCrop(resolution), *finish,
    ])  # fmt: skip
    loader = DataLoader(
        ImageFolder(data / "train", augment), 32, shuffle=True, num_workers=2, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip
    held_out = [DataLoader(ImageFolder(data / split, prepare), 32, num_workers=2)
                for split in ("validation", "test")]  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, epochs * len(loader))

    def score() -> list[bool]:
        model.eval()
        right: list[bool] = []
        with torch.inference_mode():
            for part in held_out:
                for x, y in part:
                    x = x.to(memory_format=torch.channels_last)
                    right.extend((model(x).argmax(1) == y).tolist())
        return right

    for _ in range(epochs):
        model.train()
        for x, y in loader:
            logits = model(x.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, y, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        since = time.time()
        clock.report(score(), since)


def child(name: str, data: Path, seed: int, started: float) -> None:
    clock = Clock(started)
    if name in OURS:
        run_mbconv(data, seed, clock)
    else:
        run_timm(data, seed, clock, *PEERS[name])


def measure(name: str, data: Path, seed: int) -> list[dict[str, Any]]:
    """Run one of RUNS in a process of its own with an empty cache; its curve."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, __file__, str(data), "--child", name, "--seed", str(seed),
             "--started", repr(time.time())],
            stdout=subprocess.PIPE, text=True, check=True, env=_environment(name, cache),
        )  # fmt: skip
    curve = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for point in curve:
        point["top1"] = point["correct"].count("1") / len(point["correct"])
    shown = "  ".join(f"{100 * p['top1']:.1f}% {p['seconds']:.0f}s" for p in curve)
    print(f"seed {seed} {name:12} {shown}", flush=True)
    return curve


def _environment(name: str, cache: str) -> dict[str, str]:
    return {**os.environ, "MBCONV_CACHE": cache, "MBCONV_KERNELS": OURS.get(name, "auto")}


def time_to(curve: list[dict[str, Any]], goal: float) -> float:
    return next((p["seconds"] for p in curve if p["top1"] >= goal), math.inf)


def paired(ours: list[Any], peer: list[Any]) -> tuple[float, float]:
    """Mean difference of the final accuracies and half of its 95% interval, over pictures."""
    mean = [np.mean([[c == "1" for c in curve[-1]["correct"]] for curve in runs], axis=0)
            for runs in (ours, peer)]  # fmt: skip
    difference = mean[0] - mean[1]
    return difference.mean(), 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))


def summarize(curves: dict[str, list[list[dict[str, Any]]]], out: Path | None) -> None:
    records = []
    for name, runs in curves.items():
        figures = {f"seconds to {g:.0%}": [time_to(c, g) for c in runs] for g in GOALS}
        figures["final top1"] = [c[-1]["top1"] for c in runs]
        figures["seconds in all"] = [c[-1]["seconds"] for c in runs]
        for label, values in figures.items():
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            detail = {"values": values}
            record = Record(
                name=f"{name}: {label}",
                value=statistics.fmean(values),
                spread=spread,
                n=len(values),
                detail=detail,
            )
            records.append(record)
            print(f"{record.name:30} {record.value:9.3f} +- {spread:.3f}")
    own = curves.get("mbconv", [])
    for name in [n for n in curves if own and n != "mbconv"]:
        for goal in GOALS:
            mine, theirs = (statistics.fmean(time_to(c, goal) for c in runs)
                            for runs in (own, curves[name]))  # fmt: skip
            print(f"to {goal:.0%}: mbconv takes {mine / theirs:.2f} of {name}'s time")
        mean, half = paired(own, curves[name])
        print(f"final top-1, mbconv minus {name}: {100 * mean:+.2f} +- {100 * half:.2f} points")
    if out is not None:
        write_records(out, records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--out", type=Path, help="write Records here")
    parser.add_argument("--child", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.data, args.seed, args.started)
        return
    curves: dict[str, list[Any]] = {name: [] for name in args.runs}
    for seed in range(args.seeds):
        for name in args.runs:
            curves[name].append(measure(name, args.data, seed))
    summarize(curves, args.out)


if __name__ == "__main__":
    main()
