"""Fused operators for training: less memory kept, fewer passes over the maps.

`use` chooses what computes them, as the environment variable MBCONV_KERNELS does at the start.
"""

from mbconv.kernels.dispatch import (
    Memory,
    Mode,
    applies,
    backend,
    memory,
    native_pictures,
    status,
    use,
)

__all__ = ["Memory", "Mode", "applies", "backend", "memory", "native_pictures", "status", "use"]
