"""Predictor: pictures in, class scores out, in order; reading overlaps with computing."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.data.decode import Unreadable, decode, to_rgb
from mbconv.data.place import Place
from mbconv.data.transform import normalise, prepare
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing

# A str is a path, bytes are a file's content, an array is uint8 [H, W] or [H, W, 3].
Picture = Place | str | bytes | Image.Image | NDArray[Any]
Logits = NDArray[np.float32]

MAX_BATCH = 32  # larger ones are hardly faster
LARGEST_MAP = 80_000_000  # bytes of the largest map of a batch on a CPU; some three live at once


@dataclass(frozen=True)
class Output:
    """A network's answer to one picture: logits [classes], or None and the reason in `error`."""

    source: str
    logits: Logits | None
    error: str | None = None


@dataclass(frozen=True)
class Prediction:
    """The best classes of one picture with their probabilities, best first.

    For a picture that cannot be read, `error` is the reason, `labels` and `scores` are empty and
    `logits` is None; otherwise `logits` is [classes].
    """

    source: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    error: str | None = None
    logits: Logits | None = None


class Predictor:
    """Runs `model` on pictures of any kind, `batch_size` at a time.

    By default that is 32, or less on a CPU where the network's maps are so large that a batch
    would take more than about a quarter of a gigabyte (B0 at 224 pixels: 16).
    The model is used as it is: nothing of it is changed but the device, if one is named (the
    default is where it lies), and the train or eval mode of its modules is restored after every
    batch, so that a training loop can evaluate half way. `dtype` bfloat16 or float16 computes
    under autocast; the default is float32. `preprocessing` overrides the model's own, for
    instance to measure at another resolution. At most three batches of prepared pictures and
    one decoded picture a thread are in memory. Raises UserError for a batch size below 1 and a
    model that does not take three channels.
    """

    def __init__(
        self,
        model: MBConvNet,
        *,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        preprocessing: Preprocessing | None = None,
        threads: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UserError(f"The batch size is {batch_size}; it must be 1 or more.")
        if model.spec.in_channels != 3:
            raise UserError(
                f"This network takes {model.spec.in_channels} channels and pictures have three "
                "(RGB); call the network itself on tensors that have its channels."
            )
        self.model = model if device is None else model.to(device)
        self.device = next(model.parameters()).device
        self.dtype = dtype
        self.preprocessing = preprocessing or model.preprocessing
        self.batch_size = batch_size or MAX_BATCH
        if batch_size is None and self.device.type == "cpu":
            self.batch_size = _fitting_batch(model.spec, self.preprocessing.resolution)
        self.threads = threads or max(2, min(8, os.cpu_count() or 2))
        classes = model.spec.num_classes
        self.labels = model.labels or tuple(str(number) for number in range(classes))

    def predict(self, pictures: Iterable[Picture], top_k: int = 5) -> Iterator[Prediction]:
        """Yield one Prediction a picture, in order, with the `top_k` best classes (or all).

        Raises UserError for a `top_k` below 1.
        """
        if top_k < 1:
            raise UserError(f"The number of classes to show is {top_k}; it must be 1 or more.")
        return (self._prediction(output, top_k) for output in self.logits(pictures))

    def logits(self, pictures: Iterable[Picture]) -> Iterator[Output]:
        """Yield one Output a picture, in order; pictures are taken as they are needed.

        Evaluation and prediction both come through here.
        """
        if isinstance(pictures, str | bytes | Path | Image.Image):
            pictures = [pictures]
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="mbconv-decode")
        rest = enumerate(pictures)
        waiting: deque[tuple[str, Future[NDArray[np.uint8]]]] = deque()
        batch: list[tuple[str, NDArray[np.uint8] | None, str | None]] = []
        try:
            while True:
                for number, picture in islice(rest, 2 * self.batch_size - len(waiting)):
                    waiting.append((_source(picture, number), pool.submit(self.prepare, picture)))
                if not waiting:
                    break
                source, future = waiting.popleft()
                try:
                    batch.append((source, future.result(), None))
                except Unreadable as error:
                    batch.append((source, None, error.reason))
                if len(batch) >= self.batch_size:
                    yield from self._outputs(batch)
                    batch = []
            yield from self._outputs(batch)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def prepare(self, picture: Picture) -> NDArray[np.uint8]:
        """Read, resize and crop one picture: uint8 [resolution, resolution, 3].

        Raises Unreadable with the reason for a picture that cannot be read.
        """
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        if isinstance(picture, Image.Image):
            image = _upright_rgb(picture)
        else:
            image = decode(picture, min_side=self.preprocessing.resize)
        return prepare(image, self.preprocessing)

    def infer(self, pixels: Tensor) -> Tensor:
        """Prepared pictures, uint8 [N, H, W, 3] -> logits, float32 [N, classes]."""
        with torch.inference_mode(), evaluating(self.model), self._autocast():
            x = normalise(pixels.to(self.device), self.preprocessing)
            logits: Tensor = self.model(x)
        return logits.float()

    def _autocast(self) -> torch.autocast:
        # Off means float32 even inside a training loop's autocast; without the cache, casts made
        # here under inference mode cannot leak into that loop's next step.
        return torch.autocast(
            self.device.type,
            dtype=self.dtype or torch.bfloat16,
            enabled=self.dtype not in (None, torch.float32),
            cache_enabled=False,
        )

    def _outputs(
        self, batch: list[tuple[str, NDArray[np.uint8] | None, str | None]]
    ) -> Iterator[Output]:
        readable = [pixels for _, pixels, _ in batch if pixels is not None]
        rows: Iterator[Logits] = iter(())
        if readable:
            rows = iter(self.infer(torch.from_numpy(np.stack(readable))).cpu().numpy())
        for source, pixels, error in batch:
            yield Output(source, None if pixels is None else next(rows), error)

    def _prediction(self, output: Output, top_k: int) -> Prediction:
        if output.logits is None:
            return Prediction(output.source, (), (), output.error)
        scores = torch.from_numpy(output.logits).double().softmax(0)
        best, indices = scores.topk(min(top_k, len(scores)))
        labels = tuple(self.labels[i] for i in indices.tolist())
        return Prediction(output.source, labels, tuple(best.tolist()), None, output.logits)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module is as it was.

    A network whose batch norms are frozen is in both modes at once, hence module by module.
    """
    training = [module for module in model.modules() if module.training]
    try:
        if training:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def _fitting_batch(spec: Spec, resolution: int) -> int:
    largest = max(operator.activation_bytes for operator in cost(spec, resolution).operators)
    return max(1, min(MAX_BATCH, LARGEST_MAP // largest))


def _source(picture: Picture, number: int) -> str:
    """A path as it was given, a place in a file; for pictures in memory their number, from 1."""
    in_memory = isinstance(picture, bytes | Image.Image | np.ndarray)
    return f"picture {number + 1}" if in_memory else str(picture)


def _upright_rgb(image: Image.Image) -> Image.Image:
    try:
        return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError) as error:  # an opened file whose pixels were not read yet
        raise Unreadable(str(error)) from error
