"""Pictures for the tests of the data layer: made from a seed, or written byte by byte."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def photo(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """A smooth, textured colour picture without symmetry; another seed is another picture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    fine = rng.normal(0, 4, (height, width, 1))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray(np.clip(smooth + fine, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(
    values: NDArray[np.generic], color_type: int, *, size: tuple[int, int] | None = None
) -> bytes:
    """A PNG written by hand, 8 or 16 bits as `values` [H, W, channels]; `size` may lie."""
    height, width = values.shape[:2]
    depth = 8 * values.dtype.itemsize
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", *(size or (width, height)), depth, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    """Write `files` (path below `root` -> content) and return `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root
