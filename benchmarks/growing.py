"""Whether growing saves time: a small network trained, grown and trained on, or all from scratch.

    python benchmarks/growing.py DATA [--seconds 60] [--seeds 3] [--out growing.jsonl]
    python benchmarks/growing.py DATA --out growing.jsonl --table

DATA holds `train` and `val` folders (Imagewoof). The large network has `--depth` times the blocks
and `--width` times the channels of a small one. It learns from scratch for T, or the small one
learns for T/2, grows, and the large one learns for T/2; and the same with half of T. Growing keeps
the function (exact), or moves the tensors that fit, with batch norms (transplant) or without
(convolutions). Each training is one cycle of the learning rate.

T is processor time of one thread, so that whatever else runs on the machine hardly counts: the
seconds of a step of either network are measured first, and T is spent in that many steps. A run
that is in `--out` already is not run again, and those that are left take as many steps.
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import mbconv
from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.data.decode import decode
from mbconv.data.loader import Batch
from mbconv.data.source import Sample, scan
from mbconv.data.transform import normalise, prepare
from mbconv.growing.layout import is_parameter
from mbconv.growing.plan import Mode, plan
from mbconv.measure.memory import keep_freed_memory
from mbconv.preprocessing import Preprocessing
from mbconv.record import Record, read_records, write_records
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.recipe import (
    Loss,
    Optimizer,
    Phase,
    Recipe,
    Regularization,
    Schedule,
    Transfer,
)

SIDE, MARGIN, BATCH = 64, 12, 64  # px, px that a crop may move, pictures
POINTS = 6  # of the curve, for a whole T
SOME = 1000  # validation pictures for these; the last point has all
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's 97.5% point for so many seeds
MODES: dict[str, Mode] = {
    "grown, function kept": "exact",
    "transplant with batch norm": "transplant",
    "transplant, convolutions only": "convolutions",
}
SCRATCH = "from scratch"
SMALL = Spec(
    name="small", resolution=SIDE, num_classes=10, stem_channels=16, head_channels=320,
    dropout=0.0, drop_path=0.0, activation="relu6",
    stages=tuple(
        Stage(blocks=(Block(channels=channels, stride=stride, expand=4, kernel=kernel,
                            activation="relu6"),))
        for channels, stride, kernel in ((16, 1, 3), (24, 2, 3), (40, 2, 5), (80, 2, 3))
    ),
)  # fmt: skip
Data = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class Arm:
    """One way to spend `share` of T on the large network."""

    name: str
    share: float

    @property
    def label(self) -> str:
        return f"{self.name}, {'T' if self.share == 1 else 'T/2'}"


ARMS = tuple(Arm(name, share) for share in (1.0, 0.5) for name in (SCRATCH, *MODES))


def arms(large: Spec) -> list[Arm]:
    """All but those that move the same tensors as one before, where widths leave little to fit."""
    starts = {
        name: [move for move in plan(SMALL, large, mode).moves if is_parameter(move.name)]
        for name, mode in MODES.items()
    }
    names = [SCRATCH]
    for name, moves in starts.items():
        if all(moves != starts.get(other) for other in names):
            names.append(name)
    return [arm for arm in ARMS if arm.name in names]


class Learner:
    """Pictures, the time of a step of either network, and what has been learnt so far."""

    def __init__(
        self,
        train: Data,
        val: Data,
        specs: Sequence[Spec],
        seconds: float,
        cost: dict[str, float] | None = None,
    ) -> None:
        self.train, self.val, self.seconds = train, val, seconds
        self.machine = Machine(threads=1, dtype="bfloat16", channels_last=False)
        self.cost = cost or self._measured(specs)

    def _measured(self, specs: Sequence[Spec], rounds: int = 5, steps: int = 4) -> dict[str, float]:
        """Processor seconds of a step, the least of some rounds in turn."""
        trainers = {spec.name: self._trainer(mbconv.build(spec), 1000) for spec in specs}
        times: dict[str, list[float]] = {name: [] for name in trainers}
        for round_ in range(rounds + 1):
            for name, trainer in trainers.items():
                begun = time.process_time()
                for step in range(steps):
                    trainer.step(self._batch(round_ * steps + step, 0), step, 0)
                times[name].append((time.process_time() - begun) / steps)
        return {name: min(found[1:]) for name, found in times.items()}

    def _trainer(self, model: mbconv.MBConvNet, total: int) -> Trainer:
        recipe = Recipe(
            name="growing", phases=(Phase(SIDE, 1),), batch_size=BATCH,
            optimizer=Optimizer(learning_rate=4e-3, weight_decay=0.05),
            schedule=Schedule(kind="one_cycle", warmup=0.25), loss=Loss(),
            regularization=Regularization(dropout=0.0, drop_path=0.0, ema_decay=0.99),
            transfer=Transfer(),
        )  # fmt: skip
        return Trainer(model, recipe, self.machine, total)

    def _batch(self, step: int, seed: int) -> Batch:
        """Random parts of random pictures, half of them mirrored; depends on both numbers alone."""
        pictures, labels = self.train
        per_epoch = len(labels) // BATCH
        order = np.random.default_rng((seed, step // per_epoch)).permutation(len(labels))
        chosen = order[step % per_epoch * BATCH :][:BATCH]
        rng, found = np.random.default_rng((seed, step, 1)), []
        for picture in pictures[chosen]:
            top, left = rng.integers(0, MARGIN + 1, 2)
            part = picture[top : top + SIDE, left : left + SIDE]
            found.append(part[:, ::-1] if rng.random() < 0.5 else part)
        return Batch(torch.from_numpy(np.stack(found)), torch.from_numpy(labels[chosen]), ())

    def score(self, model: mbconv.MBConvNet, most: int | None = None) -> float:
        """Accuracy on the first `most` validation pictures, or all; they are in random order."""
        pictures, labels = self.val[0][:most], self.val[1][:most]
        inner, right = slice(MARGIN // 2, MARGIN // 2 + SIDE), 0
        training = model.training
        model.eval()
        with torch.inference_mode():
            for at in range(0, len(labels), BATCH):
                pixels = np.ascontiguousarray(pictures[at : at + BATCH, inner, inner])
                x = normalise(torch.from_numpy(pixels), model.preprocessing)
                right += int((model(x).argmax(1).numpy() == labels[at : at + BATCH]).sum())
        model.train(training)
        return right / len(labels)

    def learn(
        self, model: mbconv.MBConvNet, share: float, seed: int, begun: float = 0.0
    ) -> tuple[mbconv.MBConvNet, list[list[float]], float]:
        """Train for that share of T: the averaged network, its curve, the processor time it took.

        The curve has [share of T so far, accuracy], from `begun` on.
        """
        total = max(1, round(share * self.seconds / self.cost[model.spec.name]))
        trainer, curve, spent = self._trainer(model, total), [], 0.0
        points = {round(total * k / (POINTS * share)) for k in range(1, POINTS)} - {total}
        curve.append([begun, self.score(trainer.ema, SOME)])
        offset = round(begun * 10_000)  # other pictures than those of the training before
        for step in range(total):
            before = time.process_time()
            trainer.step(self._batch(offset + step, seed), step, seed)
            spent += time.process_time() - before
            if step + 1 in points:
                curve.append([begun + share * (step + 1) / total, self.score(trainer.ema, SOME)])
        curve.append([begun + share, self.score(trainer.ema)])
        return trainer.ema, curve, spent


def read(samples: Sequence[Sample]) -> Data:
    wanted = Preprocessing(resolution=SIDE + MARGIN, resize=SIDE + MARGIN)
    order = np.random.default_rng(0).permutation(len(samples))
    chosen = [samples[i] for i in order]
    pictures = [prepare(decode(s.path, min_side=2 * SIDE), wanted) for s in chosen]
    return np.stack(pictures), np.array([s.label for s in chosen])


def runs(learner: Learner, large: Spec, seed: int, done: set[str]) -> Iterator[Record]:
    """The arms that are not done yet; a small network is trained once and grown in all ways."""
    for share in (1.0, 0.5):
        asked = [arm for arm in arms(large) if arm.share == share]
        missing = [arm for arm in asked if f"{arm.label}, seed {seed}" not in done]
        if not missing:
            continue
        torch.manual_seed(seed)
        small, first, spent_first = learner.learn(mbconv.build(SMALL), share / 2, seed)
        for arm in missing:
            torch.manual_seed(seed)
            if arm.name == SCRATCH:
                _, curve, spent = learner.learn(mbconv.build(large), share, seed)
                moved = 0
            else:
                mode = MODES[arm.name]
                moved = plan(SMALL, large, mode).effective
                grown = mbconv.grow(small, large, mode=mode, seed=seed)
                _, curve, spent = learner.learn(grown, share / 2, seed, begun=share / 2)
                curve, spent = first + curve, spent + spent_first
            yield Record(
                name=f"{arm.label}, seed {seed}", value=curve[-1][1], n=len(learner.val[1]),
                spec_hash=large.hash,
                detail={"arm": arm.label, "seed": seed, "curve": curve, "moved": moved,
                        "cpu_seconds": spent, "budget_seconds": share * learner.seconds,
                        "seconds_per_step": learner.cost},
            )  # fmt: skip


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95% interval by Student's t; nan for a single value."""
    mean, n = statistics.fmean(values), len(values)
    spread = statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return mean, T95.get(n, 1.96) * spread


