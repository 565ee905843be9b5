"""Whether fused kernels in bfloat16 learn as plain modules in float32 do.

    python benchmarks/curves.py DATA [--seeds 3] [--out curves.jsonl]

Fine-tunes a pretrained network, batch norms learning, on DATA/train with the same pictures, crops
and order on both sides, and scores it on DATA/test. The two differ by kernels and number format
alone. A third line, plain modules in float32 with other seeds, shows what chance does.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import mbconv
from mbconv import kernels
from mbconv.data.decode import decode
from mbconv.data.source import Sample, scan
from mbconv.data.transform import normalise, prepare
from mbconv.measure.memory import keep_freed_memory
from mbconv.preprocessing import Preprocessing
from mbconv.record import Record, write_records

SIDE, MARGIN, BATCH = 112, 16, 32  # px, px that a crop may move, pictures
SIDES: dict[str, tuple[kernels.Mode, bool, int]] = {  # kernels, bfloat16, added to the seed
    "plain fp32": ("plain", False, 0),
    "fused bf16": ("auto", True, 0),
    "plain fp32, other seeds": ("plain", False, 100),
}
Data = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read(samples: Sequence[Sample], preprocessing: Preprocessing) -> Data:
    pictures = [prepare(decode(s.path, min_side=2 * SIDE), preprocessing) for s in samples]
    return np.stack(pictures), np.array([s.label for s in samples])


def crops(pictures: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random SIDE x SIDE part of each picture, half of them mirrored."""
    found = []
    for picture in pictures:
        top, left = rng.integers(0, picture.shape[0] - SIDE + 1, 2)
        part = picture[top : top + SIDE, left : left + SIDE]
        found.append(part[:, ::-1] if rng.random() < 0.5 else part)
    return np.stack(found)


def score(model: mbconv.MBConvNet, data: Data) -> float:
    middle = data[0][:, MARGIN // 2 : MARGIN // 2 + SIDE, MARGIN // 2 : MARGIN // 2 + SIDE]
    model.eval()
    right = 0
    with torch.inference_mode():
        for at in range(0, len(middle), 64):
            x = normalise(torch.from_numpy(middle[at : at + 64].copy()), model.preprocessing)
            right += int((model(x).argmax(1).numpy() == data[1][at : at + 64]).sum())
    return right / len(middle)


def run(side: str, seed: int, train: Data, test: Data, args: argparse.Namespace) -> list[float]:
    """The accuracy four times an epoch."""
    mode, bf16, other = SIDES[side]
    kernels.use(mode)
    torch.manual_seed(seed + other)
    rng = np.random.default_rng(seed + other)
    model = mbconv.create_model(args.model, pretrained=True, num_classes=int(train[1].max()) + 1)
    model = model.to(memory_format=torch.channels_last)
    per_epoch = len(train[1]) // BATCH
    total, curve = args.epochs * per_epoch, []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total)
    for step in range(total):
        if step % per_epoch == 0:
            order = rng.permutation(len(train[1]))
        chosen = order[step % per_epoch * BATCH :][:BATCH]
        model.train()
        x = normalise(torch.from_numpy(crops(train[0][chosen], rng)), model.preprocessing)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), torch.from_numpy(train[1][chosen]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % (per_epoch // 4) == 0:
            curve.append(score(model, test))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write Records here")
    args = parser.parse_args()
    keep_freed_memory()
    own = mbconv.load(args.model).preprocessing.at(SIDE + MARGIN)
    whole = scan(args.data).splits
    train, test = (read(whole[name], own) for name in ("train", "test"))
    curves: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for seed in range(args.seeds):
        for side in SIDES:
            begun = time.perf_counter()
            curves[side].append(run(side, seed, train, test, args))
            shown = " ".join(f"{100 * value:5.1f}" for value in curves[side][-1])
            print(f"seed {seed} {side:24} {shown}  {time.perf_counter() - begun:.0f} s", flush=True)
    records = []
    for side, found in curves.items():
        for place, values in enumerate(zip(*found, strict=True)):
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            records.append(Record(name=f"{side}: top-1 after {(place + 1) / 4} epochs",
                                  value=statistics.fmean(values), spread=spread, n=len(values),
                                  detail={"values": values}))  # fmt: skip
            print(f"{records[-1].name:52} {100 * records[-1].value:5.1f}% +- {100 * spread:.1f}")
    if args.out:
        write_records(args.out, records)


if __name__ == "__main__":
    main()
