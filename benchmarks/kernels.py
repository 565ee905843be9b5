"""Each native kernel on every distinct shape of a network, beside what the machine can do.

    python benchmarks/kernels.py [--model efficientnet_b0] [--batch 16] [--scaling]

Ceilings are taken in the same run: copying a buffer that exceeds the caches, and a float32 matrix
product. A kernel's floor is the longer of its bytes at the one and its operations at the other;
"of floor" is floor / time. A multiply-add is two operations; those that norms, activations,
statistics and gates take an element count as well (see OPERATIONS), and "taps alone" is the floor
without them. The maps of shapes marked * fit into the last cache, where the memory's ceiling does
not bind; the product's is no hard one, since additions have units of their own.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import mbconv
from mbconv.kernels import native
from mbconv.kernels.reference import ACTIVATIONS, Geometry
from mbconv.measure.ceilings import ceilings, seconds
from mbconv.measure.memory import keep_freed_memory
from mbconv.record import Record, write_records

CACHE = 32 * 2**20
# Of an activation's value, and of its value and slope. SiLU: to powers of two, their fraction, a
# cubic (in float32 of degree five), the whole power, one more, the reciprocal (in float32 a step of
# Newton's), times the element; its slope takes three more.
OPERATIONS = {"none": (0, 0), "relu": (1, 2), "relu6": (2, 5), "hard_swish": (5, 11)}
SILU = {torch.bfloat16: (12, 15), torch.float32: (20, 23)}
NORM = 3  # from the mean; times the scale, plus beta


@dataclass(frozen=True)
class Case:
    """A kernel on a shape: what it moves and computes; `elementwise` is beside the taps."""

    name: str
    call: Callable[[], object]
    bytes: float
    flops: float
    elementwise: float


def shapes(model: str, resolution: int) -> Iterator[tuple[str, int, int, int, int]]:
    """Activation, width, side, kernel and stride of each distinct depthwise convolution."""
    spec, seen = mbconv.get_spec(model), set()
    side = -(-resolution // spec.stem_stride)
    for _, _, channels, block in spec.blocks():
        case = (block.activation, block.expanded(channels), side, block.kernel, block.stride)
        if case not in seen:
            seen.add(case)
            yield case
        side = -(-side // block.stride)


def cases(shape: tuple[str, int, int, int, int], batch: int, dtype: torch.dtype) -> Iterator[Case]:
    act, channels, side, kernel, stride = shape
    assert act in ACTIVATIONS
    out, size = -(-side // stride), dtype.itemsize
    e = torch.randn(batch, side, side, channels).to(dtype)
    d, g = (torch.randn(batch, out, out, channels).to(dtype) for _ in range(2))
    norm = torch.rand(4, channels) + 0.5
    factor, means = torch.rand(batch, channels), torch.rand(2, channels)
    weight, geometry = torch.randn(channels, 1, kernel, kernel), Geometry(kernel, stride, 1, 1)
    large, small, flops = e.numel() * size, d.numel() * size, 2.0 * d.numel() * kernel**2
    value, slope = SILU[dtype] if act == "silu" else OPERATIONS[act]
    label = f"{channels:5} x {side:3} k{kernel} s{stride}{'*' if large < CACHE else ' '}"
    wide, narrow = e.numel(), d.numel()
    calls: list[tuple[str, Callable[[], object], float, float, float]] = [
        ("depthwise", lambda: native.depthwise(e, norm, act, weight, geometry, statistics=True),
         large + small, flops, wide * (NORM + value) + 4 * narrow),
        ("depthwise_backward",
         lambda: native.depthwise_backward(e, g, norm, act, weight, geometry),
         2 * large + small, 2 * flops, wide * (NORM + slope + 4)),
        ("moments", lambda: native.moments(e), large, 0, 4 * wide),
        ("pool", lambda: native.pool(d, norm, act), small, 0, narrow * (NORM + value + 1)),
        ("normalise", lambda: native.normalise(d, norm, act, factor), 2 * small, 0,
         narrow * (NORM + value + 1)),
        ("reduce",
         lambda: native.reduce(d, g, norm, act, gated=True, factor=factor, output=True),
         3 * small, 0, narrow * (NORM + slope + 10)),
        ("apply", lambda: native.apply(d, g, norm, act, means, factor=factor, offset=factor),
         3 * small, 0, narrow * (NORM + slope + 7)),
        ("apply, no act", lambda: native.apply(e, e, norm, "none", means), 3 * large, 0, 6 * wide),
    ]  # fmt: skip
    for name, call, moved, computed, elementwise in calls:
        yield Case(f"{label} {name}", call, moved, computed, elementwise)


def measured(args: argparse.Namespace) -> Iterator[Record]:
    """Seconds of each kernel at the threads that are set, and its floor there."""
    most = ceilings()
    print(f"copy {most.bandwidth / 1e9:.1f} GB/s, float32 product "
          f"{most.arithmetic / 1e9:.0f} GFLOP/s, "
          f"{native.library()[1]}, {torch.get_num_threads()} threads")  # fmt: skip
    for shape in shapes(args.model, args.resolution):
        for case in cases(shape, args.batch, getattr(torch, args.dtype)):
            if args.only not in case.name:
                continue
            taken = seconds(case.call)
            operations = case.flops + case.elementwise
            floor, taps = (most.floor(case.bytes, n) for n in (operations, case.flops))
            print(f"{case.name:40} {1e3 * taken:7.2f} ms {case.bytes / taken / 1e9:6.1f} GB/s "
                  f"{operations / taken / 1e9:6.1f} GFLOP/s {floor / taken:5.0%} of floor, "
                  f"{taps / taken:4.0%} taps alone", flush=True)  # fmt: skip
            detail = {"bytes": case.bytes, "flops": case.flops, "elementwise": case.elementwise,
                      "floor": floor, "floor_of_taps": taps, "bandwidth": most.bandwidth,
                      "arithmetic": most.arithmetic,
                      "threads": torch.get_num_threads()}  # fmt: skip
            yield Record(name=case.name, value=taken, unit="s", detail=detail)


def show_gains(one: list[Record], all_: list[Record]) -> None:
    """What more threads bring each kernel, beside what they bring its floor, and all together."""
    print(f"gain of {all_[0].detail['threads']} threads, and of the floor")
    kinds = [record.name.split()[-1] if "no act" not in record.name else "apply, no act"
             for record in one]  # fmt: skip
    for kind in [*dict.fromkeys(kinds), "all"]:
        own = [(a, b) for a, b, k in zip(one, all_, kinds, strict=True) if kind in (k, "all")]
        gain = sum(a.value for a, _ in own) / sum(b.value for _, b in own)
        floor = sum(a.detail["floor"] for a, _ in own) / sum(b.detail["floor"] for _, b in own)
        print(f"{kind:20} {gain:5.2f} {floor:5.2f}  {gain / floor:5.2f} of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--scaling", action="store_true", help="on one thread first, and the gain")
    parser.add_argument("--out", type=Path, help="write Records here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()  # as training does: else the largest maps' pages are new at every call
    threads, one = torch.get_num_threads(), list[Record]()
    if args.scaling:
        torch.set_num_threads(1)
        one = list(measured(args))
        torch.set_num_threads(threads)
    records = list(measured(args))
    if args.scaling:
        show_gains(one, records)
    if args.out:
        write_records(args.out, [*one, *records])


if __name__ == "__main__":
    main()