def table(records: Sequence[Record]) -> Iterator[str]:
    """Markdown: each arm's accuracy, and how far it is from scratch in the same time, by seed."""
    yield "| the large network, in | top-1, % | beside scratch, points | parameters moved | seeds |"
    yield "|---|---|---|---|---|"
    by_arm = {
        arm: {r.detail["seed"]: r for r in records if r.detail["arm"] == arm.label} for arm in ARMS
    }
    for arm, found in by_arm.items():
        if not found:
            continue
        base = by_arm[Arm(SCRATCH, arm.share)]
        both = sorted(set(found) & set(base))
        beside = ""
        if arm.name != SCRATCH and both:
            beside = shown([found[s].value - base[s].value for s in both], "+.1f")
        top1 = shown([r.value for r in found.values()], ".1f")
        moved = next(iter(found.values())).detail["moved"]
        yield f"| {arm.label} | {top1} | {beside} | {moved:,} | {len(found)} |"


def shown(values: Sequence[float], form: str) -> str:
    """In percent: the mean and its interval, which one seed has none of."""
    mean, half = interval(values)
    text = format(100 * mean, form)
    if math.isnan(half):
        return text
    return f"{text} ({100 * (mean - half):{form}} to {100 * (mean + half):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=60, help="T, in processor seconds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--depth", type=float, default=2.0)
    parser.add_argument("--width", type=float, default=1.4)
    parser.add_argument("--out", type=Path, default=Path("growing.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print what is in --out")
    args = parser.parse_args()
    records = read_records(args.out) if args.out.exists() else []
    if not args.table:
        torch.set_num_threads(1)
        keep_freed_memory()
        splits = scan(args.data).splits
        large = mbconv.scale(SMALL, width=args.width, depth=args.depth)
        known = records[0].detail["seconds_per_step"] if records else None  # as many steps again
        pictures = read(splits["train"]), read(splits["val"])
        learner = Learner(*pictures, (SMALL, large), args.seconds, known)
        for spec in (SMALL, large):
            cost, step = mbconv.cost(spec), 1000 * learner.cost[spec.name]
            print(f"{spec.name}: {cost.params:,} parameters, {cost.macs / 1e6:.1f} MMACs, "
                  f"{step:.0f} ms a step of {BATCH}", flush=True)  # fmt: skip
        for seed in range(args.seeds):
            for record in runs(learner, large, seed, {r.name for r in records}):
                records.append(record)
                write_records(args.out, records)
                print(f"{record.name:46} {100 * record.value:5.1f}%  "
                      f"{record.detail['cpu_seconds']:4.0f} s", flush=True)  # fmt: skip
    print("\n".join(table(records)))


if __name__ == "__main__":
    main()
