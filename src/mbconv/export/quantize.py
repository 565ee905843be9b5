"""INT8 by NNCF: symmetric weights per channel, calibrated activations, corrected biases."""

import contextlib
import io
import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mbconv.data.decode import Unreadable
from mbconv.data.source import Sample
from mbconv.data.transform import normalise
from mbconv.errors import UserError
from mbconv.kernels.native import processor_features
from mbconv.runtime.artifact import Runtime
from mbconv.runtime.backend import installed
from mbconv.runtime.predictor import Logits, Predictor


def calibration_batches(
    predictor: Predictor, samples: Sequence[Sample], batch: int | None
) -> list[Logits]:
    """The samples as the network is given them, float32 [batch or 1, 3, R, R] each.

    Unreadable pictures are left out. Raises UserError where too few remain for a batch.
    """
    pixels = []
    for sample in samples:
        with contextlib.suppress(Unreadable):
            pixels.append(predictor.prepare(sample.path))
    size = batch or 1
    groups = [pixels[i : i + size] for i in range(0, len(pixels) - size + 1, size)]
    if not groups:
        raise UserError(
            f"INT8 needs at least {size} readable training pictures and there are {len(pixels)}."
        )
    tensors = (torch.from_numpy(np.stack(group)) for group in groups)
    return [normalise(t, predictor.preprocessing).contiguous().numpy() for t in tensors]


def quantize(
    graph: Any, runtime: Runtime, batches: Sequence[Logits], in_float: Sequence[str] = ()
) -> Any:
    """A copy of an ONNX or OpenVINO model in INT8, without the layers `in_float`, module names.

    An activation's range is the least and the greatest value that any calibration picture gave it:
    NNCF's default, the mean over pictures of each one's extremes, clips about half of them.
    Raises UserError where NNCF is not installed.
    """
    # NNCF imports torch's builder of extensions, which looks for CUDA and warns
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    nncf = installed("nncf", "export", "INT8")
    nncf.set_log_level(logging.ERROR)
    items = [{"tensor": batch} for batch in batches] if runtime == "onnx" else list(batches)
    # ONNX Runtime's integer convolution takes one zero point for its input, where NNCF would give
    # depthwise ones a scale for each channel.
    parameters = nncf.quantization.advanced_parameters.QuantizationParameters
    activations = parameters(per_channel=False) if runtime == "onnx" else None
    whole_range = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    with contextlib.redirect_stdout(io.StringIO()):  # its own bars would break ours
        return nncf.quantize(
            graph if runtime == "onnx" else graph.clone(),
            nncf.Dataset(items),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(items),
            fast_bias_correction=True,
            ignored_scope=nncf.IgnoredScope(patterns=[_nodes(layer) for layer in in_float]),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=None if adds_in_32_bits() else nncf.OverflowFix.ENABLE,
                activations_quantization_params=activations,
                activations_range_estimator_params=whole_range,
            ),
        )


def adds_in_32_bits() -> bool:
    """Whether this processor adds INT8 products in 32 bits, as far as is known.

    x86 without VNNI adds pairs of them in 16, which overflows unless weights have 7 bits.
    """
    features = processor_features()
    return "x86_64" not in features or bool(features & {"avx512_vnni", "avx_vnni"})


def _nodes(layer: str) -> str:
    """A pattern of the layer's names in a graph; the last one takes the output's in OpenVINO."""
    own = f"^{re.escape(layer)}/"
    return f"{own}|^logits$" if layer == "head.classifier" else own
