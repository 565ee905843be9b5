"""Predictor: pictures in, class scores out, in order.

A GPU computes while the next batch is read. On a CPU both need the same cores, and threads that
compute together wait for the one whose core decodes: where there are as many reading threads as
cores, a batch is read, then computed, which is a fifth quicker; unless files are slow to come.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.cores import usable_cores
from mbconv.data.decode import MAX_PIXELS, Unreadable, decode, to_rgb
from mbconv.data.place import Place
from mbconv.data.transform import normalise, prepare
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing
from mbconv.runtime.artifact import Artifact, runtime_of
from mbconv.runtime.backend import Backend, ModuleBackend, open_artifact
from mbconv.weights.model import load

# A str is a path, bytes are a file's content, an array is uint8 [H, W] or [H, W, 3]. What can be
# called gives prepared pixels, in one of the threads that read.
Prepared = Callable[[Preprocessing], NDArray[np.uint8]]
Picture = Place | str | bytes | Image.Image | NDArray[Any] | Prepared
Logits = NDArray[np.float32]
_Read = tuple[str, NDArray[np.uint8] | None, str | None]  # source, pixels, or why not

MAX_BATCH = 32  # larger ones are hardly faster
LARGEST_MAP = 80_000_000  # bytes of the largest map of a batch on a CPU; some three live at once
_BUSY = 0.5  # of the reading threads' time: below it the files are what takes long


@dataclass(frozen=True)
class Output:
    """A network's answer to one picture: logits [classes], or None and the reason in `error`."""

    source: str
    logits: Logits | None
    error: str | None = None


@dataclass(frozen=True)
class Prediction:
    """The best classes of one picture with their probabilities, best first.

    For a picture that cannot be read, `error` is the reason, `labels`, `scores` and `indices` are
    empty and `logits` is None; otherwise `logits` is [classes]. `indices` number the classes, since
    two of them may have the same label.
    """

    source: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    error: str | None = None
    logits: Logits | None = None
    indices: tuple[int, ...] = ()


@dataclass
class Timing:
    """Where the time went, in seconds, since the Predictor was made.

    `reading` adds up what the threads took to decode, resize and crop, `waited` how long the
    network had nothing to compute because of that.
    """

    pictures: int = 0
    reading: float = 0.0
    computing: float = 0.0
    waited: float = 0.0


