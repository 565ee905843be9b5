"""Inference in every runtime, ours and timm's networks, in turn, in one process.

    python benchmarks/inference.py [NETWORK...] [--batches 1 16] [--rounds 5] [--no-compile]
    python benchmarks/inference.py --operators
    python benchmarks/inference.py --end-to-end DATA --run RUN

NETWORK is timm's name; ours and timm's have the same weights, drawn at random. Ours are the
candidates of `mbconv export --fastest`; peers are timm in eager mode (each layout and number
format), compiled, and exported by torch.onnx to ONNX Runtime, OpenVINO at its defaults, and INT8 by
NNCF's defaults. A ratio is taken within a round: the time of the best peer over that of our best.
Peers that take over four times as long as the quickest one in a trial stop there, and are told.

--operators takes a pass apart by the runtimes' own profilers. --end-to-end goes from JPEG bytes to
labels: a Predictor on the fastest artifact of the run folder RUN, beside the same weights in timm,
read by Pillow and timm's transform, and computed by OpenVINO, picture by picture or in batches.
"""

import argparse
import contextlib
import copy
import io
import logging
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import mbconv
from mbconv.data.source import Sample, scan
from mbconv.export import build, fastest, run
from mbconv.export.build import Job
from mbconv.export.guard import Guard
from mbconv.measure.accuracy import Collected, Matched
from mbconv.measure.memory import keep_freed_memory
from mbconv.measure.noise import Calibration
from mbconv.measure.paired import Paired
from mbconv.measure.speed import Timing, measure, trial
from mbconv.record import Record, write_records
from mbconv.runtime.artifact import Form
from mbconv.runtime.backend import installed
from mbconv.runtime.openvino_runtime import shared_core
from mbconv.runtime.predictor import Predictor
from mbconv.weights.conversion import counterpart, export_state_dict

NETWORKS = ("efficientnet_b0", "tf_efficientnet_lite0", "mobilenetv3_large_100")
FLOAT_PEERS = ("timm eager", "timm compiled", "timm ONNX Runtime", "timm OpenVINO,")
CALIBRATION = 32
HOPELESS = 4.0  # times the quickest peer's time


class Unjudged(Guard):
    """Accepts everything: random weights have no accuracy to keep."""

    def compare(self, predictor: Predictor, progress: object = None) -> Paired:
        return Paired(n=1, first=1.0, second=1.0, lost=0, won=0)


class Peer:
    """Somebody else's way to compute a batch."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self.name, self._call = name, call

    def __call__(self) -> None:
        self._call()


def job_without_accuracy(model: mbconv.MBConvNet, folder: Path) -> Job:
    """What `--fastest` works on, calibrated on noise."""
    noise, side = np.random.default_rng(0), model.preprocessing.resize
    samples = []
    for number in range(CALIBRATION):
        path = folder / f"{number}.png"
        Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(path, 0))
    nothing = Collected(np.zeros((0, 0), np.float32), np.zeros(0, np.int64), ())
    guard = Unjudged(Matched(()), nothing, 1.0, tuple(samples))
    return replace(run.make_job(None, model, None, None, 0, calibrate=False), guard=guard)


def in_timm(model: mbconv.MBConvNet) -> torch.nn.Module:
    """timm's network with the same weights."""
    import timm

    key, classes = counterpart(model.spec, "timm"), model.spec.num_classes
    theirs: torch.nn.Module = timm.create_model(key, num_classes=classes)
    theirs.load_state_dict(export_state_dict(model, "timm"))
    x = torch.randn(1, 3, model.preprocessing.resolution, model.preprocessing.resolution)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(x), model.eval()(x), rtol=1e-2, atol=1e-3)
    return theirs


def eager_peers(theirs: torch.nn.Module, x: torch.Tensor, compiled: bool) -> Iterator[Peer]:
    """timm's network as it is, in each layout and number format."""
    for layout in (torch.contiguous_format, torch.channels_last):
        network = copy.deepcopy(theirs).to(memory_format=layout)
        inputs = x.contiguous(memory_format=layout)
        for kind, module in {"eager": network, "compiled": torch.compile(network)}.items():
            if kind == "compiled" and not compiled:
                continue
            for dtype in (torch.float32, torch.bfloat16):

                def call(module: Any = module, inputs: torch.Tensor = inputs,
                         dtype: torch.dtype = dtype) -> None:  # fmt: skip
                    wanted = dtype != torch.float32
                    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=wanted):
                        module(inputs)

                words = f"{str(dtype)[6:]}, {str(layout)[6:].removesuffix('_format')}"
                yield Peer(f"timm {kind}, {words}", call)


