"""Networks as ExecuTorch programs for XNNPACK, in float32 or INT8: what phones run."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from mbconv.export.network import capture
from mbconv.runtime.artifact import KEY, seal, unsealed
from mbconv.runtime.executorch_runtime import library
from mbconv.runtime.predictor import MAX_BATCH, Logits

_PURPOSE = "The export to ExecuTorch"
_ATEN = torch.ops.aten
_LAYERS = (_ATEN.conv2d.default, _ATEN.conv1d.default, _ATEN.linear.default)
_CLAMPS = (_ATEN.relu.default, _ATEN.hardtanh.default)  # the second is what ReLU6 becomes


def convert(program: torch.export.ExportedProgram, batch: int | None) -> Any:
    """The same program, so that XNNPACK takes it whole. UserError without ExecuTorch.

    Memory is planned for the largest batch, so that any number means up to MAX_BATCH.
    """
    library("executorch.exir", _PURPOSE)
    module = program.module(check_guards=False)
    _keep_dimensions(module.graph)
    module.recompile()
    return _captured(module, program, batch)


def quantize(
    program: torch.export.ExportedProgram,
    batch: int | None,
    batches: Sequence[Logits],
    in_float: Sequence[str] = (),
) -> Any:
    """The program in INT8, without the layers `in_float`, module names.

    Weights are symmetric per channel, activations have one scale over the whole range that the
    calibration pictures `batches` gave them.
    """
    library("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "INT8 for ExecuTorch")
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    observer = MinMaxObserver.with_args(eps=2**-12)  # the least scale of XNNPACK
    activation = replace(config.input_activation, observer_or_fake_quant_ctr=observer)
    config = replace(config, input_activation=activation, output_activation=activation)
    module = program.module(check_guards=False)
    untouched = _computing(module.graph, in_float)
    _join_clamps(module.graph, config, untouched)
    quantizer = xnnpack.XNNPACKQuantizer().set_global(config)
    quantizer.set_filter_function(lambda node: node.name not in untouched)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations between torchao and torch
        prepared = prepare_pt2e(module, quantizer)
        for pictures in batches:
            prepared(torch.from_numpy(pictures))
        rounded = convert_pt2e(prepared)
        return _captured(rounded, program, batch)


def write(program: torch.export.ExportedProgram, path: Path, description: str) -> None:
    """Write the program to `path`, a `.pte` whose method `mbconv` returns the description."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lowered = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            constant_methods={KEY: unsealed(description)},
        )
        # Pictures stay where the caller has them; otherwise there is room for the largest batch.
        planning = MemoryPlanningPass(alloc_graph_input=False)
        made = lowered.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    path.write_bytes(made.buffer)
    seal(path)


def _captured(
    module: fx.GraphModule, program: torch.export.ExportedProgram, batch: int | None
) -> torch.export.ExportedProgram:
    # torch asks whether a convolution has 16 pictures, and the answer becomes the program's bound:
    # for a small example at most 15, for the largest batch at least 16, which nothing holds it to.
    x: torch.Tensor = program.example_inputs[0][0]
    return capture(module, x.new_zeros(batch or MAX_BATCH, *x.shape[1:]), batch, MAX_BATCH)


def _keep_dimensions(graph: fx.Graph) -> None:
    """Means over places keep both as 1, and lose them afterwards: XNNPACK has no other means."""
    for node in graph.find_nodes(op="call_function", target=_ATEN.mean.dim):
        x, places, *kept = node.args
        if kept:
            continue
        with graph.inserting_before(node):
            means = graph.call_function(_ATEN.mean.dim, (x, places, True))
            flat = graph.call_function(_ATEN.view.default, (means, [-1, node.meta["val"].shape[1]]))
        node.replace_all_uses_with(flat)
        graph.erase_node(node)


def _computing(graph: fx.Graph, layers: Sequence[str]) -> set[str]:
    """The nodes of `layers`, and all that compute their inputs, down to the layers before.

    An INT8 layer rounds its own output, so that those before must be in floating point as well.
    """
    weights = {f"{layer}{part}.weight" for layer in layers for part in ("", ".conv")}
    found: set[str] = set()
    for node in graph.nodes:
        if node.target not in _LAYERS or node.args[1].target not in weights:
            continue
        found.add(node.name)
        waiting = [node.args[0]]
        while waiting:
            source = waiting.pop()
            if source.name not in found and source.target not in _LAYERS:
                waiting += source.all_input_nodes
            found.add(source.name)
    return found


def _join_clamps(graph: fx.Graph, config: Any, untouched: set[str]) -> None:
    """A layer and the clamp behind it are one step, whose output's range is the clamp's.

    XNNPACK's quantizer knows that of ReLU only; ReLU6 would inherit the range before it.
    """
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    for node in graph.nodes:
        if node.target not in _CLAMPS or node.args[0].target not in _LAYERS:
            continue
        layer = node.args[0]
        if len(layer.users) > 1 or layer.name in untouched:
            continue
        inputs = {layer.args[0]: config.input_activation, layer.args[1]: config.weight}
        layer.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(inputs, _annotated=True)
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
            output_qspec=config.output_activation, _annotated=True
        )
