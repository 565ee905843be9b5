"""From a file or bytes to an upright 8-bit RGB picture, or to a short reason why there is none.

Embedded colour profiles are not applied: the pretrained weights saw pictures without them.
"""

import io
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from mbconv.data.place import Place

MAX_PIXELS = 100_000_000
# Formats whose readers stay inside this process (EPS, for one, would start Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LARGE = 16_000_000  # pixels; such pictures are decoded one at a time, to bound the memory
_STRIP = 4_000_000  # pixels
_large_lock = threading.Lock()


class Unreadable(ValueError):
    """A file that gives no picture.

    `reason` is a short phrase; `refused` is true where the file may be sound but its header
    promises more pixels than the limit.
    """

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.refused = refused


@dataclass(frozen=True)
class Facts:
    """What the file said about its picture before it became upright 8-bit RGB."""

    width: int  # upright, at full size
    height: int
    mode: str  # Pillow's name, with " 16-bit" where Pillow itself shortens 16 bits to 8
    rotated: bool  # an EXIF orientation other than upright was applied
    frames: int


def decode(
    source: Place | bytes | str, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode the whole picture: upright, mode RGB, transparency on white, the first frame.

    `min_side` (pixels) lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size as long as its
    short side stays at least that long. Pictures above `max_pixels` (at most Pillow's own limit,
    179 million) are refused by their header, before anything is decoded.

    Raises Unreadable: no file, no picture, a damaged or cut-off one (never padded), too large.
    """
    return decode_with_facts(source, min_side=min_side, max_pixels=max_pixels)[0]


def decode_with_facts(
    source: Place | bytes | str, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, Facts]:
    """As `decode`, with the facts that an audit counts."""
    _keep_pillow_strict()
    try:
        with _opened(source) as stream, Image.open(stream, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(width * height, max_pixels)
            if min_side is not None:
                image.draft(None, (min_side, min_side))
            with _large_lock if image.width * image.height > LARGE else nullcontext():
                return _finish(image, stream, (width, height))
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels", str(error))
        raise _too_large(int(pixels[1]) if pixels else None, max_pixels) from error
    except UnidentifiedImageError as error:
        raise Unreadable("not a picture in a known format") from error
    except MemoryError as error:
        raise Unreadable("too large for the memory of this machine", refused=True) from error
    except Exception as error:  # Pillow's readers raise whatever their parsing stumbles over
        raise Unreadable(_reason(error)) from error


def content(source: Place | bytes) -> bytes:
    """The bytes of a picture's file. Raises Unreadable where there are none."""
    try:
        with _opened(source) as stream:
            return stream.read()
    except OSError as error:
        raise Unreadable(_reason(error)) from error


def orientation(data: bytes) -> int:
    """EXIF's orientation, 1 to 8, of a file's content; 1 where it says none that can be read."""
    _keep_pillow_strict()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _orientation(image)
    except Exception:  # whoever decodes the picture will say what is wrong
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any loaded Pillow picture as 8-bit RGB; transparency becomes white.

    16 bits keep their upper 8. Values without a known white point (32-bit integers above 65,535,
    floats outside 0..1) raise Unreadable.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = _wide_to_grey(image)
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _finish(
    image: ImageFile.ImageFile, stream: IO[bytes], size: tuple[int, int]
) -> tuple[Image.Image, Facts]:
    """Load the opened picture; `size` is what the header said before any reduction."""
    header_end = stream.tell()
    mode = _mode(image)
    image.load()
    if image.format in ("JPEG", "MPO"):
        _check_tail(stream, header_end)
    orientation = _orientation(image)
    rgb = to_rgb(image)
    turn = _TURN.get(orientation)
    if turn is not None:  # the first of Pillow's transposes is 0
        rgb = rgb.transpose(turn)
        if orientation >= 5:
            size = size[1], size[0]
    elif rgb is image and _frames(image) > 1:
        rgb = image.copy()  # it would go back to the closed file for other frames
    rgb.info = {}  # metadata would travel to worker processes with every picture
    return rgb, Facts(*size, mode, turn is not None, _frames(image))


@contextmanager
def _opened(source: Place | bytes | str) -> Iterator[IO[bytes]]:
    if not isinstance(source, bytes | str | Path):
        source = source.read()
    if isinstance(source, bytes):
        if not source:
            raise Unreadable("empty")
        yield io.BytesIO(source)
        return
    status = Path(source).stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise Unreadable("not a file")
    if not status.st_size:
        raise Unreadable("empty")
    with open(source, "rb") as stream:
        yield stream


def _keep_pillow_strict() -> None:
    """Undo what other code may have set: padding of cut-off files, warnings for each picture.

    `warnings.catch_warnings` is not safe in threads. One filter for the warnings that Pillow's
    own modules emit, put in once, is.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    if not any(f[0] == "ignore" and f[3] == _PILLOW for f in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


_PILLOW = re.compile(r"PIL\.")


def _mode(image: ImageFile.ImageFile) -> str:
    raw = str(image.tile[0].args) if image.tile else ""
    return f"{image.mode} 16-bit" if "16" in raw and "16" not in image.mode else image.mode


def _frames(image: ImageFile.ImageFile) -> int:
    try:
        return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except Exception:  # a later frame is damaged; the first one was read
        return 2


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata must not cost a sound picture
        return 1


def _check_tail(stream: IO[bytes], header_end: int) -> None:
    """Raise Unreadable for a JPEG that an interrupted copy left with zeros for an end.

    Zeros decode as grey without an error. In coded data FF D9 can only be the end marker.
    """
    end = stream.seek(0, io.SEEK_END)
    stream.seek(max(header_end, end - 64))
    if not any(stream.read()):
        stream.seek(header_end)
        if b"\xff\xd9" not in stream.read():
            raise Unreadable("cut off: the end of the file is zeros")


def _wide_to_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "I" and low >= 0 and high <= 0xFFFF:
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F" and low >= 0 and high <= 1:
        return Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    raise Unreadable(f"32-bit values from {low:g} to {high:g} have no known white point")


def _on_white(image: Image.Image) -> Image.Image:
    """Composite strip by strip, so that no second copy with alpha is held in memory."""
    width, height = image.size
    white = Image.new("RGB", image.size, "white")
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height))).convert("RGBA")
        white.paste(strip, (0, top), strip)
    return white


def _too_large(pixels: int | None, limit: int) -> Unreadable:
    size = "its size" if pixels is None else f"{pixels / 1e6:,.0f} megapixels"
    return Unreadable(f"{size}, above the limit of {limit / 1e6:,.0f} megapixels", refused=True)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error) or type(error).__name__
    return "cut off before its end" if "truncated" in text.lower() else f"damaged ({text})"
