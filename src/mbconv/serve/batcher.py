"""Pictures of all clients in common batches: threads that read, and one that computes.

A picture that is alone is computed at once. While others are being read, the network waits for
them, but never longer than LINGER; what queues up behind a batch is the next one.
"""

import asyncio
import io
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mbconv.data.decode import Unreadable
from mbconv.measure.gradcam import heat_map, overlay
from mbconv.runtime.predictor import Output, Prediction, Predictor
from mbconv.serve.holding import busy
from mbconv.serve.limits import Limits
from mbconv.serve.metrics import Metrics
from mbconv.serve.upload import Upload

LINGER = 0.004  # seconds


@dataclass(frozen=True)
class Answer:
    """One picture's prediction, and what it took: seconds, and pictures in the same batch."""

    prediction: Prediction
    seconds: float = 0.0
    computing: float = 0.0
    batch: int = 0


class Job:
    """A picture on its way through the threads; whoever waits for it awaits `future`."""

    def __init__(self, upload: Upload, top_k: int, heat: int | None, explain: bool) -> None:
        self.name, self.data = upload.name, upload.data
        self.top_k, self.heat, self.explain = top_k, heat, explain
        self.pixels: NDArray[np.uint8] | None = None
        self.since = monotonic()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()


class Batcher:
    """Owns the threads between `start` and `close`."""

    def __init__(self, predictor: Predictor, limits: Limits, metrics: Metrics) -> None:
        self.predictor, self.limits, self.metrics = predictor, limits, metrics
        self.sizes = _sizes(predictor)
        lock = threading.Lock()
        self._work_to_read = threading.Condition(lock)
        self._work_to_compute = threading.Condition(lock)
        self._unread: deque[Job] = deque()
        self._ready: deque[Job] = deque()
        self._reading = 0
        self._idle = self._closed = False
        self.waiting = 0  # pictures that were taken and have no answer yet
        self._warm: Future[None] = Future()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Run all parts once, the network at each batch size that it has to be made for.

        Raises what they raise.
        """
        targets = [self._compute_all] + [self._read_all] * self.predictor.threads
        self._threads = [threading.Thread(target=t, daemon=True, name="serve") for t in targets]
        for thread in self._threads:
            thread.start()
        try:
            self._warm.result()
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Finish what was taken, then end the threads."""
        with self._work_to_read:
            self._closed = True
            self._work_to_read.notify_all()
            self._work_to_compute.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def alive(self) -> bool:
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    async def predict(self, uploads: list[Upload], top_k: int) -> list[Answer]:
        """An answer a picture, in order. Raises HTTPException 503 where the queue is full."""
        jobs = {n: Job(u, top_k, None, False) for n, u in enumerate(uploads) if u.error is None}
        answers = dict(zip(jobs, await self._run(list(jobs.values())), strict=True))
        return [
            answers[n] if n in answers else Answer(Prediction(u.name, (), (), u.error))
            for n, u in enumerate(uploads)
        ]

    async def explain(self, upload: Upload, index: int | None) -> bytes:
        """A JPEG of what the network saw under the heat map of class `index`, or of its answer.

        Raises Unreadable for a picture that cannot be read, HTTPException 503.
        """
        (picture,) = await self._run([Job(upload, 1, index, True)])
        return bytes(picture)

    async def _run(self, jobs: list[Job]) -> list[Any]:
        with self._work_to_read:
            if self.waiting + len(jobs) > self.limits.queue:
                raise busy()
            self.waiting += len(jobs)
            self._unread.extend(jobs)
            self._work_to_read.notify(len(jobs))
        try:
            async with asyncio.timeout(self.limits.seconds):
                return [await job.future for job in jobs]
        except TimeoutError:
            raise busy() from None
        finally:
            for job in jobs:
                job.future.cancel()  # threads pass over what nobody waits for any more

    def _read_all(self) -> None:
        while (job := self._next_to_read()) is not None:
            failure: Exception | None = None
            if not job.future.cancelled():
                try:
                    job.pixels = self.predictor.prepare(job.data, max_pixels=self.limits.pixels)
                except Exception as error:
                    failure = error
            job.data = b""
            with self._work_to_read:
                self._reading -= 1
                if job.pixels is not None:
                    self._ready.append(job)
                if self._idle or self._enough():
                    self._work_to_compute.notify()
            if job.pixels is None:
                self._finish([(job, self._unread_answer(job, failure))])

    def _next_to_read(self) -> Job | None:
        """Waits while the network has enough to do, so that few decoded pictures are in memory."""
        with self._work_to_read:
            while not self._unread or len(self._ready) >= 2 * self.predictor.batch_size:
                if self._closed and not self._unread:
                    return None
                self._work_to_read.wait()
            self._reading += 1
            return self._unread.popleft()

    def _unread_answer(self, job: Job, failure: Exception | None) -> Answer | Exception | None:
        if isinstance(failure, Unreadable) and not job.explain:
            output = Output(job.name, None, failure.reason)
            return Answer(self.predictor.prediction(output, 1), monotonic() - job.since)
        return failure

    def _warm_up(self) -> None:
        side = self.predictor.preprocessing.resolution
        first = io.BytesIO()
        Image.new("RGB", (side, side)).save(first, "JPEG")
        self.predictor.prepare(first.getvalue())
        for number in self.sizes or (1, self.predictor.batch_size):
            self.predictor.infer(torch.zeros(number, side, side, 3, dtype=torch.uint8))

    def _compute_all(self) -> None:
        try:
            # Not in another thread: OpenMP keeps helpers for each that computed, and with more of
            # them than cores it puts them to sleep at every barrier.
            self._warm_up()
        except Exception as error:
            self._warm.set_exception(error)
            return
        self._warm.set_result(None)
        while batch := self._next_batch():
            gone = [job for job in batch if job.future.cancelled()]
            plain = [job for job in batch if not job.explain and job not in gone]
            explained = [job for job in batch if job.explain and job not in gone]
            self._finish([(job, None) for job in gone])
            self._finish(self._predicted(plain))
            for job in explained:
                self._finish([self._explained(job)])

    def _enough(self) -> bool:
        """Whether waiting would bring no larger batch."""
        coming = self._reading + len(self._unread)
        return not coming or len(self._ready) >= self.predictor.batch_size

    def _next_batch(self) -> list[Job]:
        """What is computed next; empty at the end."""
        with self._work_to_compute:
            while not self._ready:
                if self._closed and not self._reading and not self._unread:
                    return []
                self._idle = True
                self._work_to_compute.wait()
                self._idle = False
            until = monotonic() + LINGER
            while not self._enough() and (left := until - monotonic()) > 0:
                self._work_to_compute.wait(left)
            most = min(len(self._ready), self.predictor.batch_size)
            number = max((size for size in self.sizes if size <= most), default=most)
            self._work_to_read.notify(min(number, len(self._unread)))
            return [self._ready.popleft() for _ in range(number)]

    def _predicted(self, jobs: list[Job]) -> list[tuple[Job, Answer | Exception]]:
        if not jobs:
            return []
        started = monotonic()
        try:
            rows = self.predictor.infer_all([j.pixels for j in jobs if j.pixels is not None])
            ended = monotonic()
            self.metrics.batch.observe(len(jobs))
            found = [
                self.predictor.prediction(Output(job.name, row), job.top_k)
                for job, row in zip(jobs, rows, strict=True)
            ]
        except Exception as error:
            return [(job, error) for job in jobs]
        return [
            (job, Answer(prediction, ended - job.since, ended - started, len(jobs)))
            for job, prediction in zip(jobs, found, strict=True)
        ]

    def _explained(self, job: Job) -> tuple[Job, bytes | Exception]:
        assert job.pixels is not None, "only pictures that were read are ready"
        try:
            heat = heat_map(self.predictor, job.pixels, job.heat)
            buffer = io.BytesIO()
            overlay(Image.fromarray(job.pixels), heat).save(buffer, "JPEG", quality=85)
            return job, buffer.getvalue()
        except Exception as error:
            return job, error

    def _finish(self, results: list[tuple[Job, Any]]) -> None:
        """Hand results over, all of a batch in one call: each call wakes the event loop."""
        if results:
            with self._work_to_read:
                self.waiting -= len(results)
            results[0][0].loop.call_soon_threadsafe(_deliver, results)


def _deliver(results: list[tuple[Job, Any]]) -> None:
    for job, result in results:
        if job.future.done():
            continue
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)


def _sizes(predictor: Predictor) -> tuple[int, ...]:
    """The batch sizes that a runtime compiles the network for; empty where any will do."""
    if predictor.artifact is None:
        return ()
    form = predictor.artifact.form
    if form.runtime != "openvino" or form.batch or form.entry == "pictures":
        return ()
    return tuple(sorted({1, 4, 16, predictor.batch_size}))
