"""`mbconv serve` under load: right answers, memory, latency, and processor time beside Predictor's.

    python benchmarks/serve.py MODEL PICTURES [--clients 32] [--seconds 60] [--rounds 3]

PICTURES is a folder with JPEGs at any depth; 64 of them are held in memory and sent over loopback.

1. A client alone and Predictor in a process of its own, a few pictures each in turn, as fast as
   answers come and again with a pause before each, in which caches cool: what HTTP adds.
2. Predictor in a process of its own and the server under all clients, in turn, a third of the time
   each round: processor seconds a picture, user and system, and their ratio within the round. Both
   keep freed memory, so that the ratio is what serving costs.
3. All clients for the whole time, every tenth upload hostile: empty, no picture, cut off, a
   decompression bomb, too large, broken forms, a client that hangs up. Every answer is compared
   with Predictor's; anything else than the expected label or refusal is counted as wrong. The
   server's peak memory is taken after a quarter of the time and at the end.

Exit code 1 where an answer was wrong or the server did not survive.
"""

import argparse
import asyncio
import json
import re
import socket
import statistics
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch

from mbconv.measure.memory import keep_freed_memory
from mbconv.record import Record, write_records
from mbconv.runtime.predictor import Output, Predictor

BOUNDARY = b"-----------------------------mbconv"
LARGE = 20_000_000  # bytes, above the server's 16 MB
PAUSE = 0.05  # seconds
TURN = 8  # pictures


@dataclass(frozen=True)
class Shot:
    """A request as bytes; `label` is the right answer's index, None for a refusal `status`."""

    name: str
    request: bytes
    status: int | None = 200
    label: int | None = None
    score: float = 0.0