class Predictor:
    """Runs `model` on pictures of any kind, `batch_size` at a time.

    `model` is a network, whatever `mbconv.load` takes, or an artifact of `mbconv export` (`.onnx`,
    `.xml`, `.pte`, `.pt2`), which computes in the runtime and number format that it was made for.
    By default the batch is 32, or less on a CPU where the network's maps are so large that a batch
    would take more than about a quarter of a gigabyte (B0 at 224 pixels: 16).
    A network is used as it is: nothing of it is changed but the device, if one is named (the
    default is where it lies), and the train or eval mode of its modules is restored after every
    batch, so that a training loop can evaluate half way. `dtype` bfloat16 or float16 computes
    under autocast; the default is float32. `preprocessing` overrides the model's own, for
    instance to measure at another resolution. `trust` allows a `.pt2` that this machine did not
    write. At most three batches of prepared pictures and one decoded picture a thread are in
    memory. Raises UserError for a batch size below 1, a model that does not take three channels,
    an artifact that cannot be served here, and settings that an artifact has no room for.
    """

    def __init__(
        self,
        model: MBConvNet | str | Path,
        *,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        preprocessing: Preprocessing | None = None,
        threads: int | None = None,
        trust: bool = False,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UserError(f"The batch size is {batch_size}; it must be 1 or more.")
        self.artifact: Artifact | None = None
        self.backend: Backend
        self._model: MBConvNet | None = None
        if isinstance(model, str | Path) and runtime_of(model) is not None:
            if not (device is None and dtype is None and preprocessing is None):
                raise UserError(
                    f"{model} has its device, number format and preprocessing inside; export it "
                    "again to change them."
                )
            self.artifact, self.backend = open_artifact(model, trust=trust)
        else:
            network = model if isinstance(model, MBConvNet) else load(model)
            self._model = network if device is None else network.to(device)
            self.backend = ModuleBackend(self._model, dtype)
        about = self.artifact or self.model
        self.spec = about.spec
        if self.spec.in_channels != 3:
            raise UserError(
                f"This network takes {self.spec.in_channels} channels and pictures have three "
                "(RGB); call the network itself on tensors that have its channels."
            )
        self.device = self.backend.device
        self.preprocessing = preprocessing or about.preprocessing
        self._whole = self.artifact is not None and self.artifact.form.entry == "pictures"
        self.batch_size = batch_size or self._usual_batch()
        self.threads = threads or max(2, min(8, os.cpu_count() or 2))
        self.named = about.labels is not None
        self.labels = about.labels or tuple(str(n) for n in range(self.spec.num_classes))
        self.timing = Timing()

    @property
    def model(self) -> MBConvNet:
        """The network as torch's modules; UserError for an artifact, which has none."""
        if self._model is None:
            raise UserError("This needs the network's modules; give a model file, no artifact.")
        return self._model

    def predict(self, pictures: Iterable[Picture], top_k: int = 5) -> Iterator[Prediction]:
        """Yield one Prediction a picture, in order, with the `top_k` best classes (or all).

        Raises UserError for a `top_k` below 1.
        """
        if top_k < 1:
            raise UserError(f"The number of classes to show is {top_k}; it must be 1 or more.")
        return (self.prediction(output, top_k) for output in self.logits(pictures))

    def logits(self, pictures: Iterable[Picture]) -> Generator[Output, None, None]:
        """Yield one Output a picture, in order; pictures are taken as they are needed.

        Evaluation and prediction both come through here.
        """
        if isinstance(pictures, str | bytes | Path | Image.Image):
            pictures = [pictures]
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="mbconv-decode")
        rest = enumerate(pictures)
        waiting: deque[tuple[str, Future[tuple[NDArray[np.uint8], float]]]] = deque()
        ahead = self._computes_elsewhere()
        try:
            while True:
                started, begun = perf_counter(), process_time()
                for number, picture in islice(rest, (1 + ahead) * self.batch_size - len(waiting)):
                    waiting.append((_source(picture, number), pool.submit(self._timed, picture)))
                if not waiting:
                    break
                batch = [self._read(*waiting.popleft()) for _ in range(self.batch_size) if waiting]
                waited, busy = perf_counter() - started, process_time() - begun
                self.timing.waited += waited
                ahead = ahead or busy < _BUSY * waited * min(self.threads, usable_cores())
                yield from self._outputs(batch)
        finally:
            pool.shutdown(cancel_futures=True)  # whoever closes a cache must find nobody reading

    def prepare(self, picture: Picture, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """Read, resize and crop one picture: uint8 [resolution, resolution, 3].

        For an artifact with the entry `pictures` it is only read, [H, W, 3].
        Raises Unreadable with the reason for a picture that cannot be read, or whose file has
        more than `max_pixels`.
        """
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        if callable(picture):
            return picture(self.preprocessing)
        if isinstance(picture, Image.Image):
            image = _upright_rgb(picture)
        else:
            image = decode(picture, min_side=self.preprocessing.resize, max_pixels=max_pixels)
        return np.array(image) if self._whole else prepare(image, self.preprocessing)

    def infer(self, pixels: Tensor) -> Tensor:
        """Prepared pictures, uint8 [N, H, W, 3] -> logits, float32 [N, classes]."""
        with torch.inference_mode():
            x = pixels.to(self.device)
            return self.backend.logits(x if self._whole else normalise(x, self.preprocessing))

    def infer_all(self, pictures: list[NDArray[np.uint8]]) -> Logits:
        """Prepared pictures, uint8 [H, W, 3] each -> logits, float32 [N, classes].

        Those of different sizes, which do not stack, are computed one by one.
        """
        same = len({pixels.shape for pixels in pictures}) == 1
        batches = [np.stack(pictures)] if same else [pixels[None] for pixels in pictures]
        rows = [self.infer(torch.from_numpy(batch)).cpu().numpy() for batch in batches]
        return np.concatenate(rows)

    def prediction(self, output: Output, top_k: int) -> Prediction:
        """The `top_k` best classes of an Output."""
        if output.logits is None:
            return Prediction(output.source, (), (), output.error)
        scores = torch.from_numpy(output.logits).double().softmax(0)
        best, indices = scores.topk(min(top_k, len(scores)))
        numbers = tuple(indices.tolist())
        labels = tuple(self.labels[i] for i in numbers)
        return Prediction(output.source, labels, tuple(best.tolist()), None, output.logits, numbers)

    def _computes_elsewhere(self) -> bool:
        """Whether there is something to compute with while all reading threads are at work."""
        small = self.batch_size < self.threads  # one by one, they would not read at once
        return self.device.type != "cpu" or self.threads < usable_cores() or small

    def _timed(self, picture: Picture) -> tuple[NDArray[np.uint8], float]:
        started = perf_counter()
        return self.prepare(picture), perf_counter() - started

    def _read(self, source: str, future: "Future[tuple[NDArray[np.uint8], float]]") -> _Read:
        """What became of a picture that a thread reads: its pixels, or the reason why not."""
        try:
            pixels, seconds = future.result()
        except Unreadable as error:
            return source, None, error.reason
        self.timing.reading += seconds
        return source, pixels, None

    def _usual_batch(self) -> int:
        """As the class says; an artifact's own, and 1 where pictures may differ in size."""
        if self.artifact is not None and (self._whole or self.artifact.form.batch):
            return self.artifact.form.batch or 1
        if self.device.type == "cpu":
            return _fitting_batch(self.spec, self.preprocessing.resolution)
        return MAX_BATCH

    def _outputs(self, batch: list[_Read]) -> Iterator[Output]:
        readable = [pixels for _, pixels, _ in batch if pixels is not None]
        rows: Iterator[Logits] = iter(())
        if readable:
            started = perf_counter()
            rows = iter(self.infer_all(readable))
            self.timing.computing += perf_counter() - started
            self.timing.pictures += len(readable)
        for source, pixels, error in batch:
            yield Output(source, None if pixels is None else next(rows), error)


def _fitting_batch(spec: Spec, resolution: int) -> int:
    largest = max(operator.activation_bytes for operator in cost(spec, resolution).operators)
    return max(1, min(MAX_BATCH, LARGEST_MAP // largest))


def _source(picture: Picture, number: int) -> str:
    """A path as it was given, a place in a file; for all that has no name its number, from 1."""
    nameless = callable(picture) or isinstance(picture, bytes | Image.Image | np.ndarray)
    return f"picture {number + 1}" if nameless else str(picture)


def _upright_rgb(image: Image.Image) -> Image.Image:
    try:
        return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError) as error:  # an opened file whose pixels were not read yet
        raise Unreadable(str(error)) from error