def exported_peers(theirs: torch.nn.Module, x: torch.Tensor, folder: Path) -> Iterator[Peer]:
    """timm's network through torch.onnx, at each runtime's defaults."""
    import onnxruntime

    path, array = folder / f"peer-{len(x)}.onnx", x.numpy()
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(theirs, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    yield Peer("timm ONNX Runtime, float32", lambda: session.run(None, {name: array}))
    model = shared_core().read_model(path)
    plain = shared_core().compile_model(model, "CPU")
    yield Peer("timm OpenVINO, default", lambda: plain(array))
    nncf = installed("nncf", "export", "INT8")
    nncf.set_log_level(logging.ERROR)
    noise = [torch.randn_like(x).numpy() for _ in range(max(1, CALIBRATION // len(x)))]
    with contextlib.redirect_stdout(io.StringIO()):
        quantised = nncf.quantize(model, nncf.Dataset(noise))
    rounded = shared_core().compile_model(quantised, "CPU")
    yield Peer("timm OpenVINO INT8, default", lambda: rounded(array))


def compare(name: str, args: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """All ways to compute one network at each batch."""
    torch.manual_seed(0)
    model = mbconv.create_model(f"timm:{name}").eval()
    job = job_without_accuracy(model, folder)
    candidates, failed = fastest.collect_candidates(job, folder)
    yield from failed
    theirs, side = in_timm(model), model.preprocessing.resolution
    for batch in args.batches:
        x = torch.randn(batch, 3, side, side)
        ours = [
            fastest.Call(f"{c.name}{f', pieces of {piece}' if piece else ''}", b, batch, side, 3)
            for c in candidates for piece, b in c.backends.items() if piece is None or batch > 1
        ]  # fmt: skip
        peers = promising(
            [*eager_peers(theirs, x, not args.no_compile), *exported_peers(theirs, x, folder)]
        )
        tasks: list[fastest.Call | Peer] = [*ours, *peers]
        calls = dict.fromkeys(tasks, 3)
        results = measure(calls, Calibration(), rounds=args.rounds, limit=args.limit)
        ran = {t: r for t, r in results.items() if isinstance(r, Timing)}
        for task, timing in sorted(ran.items(), key=lambda item: item[1].median):
            whose = "peer" if isinstance(task, Peer) else "ours"
            yield figure(f"{name}, batch {batch}, {whose}: {task.name}",
                         [1e3 * statistics.median(r) / batch for r in timing.rounds],
                         "ms/img")  # fmt: skip
        for words, rivals in (("peer", peers), ("float peer", floats(peers))):
            first, second = best(ran, ours), best(ran, rivals)
            yield figure(f"{name}, batch {batch}: best {words} / ours",
                         ran[first].ratios(ran[second])
                         or [ran[second].median / ran[first].median], "x")  # fmt: skip


def promising(peers: Sequence[Peer]) -> list[Peer]:
    """Without the hopeless: bfloat16 on a processor that has no instructions for it, say."""
    seconds = {peer: trial(peer) for peer in peers}
    least = min(seconds.values())
    for peer in (p for p in peers if seconds[p] > HOPELESS * least):
        print(f"left out: {peer.name}, {seconds[peer] / least:.0f} times the quickest peer's time")
    return [p for p in peers if seconds[p] <= HOPELESS * least]


def floats(peers: Sequence[Peer]) -> list[Peer]:
    return [p for p in peers if p.name.startswith(FLOAT_PEERS)]


def best(ran: dict[Any, Timing], among: Sequence[Any]) -> Any:
    return min((t for t in among if t in ran), key=lambda t: ran[t].median)


def operators(name: str, folder: Path) -> Iterator[Record]:
    """Where a pass goes in OpenVINO, by the kind of operator and how it was computed."""
    import openvino

    torch.manual_seed(0)
    model = mbconv.create_model(f"timm:{name}").eval()
    job = job_without_accuracy(model, folder)
    side = job.preprocessing.resolution
    for precision, hint in (("float32", "f32"), ("bfloat16", "bf16"), ("int8", "bf16")):
        made = build.make(job, Form(runtime="openvino", precision=precision, batch=1))  # type: ignore[arg-type]
        options = {"PERF_COUNT": "YES", "PERFORMANCE_HINT": "LATENCY",
                   "INFERENCE_PRECISION_HINT": hint}  # fmt: skip
        request = shared_core().compile_model(made.graph, "CPU", options).create_infer_request()
        x = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
        passes: list[dict[str, float]] = []
        for _ in range(30):
            request.infer({0: x})
            kinds: dict[str, float] = defaultdict(float)
            for node in request.get_profiling_info():
                if node.status == openvino.ProfilingInfo.Status.EXECUTED:
                    kinds[f"{node.node_type}, {node.exec_type}"] += (
                        node.real_time.total_seconds() * 1e3
                    )
            passes.append(kinds)
        for kind in sorted(passes[-1], key=lambda k: -statistics.median(p[k] for p in passes)):
            yield figure(f"{name}, OpenVINO {precision}: {kind}",
                         [p[kind] for p in passes[10:]], "ms")  # fmt: skip


def end_to_end(data: Path, folder: Path, args: argparse.Namespace) -> Iterator[Record]:
    """Pictures a second from JPEG bytes to labels; the artifact is chosen first."""
    from timm.data.transforms_factory import create_transform

    done = fastest.export_fastest(args.run, folder / "best", data=data, goal="throughput",
                                  pictures=False)  # fmt: skip
    model = mbconv.load(args.run)
    print(f"ours: {done.exported.form}", flush=True)
    jpegs = [Path(str(s.path)).read_bytes() for s in scan(data, training=False).splits["test"]]
    p = model.preprocessing
    transform = create_transform(p.resolution, mean=p.mean, std=p.std, interpolation="bicubic",
                                 crop_pct=p.resolution / p.resize)  # fmt: skip
    path = folder / "peer.onnx"
    batch = torch.export.Dim("batch")
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(in_timm(model), (torch.zeros(2, 3, p.resolution, p.resolution),), path,
                          dynamo=True, dynamic_shapes=({0: batch},), verbose=False)  # fmt: skip
    network = shared_core().compile_model(shared_core().read_model(path), "CPU")
    labels = model.labels or ()

    def theirs(size: int) -> list[str]:
        named: list[str] = []
        for first in range(0, len(jpegs), size):
            pictures = [Image.open(io.BytesIO(j)).convert("RGB") for j in jpegs[first:][:size]]
            x = torch.stack([transform(picture) for picture in pictures]).numpy()
            named += [labels[i] for i in network(x)[0].argmax(1)]
        return named

    predictor = Predictor(done.exported.paths["tensor"], trust=True)
    ways: dict[str, Callable[[], list[str]]] = {
        "mbconv": lambda: [answer.labels[0] for answer in predictor.predict(jpegs, top_k=1)],
        "timm, Pillow, OpenVINO": lambda: theirs(1),
        "timm, Pillow, OpenVINO, batches of 16": lambda: theirs(16),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[str]] = {}
    for number in range(args.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            answers[name] = way()
            if number:  # the first round warms up
                rates[name].append(len(jpegs) / (time.perf_counter() - start))
    for name, values in rates.items():
        yield figure(f"{name}, from JPEGs to labels", values, "img/s")
    ours = rates.pop("mbconv")
    for name, values in rates.items():
        same = [a == b for a, b in zip(answers["mbconv"], answers[name], strict=True)]
        yield figure(f"mbconv / {name}", [a / b for a, b in zip(ours, values, strict=True)], "x")
        yield figure(f"answers as {name}", [statistics.mean(same)], "")


def figure(name: str, values: Sequence[float], unit: str) -> Record:
    """The median, from the least to the largest; printed too."""
    record = Record(
        name=name, value=statistics.median(values), unit=unit, n=len(values), low=min(values),
        high=max(values), spread=statistics.stdev(values) if len(values) > 1 else 0.0,
    )  # fmt: skip
    print(f"{name:75} {record.value:8.2f} {unit} ({record.low:.2f} to {record.high:.2f})",
          flush=True)  # fmt: skip
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=8.0, help="seconds a task, about")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--end-to-end", type=Path, metavar="DATA")
    parser.add_argument("--run", type=Path, help="the run folder for --end-to-end")
    parser.add_argument("--out", type=Path, help="write Records here")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    keep_freed_memory()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.end_to_end:
            records += end_to_end(args.end_to_end, folder, args)
        elif args.operators:
            records += operators(args.networks[0], folder)
        else:
            for network in args.networks:
                records += compare(network, args, folder)
    if args.out:
        write_records(args.out, records)


if __name__ == "__main__":
    main()
