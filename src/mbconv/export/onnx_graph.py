"""Networks as ONNX: torch's exporter, checked, slimmed, with names that say which block it is."""

import ast
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from mbconv.export.preprocessing_graph import preprocessing_graph
from mbconv.preprocessing import Preprocessing
from mbconv.runtime.artifact import KEY, SEAL, UNSEALED, seal
from mbconv.runtime.backend import installed

_SCOPES = "pkg.torch.onnx.name_scopes"


def convert(program: torch.export.ExportedProgram) -> Any:
    """A float32 program as an ONNX model: `tensor` -> `logits`. UserError without the libraries."""
    for module in ("onnx", "onnxscript", "onnxslim"):
        installed(module, "onnx", "The export to ONNX")
    import onnx
    import onnxslim

    with warnings.catch_warnings():  # the exporter's own deprecations are not the user's
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        exported = torch.onnx.export(
            program, dynamo=True, input_names=["tensor"], output_names=["logits"], verbose=False
        )
    assert exported is not None
    model = exported.model_proto
    _name_nodes(model.graph)
    model = onnxslim.slim(model)
    _forget_paths(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def with_pictures(model: Any, preprocessing: Preprocessing, batch: int | None) -> Any:
    """The same with `pictures` for its input: the preprocessing inside."""
    import onnx

    first = preprocessing_graph(
        preprocessing, batch, ir=model.ir_version, opset=model.opset_import[0].version
    )
    name = model.graph.input[0].name
    merged = onnx.compose.merge_models(first, model, io_map=[("normalised", name)])
    onnx.checker.check_model(merged, full_check=True)
    return merged


def write(model: Any, path: Path, description: str) -> None:
    """Write the model with its description to `path`, an `.onnx`."""
    import onnx

    model.producer_name = "mbconv"
    onnx.helper.set_model_props(model, {KEY: description, SEAL: UNSEALED})
    onnx.save(model, path)
    seal(path)


def _name_nodes(graph: Any) -> None:
    """Call each node by its module: stages.1.0.depthwise/Conv."""
    seen: Counter[str] = Counter()
    for node in graph.node:
        scopes = {p.key: p.value for p in node.metadata_props}.get(_SCOPES, "['', 'graph']")
        node.name = f"{ast.literal_eval(scopes)[-2] or 'graph'}/{node.op_type}"
        seen[node.name] += 1
        if seen[node.name] > 1:
            node.name += f"_{seen[node.name]}"


def _forget_paths(model: Any) -> None:
    """The exporter writes stack traces, with the folders of this machine, into every node."""
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for kind in ("node", "input", "output", "value_info", "initializer"):
        for item in getattr(model.graph, kind):
            del item.metadata_props[:]
            item.doc_string = ""
