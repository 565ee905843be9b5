"""The ways in which a network may run fast on a device."""

from dataclasses import replace

import torch

from mbconv.measure.task import Way


def usual_ways(first: Way) -> tuple[Way, ...]:
    """Number formats that the device has, in both memory layouts."""
    dtypes = ["float32"]
    if first.device.startswith("cuda"):
        dtypes += ["bfloat16"] * torch.cuda.is_bf16_supported()
    elif first.device == "cpu":
        # Elsewhere it is emulated, many times slower than float32.
        dtypes += ["bfloat16"] * torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return tuple(replace(first, dtype=dtype, channels_last=last)
                 for dtype in dtypes for last in (True, False))  # fmt: skip
