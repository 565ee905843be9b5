"""Keras files written with h5py alone, by Keras's conventions: names, order and memory layout."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from mbconv.arch.zoo import get_spec
from mbconv.nn.model import MBConvNet, build

Arrays = dict[str, list[np.ndarray[Any, Any]]]  # of each layer, in Keras's order
CLASS = {"conv": "conv2d", "reduce": "conv2d", "expand": "conv2d", "bn": "batch_normalization"}


def random_net(name: str) -> MBConvNet:
    torch.manual_seed(0)
    model = build(get_spec(name).replace(num_classes=5, padding="same", bn_eps=1e-3))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model.eval()


def as_keras(model: MBConvNet, name: str) -> Arrays:
    """The layers in Keras's order, under its names, in its memory layout."""
    layers: Arrays = {}

    def conv(layer: str, module: Any) -> None:
        weight = module.weight.detach().numpy()
        depthwise = module.groups > 1
        layers[layer] = [np.moveaxis(weight, (2, 3), (0, 1)) if depthwise
                         else weight.transpose(2, 3, 1, 0)]  # fmt: skip
        if module.bias is not None:
            layers[layer].append(module.bias.detach().numpy())

    def pair(prefix: str, module: Any, conv_name: str = "conv", norm_name: str = "bn") -> None:
        conv(prefix + conv_name, module.conv)
        norm = module.norm
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        layers[prefix + norm_name] = [tensor.detach().numpy() for tensor in tensors]

    v2 = name.startswith("efficientnetv2")
    pair("stem_", model.stem)
    for s, stage in enumerate(model.stages, start=1):
        for letter, block in zip("abcdefghijklmnopqrstuvwxyz", stage, strict=False):
            prefix = f"block{s}{letter}_"
            lone = not hasattr(block, "project") or block.project is None
            if lone:
                pair(f"{prefix}project_", block.expand)
                continue
            if getattr(block, "expand", None) is not None:
                pair(f"{prefix}expand_", block.expand)
            if getattr(block, "depthwise", None) is not None:
                pair(prefix, block.depthwise, "dwconv2" if v2 else "dwconv")
            if getattr(block, "gate", None) is not None:
                conv(f"{prefix}se_reduce", block.gate.reduce)
                conv(f"{prefix}se_expand", block.gate.expand)
            pair(f"{prefix}project_", block.project)
    pair("top_", model.head.conv)
    classifier = model.head.classifier
    layers["predictions"] = [classifier.weight.detach().numpy().T, classifier.bias.detach().numpy()]
    return layers


def variables(layer: str, arrays: list[np.ndarray[Any, Any]]) -> list[str]:
    if len(arrays) == 4:
        return ["gamma", "beta", "moving_mean", "moving_variance"]
    if layer.startswith("normalization"):
        return ["mean", "variance", "count"]
    return ["depthwise_kernel" if "dwconv" in layer else "kernel", "bias"][: len(arrays)]


def write_legacy(path: Path, layers: Arrays, empty: tuple[str, ...], *, whole: bool) -> None:
    """Keras 2: a group for each layer, in it the variables by their names."""
    with h5py.File(path, "w") as opened:
        group = opened.create_group("model_weights") if whole else opened
        for layer in (*empty, *layers):
            group.create_group(layer)
        for layer, arrays in layers.items():
            for variable, array in zip(variables(layer, arrays), arrays, strict=True):
                group[f"{layer}/{layer}/{variable}:0"] = array
        if whole:
            opened["optimizer_weights/adam/iteration:0"] = np.float32(3)


def write_newer(
    path: Path | io.BytesIO, layers: Arrays, empty: tuple[str, ...], *, named: bool
) -> None:
    """Keras 3: layers numbered by their class, variables by their place."""
    seen: dict[str, int] = {}
    with h5py.File(path, "w") as opened:
        for layer, arrays in {**{name: [] for name in empty}, **layers}.items():
            kind = "depthwise_conv2d" if "dwconv" in layer else "dense"
            kind = CLASS.get(layer.split("_")[-1], kind) if layer != "predictions" else "dense"
            if layer in empty or layer.startswith("normalization"):
                kind = layer.split("_")[0]
            number = seen[kind] = seen.get(kind, -1) + 1
            group = opened.create_group(f"layers/{kind}_{number}" if number else f"layers/{kind}")
            values = group.create_group("vars")
            if named:
                values.attrs["name"] = layer
            for place, array in enumerate(arrays):
                values[str(place)] = array
        opened["layers/dropout/seed_generator/vars/0"] = np.array([1, 2], dtype=np.uint32)


def write(path: Path, layout: str, layers: Arrays, rescalings: int = 1) -> Path:
    empty = ("rescaling", "rescaling_1")[:rescalings]
    if layout in ("old weights", "old model"):
        write_legacy(path.with_suffix(".h5"), layers, empty, whole=layout == "old model")
        return path.with_suffix(".h5")
    if layout in ("weights", "unnamed weights"):
        write_newer(path.with_suffix(".h5"), layers, empty, named=layout == "weights")
        return path.with_suffix(".h5")
    buffer = io.BytesIO()
    write_newer(buffer, layers, empty, named=True)
    with zipfile.ZipFile(path.with_suffix(".keras"), "w") as archive:
        archive.writestr("config.json", json.dumps({}))
        archive.writestr("model.weights.h5", buffer.getvalue())
    return path.with_suffix(".keras")


def norm(variance: tuple[float, ...], mean: tuple[float, ...] = (0.1, 0.2, 0.3)) -> Arrays:
    return {"normalization": [np.float32(mean), np.float32(variance), np.int64(0)]}
