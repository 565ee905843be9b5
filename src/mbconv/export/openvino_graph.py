"""Networks as OpenVINO's intermediate representation, made from the ONNX graph."""

import io
from pathlib import Path
from typing import Any

from mbconv.runtime.artifact import KEY, SEAL, UNSEALED, seal
from mbconv.runtime.backend import installed
from mbconv.runtime.openvino_runtime import shared_core


def convert(onnx_model: Any) -> Any:
    """An OpenVINO model with the ONNX model's names. UserError where OpenVINO is missing."""
    installed("openvino", "openvino", "The export to OpenVINO")
    from openvino._offline_transformations import apply_moc_transformations

    model = shared_core().read_model(io.BytesIO(onnx_model.SerializeToString()))
    # Shapes of biases and clips are folded now, so that NNCF recognises every convolution.
    apply_moc_transformations(model, True)
    return model


def with_pictures(model: Any, preprocessing: Any) -> Any:
    """The same behind `preprocessing`, an OpenVINO model: one whose input is `pictures`."""
    import openvino

    network, first = model.clone(), preprocessing.clone()
    source = first.outputs[0].get_node().input_value(0)
    network.inputs[0].get_node().output(0).replace(source)
    joined = openvino.Model(network.get_results(), first.get_parameters(), "network")
    joined.validate_nodes_and_infer_types()
    return joined


def write(model: Any, path: Path, description: str) -> None:
    """Write the model with its description to `path`, an `.xml`, and the `.bin` beside it."""
    import openvino

    model.set_rt_info(description, KEY)
    model.set_rt_info(UNSEALED, SEAL)
    openvino.save_model(model, path, compress_to_fp16=False)
    seal(path)
