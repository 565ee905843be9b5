"""Any dataset as tar shards: few large files, which network disks and buckets serve fast."""

import io
import json
import random
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath

from PIL import Image

from mbconv.data.decode import FORMATS
from mbconv.data.place import read
from mbconv.data.shards import CLASSES
from mbconv.data.source import IMAGE_SUFFIXES, Dataset, Notify, Sample
from mbconv.errors import UserError
from mbconv.files import write_text

SHARD_SIZE = 256_000_000  # bytes
_BLOCK, _END = 512, 20 * 512  # bytes: a tar's unit, and the most that its end takes


def pack(
    dataset: Dataset,
    out: Path,
    *,
    shard_size: int = SHARD_SIZE,
    progress: Notify | None = None,
) -> list[Path]:
    """Write `out/train-000000.tar` and so on, of at most `shard_size` bytes or one picture each.

    The layout is webdataset's: the picture's own bytes as `KEY.jpg`, `KEY.cls` with the number of
    its class and `KEY.json` with the names of class and picture; `classes.json` beside the shards
    lists the classes. The order is shuffled with a fixed seed, for readers that stream. Read
    again, it is the same dataset. Returns the shards.

    Raises UserError where `out` holds something, a picture's file has gone, or the disk is full;
    `out` is not made then.
    """
    if shard_size < 1:
        raise UserError(f"The size of a shard is {shard_size} bytes; it must be above zero.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty. Give a folder that does not exist yet.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            _write(dataset, temporary, shard_size, progress)
            temporary.chmod(0o755)  # mkdtemp's is its owner's alone
            if out.exists():
                out.rmdir()
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out} was not written: {error}. Mend that and pack again.") from error
    return sorted(out.glob("*.tar"))


def _write(dataset: Dataset, folder: Path, shard_size: int, progress: Notify | None) -> None:
    write_text(folder / CLASSES, json.dumps(list(dataset.classes), indent=2) + "\n")
    done = 0
    for split, samples in dataset.splits.items():
        with closing(_Shards(folder, split, shard_size)) as shards:
            for number, sample in enumerate(random.Random(0).sample(samples, len(samples))):
                files = list(_files(dataset, sample, read(sample.path)))
                shards.reserve(sum(_stored(content) for _, content in files))
                for ending, content in files:
                    shards.add(f"{number:08d}{ending}", content)
                done += 1
                if progress is not None:
                    progress("pictures packed", done, len(dataset))


class _Shards:
    """The tar files of a split, of which the last is open."""

    def __init__(self, folder: Path, split: str, limit: int) -> None:
        self._folder, self._split, self._limit = folder, split, limit
        self._count = self._written = 0
        self._tar: tarfile.TarFile | None = None

    def reserve(self, size: int) -> None:
        """Begin a new shard unless `size` more bytes fit into this one."""
        self._written += size
        if self._tar is None or self._written > self._limit - _END:
            self.close()
            path = self._folder / f"{self._split}-{self._count:06d}.tar"
            self._tar = tarfile.open(path, "w")  # noqa: SIM115  # closed by `close`
            self._count, self._written = self._count + 1, size

    def add(self, name: str, content: bytes) -> None:
        """No owner and no time, so that the same pictures make the same shard."""
        assert self._tar is not None, "reserve comes first"
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()


def _stored(content: bytes) -> int:
    """What a file takes in a tar: a header, and its content to a full block."""
    return _BLOCK * (1 - (-len(content) // _BLOCK))


def _files(dataset: Dataset, sample: Sample, data: bytes) -> Iterator[tuple[str, bytes]]:
    """The endings and contents of the files that one picture becomes."""
    name = dataset.name(sample)
    about = {"label": dataset.classes[sample.label], "name": name}
    yield _suffix(name, data), data
    yield ".cls", str(sample.label).encode()
    yield ".json", json.dumps(about).encode()


def _suffix(name: str, data: bytes) -> str:
    """The name's own ending, else that of the format."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return suffix
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            found = f".{str(image.format).lower()}"
    except Exception:  # not a picture: reading it says so, whatever it is called
        return ".jpg"
    return found if found in IMAGE_SUFFIXES else ".jpg"
