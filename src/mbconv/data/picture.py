"""A training picture: its size at once, its pixels when a part of them is asked for.

JPEGs are decoded by libjpeg-turbo through simplejpeg, outside of the interpreter's lock and only
as finely as the part needs. Whatever is unusual about a file is left to `decode`, whose pixels
are the same.
"""

import math
from dataclasses import dataclass

import numpy as np
import simplejpeg

from mbconv.data.crop import Box, Pixels, resample
from mbconv.data.decode import LARGE, MAX_PIXELS, content, decode, orientation
from mbconv.data.place import Place

_APP1 = b"\xff\xe1"  # where EXIF and XMP say how a picture is turned; not to be met in coded data
_EMPTY_TAIL = bytes(64)
# What makes a stored picture upright, by EXIF's orientation: first rows and columns change places,
# then the order of rows, and that of columns, is reversed.
_TURNS = {
    1: (False, False, False), 2: (False, False, True), 3: (False, True, True),
    4: (False, True, False), 5: (True, False, False), 6: (True, False, True),
    7: (True, True, True), 8: (True, True, False),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """`width` and `height` in pixels, upright and at full size; `source` is a usual JPEG's
    content, or upright pixels [height, width, 3]."""

    source: bytes | Pixels
    width: int
    height: int
    orientation: int = 1  # of a JPEG

    def part(self, box: Box, size: tuple[int, int], mirrored: bool = False) -> Pixels:
        """What lies in `box`, in upright pixels at full size, resampled to `size` [h, w, 3].

        Raises Unreadable.
        """
        if not isinstance(self.source, bytes):
            return resample(self.source, box, size, mirrored)
        reduction = _reduction(box, size)
        if self.width * self.height > LARGE * reduction**2:
            return resample(np.asarray(decode(self.source)), box, size, mirrored)
        turned, up, across = _TURNS[self.orientation]
        stored = (self.height, self.width) if turned else (self.width, self.height)
        try:
            pixels = _decoded(self.source, *stored, reduction)
        except ValueError:  # damaged, or Pillow is more patient
            return resample(np.asarray(decode(self.source)), box, size, mirrored)
        if self.orientation == 1:
            return resample(pixels, _divided(box, reduction), size, mirrored)
        left, top, right, bottom = box
        if up:
            top, bottom = self.height - bottom, self.height - top
        if across:
            left, right = self.width - right, self.width - left
        if turned:
            left, top, right, bottom = top, left, bottom, right
        small = resample(pixels, _divided((left, top, right, bottom), reduction),
                         size[::-1] if turned else size)  # fmt: skip
        small = small.swapaxes(0, 1) if turned else small
        return np.ascontiguousarray(small[:: -1 if up else 1, :: -1 if across != mirrored else 1])


def open_picture(place: Place | bytes) -> Picture:
    """The picture of a file or its content. Raises Unreadable where there is none."""
    data = content(place)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        usual = colours in ("YCbCr", "Gray") and not data.endswith(_EMPTY_TAIL)
        if usual and width * height <= MAX_PIXELS:
            turn = orientation(data) if _APP1 in data else 1
            if turn in _TURNS:
                upright = (height, width) if _TURNS[turn][0] else (width, height)
                return Picture(data, *upright, turn)
    except ValueError:  # no JPEG, or one that Pillow should judge
        pass
    pixels = np.asarray(decode(data))
    return Picture(pixels, pixels.shape[1], pixels.shape[0])


def _reduction(box: Box, size: tuple[int, int]) -> int:
    """The coarsest of 1, 2, 4, 8 at which a part still has as many pixels as are asked for."""
    room = min((box[3] - box[1]) / size[0], (box[2] - box[0]) / size[1])
    return next(k for k in (8, 4, 2, 1) if k <= room or k == 1)


def _decoded(data: bytes, width: int, height: int, reduction: int) -> Pixels:
    """[ceil(height / reduction), ceil(width / reduction), 3]. ValueError for a damaged JPEG."""
    if reduction == 1:
        pixels: Pixels = simplejpeg.decode_jpeg(data)
    else:
        least = math.ceil(height / reduction), math.ceil(width / reduction)
        pixels = simplejpeg.decode_jpeg(
            data, min_height=least[0], min_width=least[1], min_factor=reduction
        )
    return pixels


def _divided(box: Box, by: int) -> Box:
    left, top, right, bottom = box
    return left / by, top / by, right / by, bottom / by
