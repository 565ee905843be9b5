"""The complaint that few multiply-adds are not fast, and the answer, on twelve networks.

Each MBConv network runs twice: as plain modules of another library, and as ours with its kernels.
Rivals with plain convolutions run beside them. All take turns, each in its fastest way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mbconv.comparing.ways import usual_ways
from mbconv.measure.bench import Bench, Goal, Plan
from mbconv.measure.speed import Tell
from mbconv.measure.task import Way
from mbconv.record import Record

# Ours, and the same network as another library builds it.
PAIRS = (
    ("efficientnet_b0", "timm:efficientnet_b0"),
    ("efficientnet_b2", "timm:efficientnet_b2"),
    ("efficientnet_b4", "timm:efficientnet_b4"),
    ("efficientnet_lite0", "timm:efficientnet_lite0"),
    ("efficientnetv2_b0", "timm:tf_efficientnetv2_b0"),
    ("mobilenetv2_100", "timm:mobilenetv2_100"),
    ("mobilenetv3_large_100", "timm:mobilenetv3_large_100"),
    ("mnasnet_a1", "timm:semnasnet_100"),
)
RIVALS = ("timm:resnet18", "timm:resnet50", "timm:resnet50d", "timm:resnext50_32x4d")
RESOLUTION = 224
LIGHT = 1e9  # multiply-adds below which the larger batch is run
BATCHES = (16, 4)


def gap(
    tell: Tell,
    first: Way,
    *,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    rivals: Sequence[str] = RIVALS,
    resolution: int = RESOLUTION,
    rounds: int = 5,
) -> Iterator[Record]:
    """Passes and training steps of all; `detail` says the `part` of each: ours, plain or rival.

    `of` is the name under which ours and the plain one are the same network.
    """
    parts = {name: ("rival", name) for name in rivals}
    for ours, plain in pairs:
        parts |= {ours: ("ours", ours), plain: ("plain", ours)}
    plan = Plan(resolution=resolution, ways=usual_ways(first), fastest=True,
                memory=False, rounds=rounds)  # fmt: skip

    def told(record: Record) -> Record:
        part, of = parts[record.detail["network"]]
        return replace(record, detail=record.detail | {"part": part, "of": of, "view": "same"})

    yield from map(told, _figures(Bench(plan, tell), list(parts)))


def _figures(bench: Bench, names: Sequence[str]) -> Iterator[Record]:
    subjects = yield from bench.opened(names)
    goals = []
    for subject in subjects:
        batch = BATCHES[bench.macs[subject.name] >= LIGHT]
        goals += [(subject, Goal("throughput", "inference", batch)),
                  (subject, Goal("training_throughput", "training", batch))]  # fmt: skip
    yield from bench.timed(goals)
