"""Published sets by name: where they are served, what they unpack to, and where copies lie."""

import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from mbconv.data.cache import cache_dir
from mbconv.data.download import download
from mbconv.data.source import Notify
from mbconv.errors import UserError

Archive = tuple[str, str | None]  # URL and MD5, None where the publisher states none


@dataclass(frozen=True)
class Published:
    """A set's folder, as its archives or torchvision call it, and its files.

    `loose` says that the archives do not hold that folder but what belongs into it.
    """

    folder: str
    files: tuple[Archive, ...] = ()
    loose: bool = False


_FAST = "https://s3.amazonaws.com/fast-ai-imageclas"
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"

# The MD5s are those that torchvision 0.24 checks. Nobody states one of Imagewoof's archives.
SETS = {
    "imagenette": Published(
        "imagenette2-160",
        ((f"{_FAST}/imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"),),
    ),
    "imagenette-320": Published(
        "imagenette2-320",
        ((f"{_FAST}/imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"),),
    ),
    "imagewoof": Published("imagewoof2-160", ((f"{_FAST}/imagewoof2-160.tgz", None),)),
    "imagewoof-320": Published("imagewoof2-320", ((f"{_FAST}/imagewoof2-320.tgz", None),)),
    "cifar10": Published(
        "cifar-10-batches-py",
        (
            (
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "c58f30108f718f92721af3b95e74349a",
            ),
        ),
    ),
    "flowers102": Published(
        "flowers-102",
        (
            (f"{_OXFORD}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
            (f"{_OXFORD}/flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
            (f"{_OXFORD}/flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
        ),
        loose=True,
    ),
    "pets": Published(
        "oxford-iiit-pet",
        (
            (f"{_OXFORD}/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            (f"{_OXFORD}/pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
        ),
        loose=True,
    ),
    "cars": Published("stanford_cars"),
}


def find(name: str, data_root: Path | None = None, *, progress: Notify | None = None) -> Path:
    """The folder of a published set below `data_root` (by default in the cache folder).

    It is downloaded, checked and unpacked where it is not there yet. Raises UserError for a name
    that is none, a set that is no longer served, and what `download` refuses.
    """
    if name not in SETS:
        raise UserError(
            f"{name} does not exist. Give a folder that holds one folder per class, a list "
            f"(.csv, .parquet), shards (.tar), hf:NAME, or one of the sets {', '.join(SETS)}."
        )
    published = SETS[name]
    root = data_root or cache_dir() / "sets"
    folder = root / published.folder
    if folder.is_dir():
        return folder
    if not published.files:
        raise UserError(
            f"{name} is no longer served by its publisher. Name the folder that holds a copy's "
            f"{published.folder} folder with --data-root."
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{published.folder}.lock"):
            if not folder.is_dir():  # else another process was faster
                files = [_fetch(archive, root, progress) for archive in published.files]
                _unpack(published, root, files)
    except OSError as error:
        raise UserError(f"Cannot write to {root}: {error}. Give another --data-root.") from error
    return folder


def _fetch(archive: Archive, root: Path, progress: Notify | None) -> Path:
    url, md5 = archive
    name = url.rpartition("/")[2]
    target = root / f".{name}"  # hidden, for it goes when it is unpacked
    if not target.exists():
        download(url, target, md5=md5, progress=progress, what=name)
    return target


def _unpack(published: Published, root: Path, files: list[Path]) -> None:
    """Unpack beside the final place and rename, so that a folder that exists is complete."""
    folder = root / published.folder
    temporary = Path(tempfile.mkdtemp(prefix=f".{published.folder}.", dir=root))
    try:
        for file in files:
            name = file.name.removeprefix(".")
            if name.endswith((".tgz", ".tar.gz")):
                with tarfile.open(file) as tar:
                    _extract(tar, temporary)
            else:
                shutil.copyfile(file, temporary / name)
        inner = temporary if published.loose else temporary / published.folder
        inner.chmod(0o755)  # mkdtemp's is its owner's alone
        inner.rename(folder)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{published.folder} cannot be unpacked in {root} ({error}). Run the command again to "
            "download it anew."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for file in files:  # unpacked, or not worth keeping
            file.unlink()


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """All of it, but nothing outside the folder. Raises TarError."""
    if hasattr(tarfile, "data_filter"):  # since Python 3.11.4
        tar.extractall(folder, filter="data")
        return
    whole = folder.resolve()
    for member in tar:
        inside = (whole / member.name).resolve().is_relative_to(whole)
        if not inside or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name} is no file, or lies outside")
        tar.extract(member, folder)
