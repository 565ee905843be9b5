"""Whether `mbconv bench` says the same twice: run it several times and compare the medians.

    python benchmarks/repeat.py [--runs 10] [--names efficientnet_b0 timm:resnet50]

A run agrees if every median lies within 5% of the median of all runs and none is called noisy; its
time is printed. The same is said at equal pace: every figure divided by what the run's calibrating
products reached. Three quarters of an hour for ten runs; leave the machine alone meanwhile.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from mbconv.measure.noise import Calibration
from mbconv.record import Record, read_records

FIGURES = ("latency", "throughput", "training_throughput")
WITHIN = 0.05
Key = tuple[str, str, int]


def one_run(names: list[str], out: Path) -> tuple[list[Record], float]:
    """The timed figures of one run of the command, and its seconds."""
    start = time.perf_counter()
    code = "from mbconv.cli import main; main()"
    command = [sys.executable, "-c", code, "bench", *names, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    return [r for r in read_records(out) if r.name in FIGURES and r.n], seconds


def key(record: Record) -> Key:
    return record.detail["network"], record.name, record.detail["batch"]


def show_separation() -> None:
    """What the noise check says beside nothing and beside a busy loop."""
    for name, code in (("alone", None), ("beside a busy loop", "while True: pass")):
        calibration = Calibration()
        other = subprocess.Popen([sys.executable, "-c", code]) if code else None
        try:
            noise = []
            for _ in range(10):
                calibration.begin()
                time.sleep(0.3)
                noise.append(calibration.end().noise)
        finally:
            if other is not None:
                other.kill()
                other.wait()
        print(f"{name}: calibrations {min(noise):.2f} to {max(noise):.2f}, median "
              f"{statistics.median(noise):.2f}; limit {calibration.limit:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--names", nargs="+", default=["efficientnet_b0", "timm:resnet50"])
    args = parser.parse_args()
    show_separation()
    runs: list[dict[Key, Record]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.runs):
            records, seconds = one_run(args.names, Path(folder) / "records.jsonl")
            runs.append({key(r): r for r in records})
            noise = max(r.detail["noise"] for r in records)
            meeting = statistics.median(r.detail["meeting"] for r in records)
            apart = sum(r.detail["apart"] > 0 for r in records)
            print(f"run {number + 1}: {seconds:.0f} s, calibrations up to {noise:.2f}, "
                  f"{pace(records):.1f} GFLOP/s, threads meet in {meeting:.1f} us, {apart} figures "
                  "with cores apart", flush=True)  # fmt: skip
    for paced in (False, True):
        show(runs, paced)


def pace(records: Iterable[Record]) -> float:
    """GFLOP/s of a run's calibrating products."""
    return float(statistics.median(r.detail["pace"] for r in records))


def show(runs: list[dict[Key, Record]], paced: bool) -> None:
    """The figures of all runs, raw or at the pace of the median run, and how many agree."""
    usual = statistics.median(pace(run.values()) for run in runs)
    values: list[dict[Key, float]] = []
    for run in runs:
        faster = pace(run.values()) / usual if paced else 1.0
        values.append({k: r.value * (faster if r.unit == "ms" else 1 / faster)
                       for k, r in run.items()})  # fmt: skip
    centres = {k: statistics.median(own[k] for own in values) for k in runs[0]}
    for k, centre in centres.items():
        shown = " ".join(f"{own[k]:.1f}{'*' * run[k].detail['noisy']}"
                         for own, run in zip(values, runs, strict=True))  # fmt: skip
        print(f"{k[0]} {k[1]}, batch {k[2]}: median {centre:.1f} {runs[0][k].unit}: {shown}")
    agree = sum(
        all(abs(own[k] / c - 1) <= WITHIN and not run[k].detail["noisy"]
            for k, c in centres.items()) for own, run in zip(values, runs, strict=True)
    )  # fmt: skip
    words = "at equal pace" if paced else "as measured"
    print(f"{agree} of {len(runs)} runs agree within {WITHIN:.0%} on every median, {words} "
          "(* noisy)")  # fmt: skip


if __name__ == "__main__":
    main()