@dataclass
class Tally:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)  # of sound pictures
    statuses: Counter[str] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def request(body: bytes, kind: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %s\r\n" % kind
    return head + b"Content-Length: %d\r\n\r\n" % size + body


def form(content: bytes, name: bytes = b"a.jpg") -> bytes:
    head = b'Content-Disposition: form-data; name="files"; filename="%s"' % name
    body = b"--%s\r\n%s\r\n\r\n%s\r\n--%s--\r\n" % (BOUNDARY, head, content, BOUNDARY)
    return request(body, b"multipart/form-data; boundary=" + BOUNDARY)


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    side = (60_000).to_bytes(4, "big")
    data = zlib.compress(bytes(1_000_000))
    header = chunk(b"IHDR", side + side + b"\x08\x02\x00\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def hostile(jpeg: bytes) -> list[Shot]:
    noise = Random(0).randbytes(5_000)
    kind = b"multipart/form-data; boundary=" + BOUNDARY
    return [
        Shot("empty", form(b""), 422),
        Shot("no picture", form(noise), 422),
        Shot("half a JPEG", form(jpeg[: len(jpeg) // 2]), 422),
        Shot("bomb", form(bomb()), 422),
        Shot("too large", form(jpeg + bytes(LARGE)), 413),
        Shot("no form", request(noise, kind), 400),
        Shot("form without its end", request(form(jpeg).split(b"\r\n\r\n", 1)[1][:-9], kind), 400),
        Shot("no type", request(jpeg, b"text/plain"), 415),
        Shot("hangs up", request(jpeg, b"image/jpeg", 10 * len(jpeg)), None),
        Shot("no HTTP", b"\x16\x03\x01" + noise, 400),
    ]


async def fire(port: int, shots: Iterator[Shot], until: float, tally: Tally) -> None:
    """One client: keeps its connection as long as the server does."""
    reader, writer = None, None
    while time.perf_counter() < until:
        shot = next(shots)
        if writer is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert reader is not None
        started = time.perf_counter()
        try:
            keep = await send(shot, reader, writer, tally, started)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            tally.wrong.append(f"{shot.name}: {type(error).__name__} {error}")
            keep = False
        if not keep:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


async def send(
    shot: Shot, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tally: Tally,
    started: float,
) -> bool:  # fmt: skip
    """Whether the connection may be used again."""
    writer.write(shot.request)
    await writer.drain()
    if shot.status is None:
        tally.statuses["hung up"] += 1
        return False
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(announced(head))
    seconds = time.perf_counter() - started
    judge(shot, head, body, seconds, tally)
    return b"connection: close" not in head.lower() and shot.status != 400


def announced(head: bytes) -> int:
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return int(length[1]) if length else 0


def judge(shot: Shot, head: bytes, body: bytes, seconds: float, tally: Tally) -> None:
    """Note what came, and whether it was right."""
    status = int(head[9:12])
    tally.statuses[str(status)] += 1
    if status != shot.status:
        tally.wrong.append(f"{shot.name}: status {status}, {body[:200]!r}")
    elif shot.label is not None:
        tally.seconds.append(seconds)
        result = json.loads(body)["results"][0]
        tally.batches.append(result["batch"])
        best = result["predictions"][0]
        if best["index"] != shot.label or abs(best["score"] - shot.score) > 1e-3:
            tally.wrong.append(f"{shot.name}: {best} instead of {shot.label}, {shot.score}")


def load(port: int, good: list[Shot], bad: list[Shot], clients: int, seconds: float) -> Tally:
    """All clients for so long; with `bad` shots, every tenth is one of them."""
    tally, random = Tally(), Random(0)

    def shots() -> Iterator[Shot]:
        number = 0
        while True:
            number += 1
            yield random.choice(bad if bad and number % 10 == 0 else good)

    async def run() -> None:
        endless, until = shots(), time.perf_counter() + seconds
        await asyncio.gather(*(fire(port, endless, until, tally) for _ in range(clients)))

    asyncio.run(run())
    return tally


@contextmanager
def served(model: str) -> Iterator[tuple[int, int]]:
    """A server of its own process: (port, process id)."""
    command = [sys.executable, "-c", "from mbconv.cli import main; main()"]
    command += ["serve", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.search(r":(\d+)/", server.stdout.readline())
        assert found, "the server names its port"
        yield int(found[1]), server.pid
        server.terminate()
        rest = server.stdout.read()
        assert "stopped" in rest, "the server ends as it should"
    assert server.returncode == 0


def spent(process: int) -> float:
    """User and system seconds of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def peak(process: int) -> float:
    """Peak resident memory in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def predictor_seconds(model: str, folder: Path, seconds: float) -> float:
    """Processor seconds a picture of Predictor, in a process of its own."""
    command = [sys.executable, __file__, model, str(folder), "--predictor", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def warm_predictor(model: str, contents: list[bytes]) -> Predictor:
    keep_freed_memory()
    predictor = Predictor(model)
    list(predictor.predict(contents))
    return predictor


def run_predictor(model: str, contents: list[bytes], seconds: float) -> float:
    predictor = warm_predictor(model, contents)
    pictures, until, started = 0, time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < until:
        pictures += len(list(predictor.predict(contents)))
    return (time.process_time() - started) / pictures


def added_latency(
    port: int, good: list[Shot], alone: Callable[[int], float], pause: float
) -> float:
    """Seconds that HTTP adds, the median over pictures; `pause` seconds stand before each.

    Server and Predictor change places every few pictures: the machine's pace drifts by more within
    seconds than what is measured here. The client is a plain socket, so as not to count asyncio's.
    """
    added: list[float] = []
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        connection.makefile("rb") as reader,
    ):
        for first in range(0, len(good), TURN):
            tally = Tally()
            for shot in good[first : first + TURN]:
                time.sleep(pause)
                started = time.perf_counter()
                connection.sendall(shot.request)
                head = b"".join(iter(reader.readline, b"\r\n"))
                body = reader.read(announced(head))
                judge(shot, head, body, time.perf_counter() - started, tally)
            assert not tally.wrong, tally.wrong
            time.sleep(PAUSE)  # the threads of one stop spinning before the other's turn
            for number, seconds in enumerate(tally.seconds, first):
                time.sleep(pause)
                added.append(seconds - alone(number))
            time.sleep(PAUSE)
    return statistics.median(added)


@contextmanager
def predictor_alone(model: str, folder: Path) -> Iterator[Callable[[int], float]]:
    """Predictor in a process of its own: the seconds that the picture of a number takes it."""
    command = [sys.executable, __file__, model, str(folder), "--numbers"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def seconds(number: int) -> float:
            print(number, file=process.stdin, flush=True)
            return float(process.stdout.readline())  # type: ignore[union-attr]

        seconds(0)
        yield seconds


def answer_numbers(model: str, contents: list[bytes]) -> None:
    """The other end of `predictor_alone`."""
    predictor = warm_predictor(model, contents)
    for line in sys.stdin:
        started = time.perf_counter()
        image = predictor.prepare(contents[int(line)])
        predictor.prediction(Output("", predictor.infer_all([image])[0]), 5)
        print(time.perf_counter() - started, flush=True)


def figure(name: str, values: list[float], unit: str) -> Record:
    record = Record(
        name=name, value=statistics.median(values), unit=unit, n=len(values), low=min(values),
        high=max(values),
    )  # fmt: skip
    print(f"{name:52} {record.value:9.3f} {unit} ({record.low:.3f} to {record.high:.3f})")
    return record


def measure(args: argparse.Namespace, contents: list[bytes]) -> tuple[list[Record], list[str]]:
    predictor = Predictor(args.model)
    answers = list(predictor.predict(contents))
    good = [
        Shot(f"picture {n}", form(c), 200, a.indices[0], a.scores[0])
        for n, (c, a) in enumerate(zip(contents, answers, strict=True))
    ]
    records, wrong = [], []
    with served(args.model) as (port, process):
        load(port, good, [], 4, 3)
        with predictor_alone(args.model, args.pictures) as alone_of:
            for name, pause in (("added latency, one client", 0.0), ("  after pauses", PAUSE)):
                added = [added_latency(port, good, alone_of, pause) for _ in range(args.rounds)]
                records.append(figure(name, [1e3 * seconds for seconds in added], "ms"))
        alone, here, ratios, rates = [], [], [], []
        for _ in range(args.rounds):
            alone.append(predictor_seconds(args.model, args.pictures, args.seconds / 3))
            before = spent(process)
            tally = load(port, good, [], args.clients, args.seconds / 3)
            here.append((spent(process) - before) / len(tally.seconds))
            ratios.append(here[-1] / alone[-1])
            rates.append(len(tally.seconds) / (args.seconds / 3))
            wrong += tally.wrong
        print(f"batches of {statistics.mean(tally.batches):.1f} pictures on average")
        records.append(
            figure("processor time a picture, Predictor", [1e3 * x for x in alone], "ms")
        )
        records.append(figure("processor time a picture, server", [1e3 * x for x in here], "ms"))
        records.append(figure("server / Predictor", ratios, "x"))
        records.append(figure(f"pictures a second, {args.clients} clients", rates, "/s"))
        records += hostile_minute(args, port, process, good, hostile(contents[0]), wrong)
    return records, wrong


def hostile_minute(
    args: argparse.Namespace, port: int, process: int, good: list[Shot], bad: list[Shot],
    wrong: list[str],
) -> list[Record]:  # fmt: skip
    first = load(port, good, bad, args.clients, args.seconds / 4)
    early = peak(process)
    rest = load(port, good, bad, args.clients, 3 * args.seconds / 4)
    late = peak(process)
    wrong += first.wrong + rest.wrong
    seconds = sorted(first.seconds + rest.seconds)
    print("statuses:", dict((first.statuses + rest.statuses).most_common()))
    p99 = seconds[int(0.99 * (len(seconds) - 1))]
    return [
        figure("p50 among hostile uploads", [1e3 * statistics.median(seconds)], "ms"),
        figure("p99 among hostile uploads", [1e3 * p99], "ms"),
        figure("peak memory after a quarter", [early], "MB"),
        figure("peak memory at the end", [late], "MB"),
        figure("wrong answers", [float(len(wrong))], f"of {len(seconds)}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write Records here")
    parser.add_argument("--predictor", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--numbers", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    paths = sorted(p for p in args.pictures.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    chosen = Random(0).sample(paths, min(64, len(paths)))
    contents = [path.read_bytes() for path in chosen]
    if args.predictor:
        print(run_predictor(args.model, contents, args.predictor))
        return
    if args.numbers:
        answer_numbers(args.model, contents)
        return
    size = statistics.median(map(len, contents)) / 1e3
    print(f"{len(contents)} JPEGs, {size:.0f} kB in the median; {torch.get_num_threads()} threads")
    records, wrong = measure(args, contents)
    if args.out is not None:
        write_records(args.out, records)
    for line in wrong[:20]:
        print("wrong:", line)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
