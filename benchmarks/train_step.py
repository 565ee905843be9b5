"""Training steps: ours against timm's network of the same name and torchvision's ResNet-50.

    python benchmarks/train_step.py [--model efficientnet_b0] [--rounds 5] [--compile]
    python benchmarks/train_step.py --memory

A step is forward, loss, backward and SGD on one batch of noise at 224 px. All contestants live in
one process and run in turn, round by round; a ratio is taken within a round, against the peer's
best configuration of {NCHW, channels_last} x {float32, bfloat16 autocast} (x {eager, compiled}).
A peer that takes over 1.5 times as long as the best of its network and number format in the first
round takes part in no further one. All of them run with freed memory kept, as `mbconv train` does;
`--default-malloc` leaves it.

`--memory` measures what is kept for backward, each network in a process of its own: the slope of
the resident memory after the forward pass over three batch sizes, and beside it what autograd's
hooks for saved tensors see. The picture itself is not counted.
"""

import argparse
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mbconv
from mbconv import kernels
from mbconv.measure.memory import keep_freed_memory
from mbconv.record import Record, write_records

MIB = 2**20
CLASSES = 1000
HOPELESS = 1.5  # times the best of the same network and number format, in the first round
PEERS = ("timm", "resnet50")
FORMATS = ("bf16", "fp32")


