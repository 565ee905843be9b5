"""Fused operators: fewer passes over the maps, and in training less memory kept.

`use` chooses what computes them, as the environment variable MBCONV_KERNELS does at the start.
"""

from mbconv.kernels.dispatch import (
    Memory,
    Mode,
    applies,
    backend,
    library_format,
    memory,
    native_pictures,
    plain,
    status,
    use,
)

__all__ = [
    "Memory",
    "Mode",
    "applies",
    "backend",
    "library_format",
    "memory",
    "native_pictures",
    "plain",
    "status",
    "use",
]
