"""What sharing a training step costs: steps and all-reduces of several processes, measured.

    torchrun --nproc-per-node 2 benchmarks/scaling.py [--model efficientnet_b0] [--rounds 12]

Every round times, in turn: a step of the first process while the others wait; all processes'
steps at once without a word between them (what they cost each other in cores and memory); the
shared step of `mbconv train`; and bare all-reduces of several sizes. Steps are on noise, with
`--batch` pictures a process. `python docs/make_scaling.py` makes the page of the records.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

import mbconv
from mbconv.measure.memory import keep_freed_memory
from mbconv.record import Record, write_records
from mbconv.training.distributed import World, joined
from mbconv.training.loop import Trainer
from mbconv.training.machine import plain_machine
from mbconv.training.recipes import scratch
from mbconv.training.setup import random_batch

SIZES = (4 << 10, 256 << 10, 2 << 20, 8 << 20)  # bytes of a bare all-reduce


def timed(world: World, run: Callable[[], object]) -> float:
    """Seconds until the last process has done it."""
    world.wait()
    started = time.perf_counter()
    run()
    return max(world.gather(time.perf_counter() - started))


def measure(world: World, wanted: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each kind, a figure a round."""
    machine = replace(plain_machine("cpu", world.local_size), dtype=wanted.dtype)
    torch.set_num_threads(machine.threads)
    keep_freed_memory()
    recipe = scratch(1000, wanted.resolution)
    mine = replace(recipe, batch_size=wanted.batch)
    whole = replace(recipe, batch_size=wanted.batch * world.size)
    alone, shared = (
        Trainer(mbconv.create_model(wanted.model, pretrained=False), each, machine, 10, world=who)
        for each, who in ((mine, World()), (whole, world))
    )
    batch = random_batch(alone.model, mine, wanted.batch)
    bare = {size: torch.zeros(size // 4) for size in SIZES}
    found: dict[str, list[float]] = {}
    for number in range(wanted.rounds + 2):  # two warm up
        index = min(number, 9)
        runs: dict[str, Callable[[], object]] = {
            "alone": partial(alone.step, batch, index, 0) if world.first else lambda: None,
            "beside": partial(alone.step, batch, index, 0),
            "shared": partial(shared.step, batch, index, world.seed(0)),
        }
        runs |= {f"all-reduce {n}": partial(dist.all_reduce, t) for n, t in bare.items()}
        for name, run in runs.items():
            seconds = timed(world, run)
            if number > 1:
                found.setdefault(name, []).append(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8, help="pictures a process")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("docs/scaling.jsonl"))
    wanted = parser.parse_args()
    with joined() as world:
        found = measure(world, wanted)
        if not world.first:
            return
        about = {"processes": world.size, "model": wanted.model, "batch": wanted.batch,
                 "resolution": wanted.resolution, "dtype": wanted.dtype,
                 "load": round(os.getloadavg()[0], 1)}  # fmt: skip
        records = [
            Record(
                name=name, value=1000 * statistics.median(values), unit="ms", n=len(values),
                low=1000 * min(values), high=1000 * max(values), detail=about,
            )
            for name, values in found.items()
        ]  # fmt: skip
        for record in records:
            print(f"{record.name:20} {record.value:9.2f} ms  [{record.low:.2f}, {record.high:.2f}]")
        write_records(wanted.out, records)


if __name__ == "__main__":
    main()