@dataclass(frozen=True)
class Contestant:
    """A network and how it computes; `memory` is mbconv's own choice, None for the peers."""

    network: str  # mbconv, timm or resnet50
    bf16: bool = True
    channels_last: bool = True
    compiled: bool = False
    memory: kernels.Memory | None = None

    @property
    def name(self) -> str:
        words = [self.network, "bf16" if self.bf16 else "fp32"]
        words += ["channels_last" if self.channels_last else "NCHW"]
        words += ["compiled"] * self.compiled + ["lean"] * (self.memory == "lean")
        return " ".join(words)

    def build(self, model: str) -> nn.Module:
        torch.manual_seed(0)
        if self.network == "mbconv":
            network: nn.Module = mbconv.build(mbconv.get_spec(model))
        elif self.network == "timm":
            import timm

            spec = mbconv.get_spec(model)
            known = timm.is_model(model)  # some it has with TensorFlow's padding only
            network = timm.create_model(
                model if known else f"tf_{model}",
                drop_rate=spec.dropout,
                drop_path_rate=spec.drop_path,
            )
        else:
            import torchvision

            network = torchvision.models.resnet50()
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return network.to(memory_format=layout).train()

    def pictures(self, batch: int, resolution: int, dtype: torch.dtype | None = None) -> Tensor:
        x = torch.randn(batch, 3, resolution, resolution, dtype=dtype)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return x.contiguous(memory_format=layout)

    def forward(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.memory is not None:
            kernels.use("auto", memory=self.memory)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return network(x)


def stepper(contestant: Contestant, model: str, batch: int, resolution: int) -> Callable[[], None]:
    network = contestant.build(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)
    call = torch.compile(network) if contestant.compiled else network
    x, target = contestant.pictures(batch, resolution), torch.randint(0, CLASSES, (batch,))

    def step() -> None:
        loss = F.cross_entropy(contestant.forward(call, x).float(), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def contestants(
    compiled: bool, peers: Sequence[str] = PEERS, formats: Sequence[str] = FORMATS
) -> list[Contestant]:
    ours = [Contestant("mbconv", memory="normal"), Contestant("mbconv", memory="lean"),
            Contestant("mbconv", bf16=False, memory="normal")]  # fmt: skip
    bf16 = [name == "bf16" for name in formats]
    ways = itertools.product(bf16, (True, False), (False, True) if compiled else (False,))
    options = list(ways)
    return ours + [Contestant(name, *option) for name in peers for option in options]


def run_rounds(args: argparse.Namespace) -> dict[Contestant, list[float]]:
    """Seconds a step, a figure a round: the median of a round's steps."""
    steps = {c: stepper(c, args.model, args.batch, args.resolution)
             for c in contestants(args.compile, args.peers, args.formats)}  # fmt: skip
    for contestant, step in steps.items():
        start = time.perf_counter()
        step()
        print(f"first step: {contestant.name:32} {time.perf_counter() - start:5.1f} s", flush=True)
    seconds: dict[Contestant, list[float]] = {c: [] for c in steps}
    for number in range(args.rounds):
        for contestant, step in steps.items():
            times = []
            for _ in range(args.steps):
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
            seconds[contestant].append(statistics.median(times))
            print(f"round {number + 1}: {contestant.name:32} {1e3 * times[-1]:7.0f} ms", flush=True)
        if number == 0:
            steps = {c: step for c, step in steps.items() if not hopeless(c, seconds)}
    return seconds


def hopeless(peer: Contestant, seconds: dict[Contestant, list[float]]) -> bool:
    rivals = [s[0] for c, s in seconds.items() if (c.network, c.bf16) == (peer.network, peer.bf16)]
    return peer.memory is None and seconds[peer][0] > HOPELESS * min(rivals)


def compare(seconds: dict[Contestant, list[float]], args: argparse.Namespace) -> list[Record]:
    """Print medians and, for each of ours, the ratio to the best of each peer."""
    records = []

    def figure(name: str, values: list[float], unit: str) -> None:
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        records.append(Record(name=f"{args.model} {name}", value=statistics.median(values),
                              unit=unit, n=len(values), low=min(values), high=max(values),
                              spread=spread, detail=vars(args) | {"out": None}))  # fmt: skip
        print(f"{name:54} {records[-1].value:8.2f} {unit:6} {min(values):.2f} to {max(values):.2f}")

    for contestant, values in seconds.items():
        figure(contestant.name, [args.batch / s for s in values], "img/s")
    ours = [c for c in seconds if c.memory is not None]
    for own, peer in itertools.product(ours, args.peers):
        rivals = [c for c in seconds if c.network == peer and (own.bf16 or not c.bf16)
                  and len(seconds[c]) == args.rounds]  # fmt: skip
        best = min(rivals, key=lambda c: statistics.median(seconds[c]))
        figure(f"{own.name} : {best.name}", ratios(seconds[own], seconds[best]), "times")
    normal, lean = ours[:2]
    figure(f"{lean.name} : {normal.name}", ratios(seconds[lean], seconds[normal]), "times")
    return records


def ratios(own: list[float], other: list[float]) -> list[float]:
    """How many times as fast as the other, round by round."""
    return [theirs / mine for mine, theirs in zip(own, other, strict=True)]


# Memory


def resident() -> int:
    """Bytes, after the allocator has handed back what is free."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kept_bytes(contestant: Contestant, network: nn.Module, x: Tensor) -> tuple[int, int]:
    """What hooks for saved tensors see, each storage once, without parameters: activations, and
    copies of the picture (the stem's zero padding makes one)."""
    known = {t.untyped_storage().data_ptr() for t in (x, *network.parameters())}
    activations: dict[int, int] = {}
    pictures: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tensor.shape[0] == x.shape[0]:
            picture = tensor.ndim == 4 and tensor.shape[1] == x.shape[1]
            (pictures if picture else activations)[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = contestant.forward(network, x)
    del y
    return sum(activations.values()), sum(pictures.values())


def memory_child(contestant: Contestant, model: str, resolution: int) -> None:
    """Pictures come in the format that is computed in: autocast's copy is no activation."""
    network, sizes = contestant.build(model), []
    dtype = torch.bfloat16 if contestant.bf16 else torch.float32
    contestant.forward(network, contestant.pictures(2, resolution, dtype)).sum().backward()  # type: ignore[no-untyped-call]
    for batch in (16, 32, 48):
        x = contestant.pictures(batch, resolution, dtype)
        before = resident()
        y = contestant.forward(network, x)
        sizes.append((batch, resident() - before))
        del y
    x = contestant.pictures(16, resolution, dtype)
    hooks, picture = (size / 16 for size in kept_bytes(contestant, network, x))
    slope = statistics.linear_regression(*zip(*sizes, strict=True)).slope - picture
    print(json.dumps({"resident": slope / MIB, "hooks": hooks / MIB, "picture": picture / MIB}))


def measure_memory(args: argparse.Namespace) -> list[Record]:
    records = []
    for number, contestant in enumerate(contestants(False)):
        if not contestant.channels_last:
            continue
        done = subprocess.run([sys.executable, __file__, "--memory-child", str(number), "--model",
                               args.model, "--resolution", str(args.resolution)],
                              stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
        print(f"{contestant.name:32} {found['resident']:6.1f} MiB an image resident, "
              f"{found['hooks']:6.1f} by hooks", flush=True)  # fmt: skip
        records.append(Record(name=f"{args.model} kept for backward: {contestant.name}",
                              value=found["resident"], unit="MiB/image", detail=found))  # fmt: skip
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    about = "of the peers; without instructions for it bf16 takes minutes"
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help=about)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="a round, a contestant")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true", help="torch.compile of the peers too")
    parser.add_argument("--default-malloc", action="store_true")
    parser.add_argument("--memory", action="store_true", help="what is kept for backward")
    parser.add_argument("--memory-child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write Records here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_child is not None:
        memory_child(contestants(False)[args.memory_child], args.model, args.resolution)
        return
    if args.memory:
        records = measure_memory(args)
    else:
        if not args.default_malloc:
            keep_freed_memory()
        records = compare(run_rounds(args), args)
    if args.out:
        write_records(args.out, records)


if __name__ == "__main__":
    main()
