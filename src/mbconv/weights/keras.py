"""Networks of `keras.applications`: EfficientNet B0 to B7 and V2, by Keras's names and layouts.

Keras normalises inside the network; here that is the preprocessing.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing, Triple
from mbconv.weights.assemble import assemble, some
from mbconv.weights.keras_file import read

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_PADDING = 32  # Google's evaluation resizes the short side to the resolution plus this


class Family(NamedTuple):
    """What networks of one kind share in keras.applications."""

    depthwise: str  # how the layer's name ends
    bn_momentum: float  # in torch's meaning
    mean_std: tuple[Triple, Triple] | None  # of pixels in 0..1; None: they are in the file
    keep_aspect: bool = True  # as Google evaluates them


V1 = Family("dwconv", 0.01, None)
V2_B = Family("dwconv2", 0.1, (IMAGENET_MEAN, IMAGENET_STD))
V2 = Family("dwconv2", 0.1, ((128 / 255,) * 3,) * 2, keep_aspect=False)  # pixel / 128 - 1
V1_RESOLUTIONS = (224, 240, 260, 300, 380, 456, 528, 600)
NETWORKS = {  # the zoo's name: family, and the resolution that keras.applications builds
    **{f"efficientnet_b{i}": (V1, r) for i, r in enumerate(V1_RESOLUTIONS)},
    **{f"efficientnetv2_b{i}": (V2_B, r) for i, r in enumerate(V1_RESOLUTIONS[:4])},
    "efficientnetv2_s": (V2, 384),
    "efficientnetv2_m": (V2, 480),
    "efficientnetv2_l": (V2, 480),
}
AXES = {  # Keras's axes in our order
    "conv2d": (3, 2, 0, 1),  # [k, k, I, O] -> [O, I, k, k]
    "depthwise_conv2d": (2, 3, 0, 1),  # [k, k, C, 1] -> [C, 1, k, k]
    "dense": (1, 0),  # [I, O] -> [O, I]
}
OURS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class Layer(NamedTuple):
    """A layer with weights: its Keras class, its name in keras.applications, our module."""

    kind: str
    name: str
    module: str


def load(path: str | Path, name: str | None = None) -> MBConvNet:
    """The network in a Keras file, in evaluation mode, with the preprocessing that it contained.

    `name` is the zoo's (`efficientnetv2_b0`); None recognises it. Raises UserError where h5py is
    not installed, the file cannot be read, holds another network, or lacks a classifier.
    """
    file = read(path)
    try:
        model = convert(file.tensors, name, rescalings=file.rescalings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return model


def convert(
    tensors: Mapping[str, Tensor], name: str | None = None, *, rescalings: int | None = None
) -> MBConvNet:
    """The network of `{variable.path: variable}` as Keras names and lays them out.

    Kernels are [k, k, in, out], depthwise ones [k, k, channels, 1]. `rescalings` as in
    KerasFile; None assumes what keras.applications builds. See `load` for the rest.

    A V1 network that was built without a size (`input_shape=(None, None, 3)`) pads maps of odd
    size as if they were even; that is not followed, as the file does not tell.
    """
    given = {"/".join(path.split("/")[-2:]): tensor for path, tensor in tensors.items()}
    norm = {k.split("/")[1]: v for k, v in given.items() if k.startswith("normalization")}
    weights = {k: v for k, v in given.items() if not k.startswith("normalization")}
    name = _recognise(weights) if name is None else name
    if name not in NETWORKS:
        raise UserError(f"keras.applications has no {name}; it has {', '.join(NETWORKS)}.")
    family, resolution = NETWORKS[name]
    layers = tuple(_layers(get_spec(name), family))
    weights = _named(weights, layers)
    spec = get_spec(name).replace(
        num_classes=_kernel(weights, "predictions", 2).shape[1],
        in_channels=_kernel(weights, "stem_conv", 4).shape[2],
        resolution=resolution,
        padding="same",
        bn_eps=1e-3,
        bn_momentum=family.bn_momentum,
    )
    model = assemble(spec, _translate(weights, layers))
    model.preprocessing = _preprocessing(family, resolution, norm, rescalings)
    model.provenance = {"source": "keras", "name": name}
    return model


def _layers(spec: Spec, family: Family) -> Iterator[Layer]:
    """The layers of `spec` in Keras's order; blocks are block1a, block1b, block2a and so on."""
    yield from _pair("stem", "stem")
    for s, b, channels, block in spec.blocks():
        parts = [part.name for part in block.parts(channels)]
        theirs = f"block{s + 1}{chr(97 + b)}_"
        yield from _block(parts, theirs, f"stages.{s}.{b}.", family.depthwise)
    yield from _pair("top", "head.conv")
    yield Layer("dense", "predictions", "head.classifier")


def _block(parts: list[str], theirs: str, ours: str, depthwise: str) -> Iterator[Layer]:
    for part in parts:
        if part == "depthwise":
            yield Layer("depthwise_conv2d", theirs + depthwise, f"{ours}depthwise.conv")
            yield Layer("batch_normalization", f"{theirs}bn", f"{ours}depthwise.norm")
        elif part == "gate":
            yield Layer("conv2d", f"{theirs}se_reduce", f"{ours}gate.reduce")
            yield Layer("conv2d", f"{theirs}se_expand", f"{ours}gate.expand")
        else:  # the one convolution of a fused block that does not expand is Keras's project
            name = "project" if parts == ["expand"] else part
            yield from _pair(theirs + name, ours + part)


def _pair(theirs: str, ours: str) -> Iterator[Layer]:
    yield Layer("conv2d", f"{theirs}_conv", f"{ours}.conv")
    yield Layer("batch_normalization", f"{theirs}_bn", f"{ours}.norm")


def _recognise(weights: Mapping[str, Tensor]) -> str:
    """The zoo's name of the network whose layers and widths these are; no two share them."""
    for name, (family, _) in NETWORKS.items():
        spec = get_spec(name)
        layers = tuple(_layers(spec, family))
        try:
            named = _named(weights, layers)
            widths = [_kernel(named, each, 4).shape[3] for each in ("stem_conv", "top_conv")]
        except UserError:
            continue
        if widths == [spec.stem_channels, spec.head_channels]:
            return name
    raise UserError(
        f"This is no EfficientNet of keras.applications ({some(sorted(weights))}). mbconv reads "
        f"{', '.join(NETWORKS)}, each with its classifier."
    )


def _named(weights: Mapping[str, Tensor], layers: tuple[Layer, ...]) -> dict[str, Tensor]:
    """The same under the names of keras.applications; UserError unless they are those of `layers`.

    In the newer layout, older versions number the layers of a class (`conv2d_3`) in the network's
    order. A classifier that a user put on top may have any name.
    """
    names = {layer.name for layer in layers}
    numbered: dict[str, str] = {}
    for kind in ("conv2d", "depthwise_conv2d", "batch_normalization", "dense"):
        for number, each in enumerate(layer for layer in layers if layer.kind == kind):
            numbered[f"{kind}_{number}" if number else kind] = each.name
    given = {key.split("/")[0] for key in weights}
    others = given - names
    rename = {n: numbered.get(n, n) for n in given} if "stem_conv" not in given else {}
    if "predictions" not in given and len(others) == 1 and "stem_conv" in given:
        rename = {others.pop(): "predictions"}
    found = {}
    for key, tensor in weights.items():
        layer, variable = key.split("/")
        found[f"{rename.get(layer, layer)}/{variable}"] = tensor
    layers_found = {key.split("/")[0] for key in found}
    if layers_found != names:
        missing, unknown = sorted(names - layers_found), sorted(layers_found - names)
        what = f"it lacks {some(missing)}" if missing else f"it has {some(unknown)} besides"
        raise UserError(f"The layers are not those of the network: {what}.")
    return found


def _kernel(weights: Mapping[str, Tensor], layer: str, dimensions: int) -> Tensor:
    kernel = weights.get(f"{layer}/kernel")
    if kernel is None or kernel.ndim != dimensions:
        raise UserError(f"The layer {layer} has no kernel of {dimensions} dimensions.")
    return kernel


def _translate(weights: Mapping[str, Tensor], layers: tuple[Layer, ...]) -> dict[str, Tensor]:
    """Keras's names and layouts -> ours."""
    modules = {layer.name: layer for layer in layers}
    tensors: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name, variable = key.split("/")
        layer = modules[name]
        if variable not in OURS:
            raise UserError(f"The layer {name} has a variable {variable!r} that has no place.")
        if variable == "kernel":
            tensor = _kernel(weights, name, 2 if layer.kind == "dense" else 4)
            tensor = tensor.permute(AXES[layer.kind])
        tensors[f"{layer.module}.{OURS[variable]}"] = tensor
        if variable == "gamma":
            tensors[f"{layer.module}.num_batches_tracked"] = torch.tensor(0)
    return tensors


def _preprocessing(
    family: Family, side: int, norm: Mapping[str, Tensor], rescalings: int | None
) -> Preprocessing:
    """What the layers before the stem do, and the resize of Google's evaluation."""
    if family.mean_std is None:
        mean, std = _adapted(norm, rescalings)
    elif rescalings == 0:  # include_preprocessing=False is documented for pixels in -1..1
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    else:
        mean, std = family.mean_std
    return Preprocessing(
        resolution=side,
        resize=side + CROP_PADDING if family.keep_aspect else side,
        mean=mean,
        std=std,
        keep_aspect=family.keep_aspect,
    )


def _adapted(norm: Mapping[str, Tensor], rescalings: int | None) -> tuple[Triple, Triple]:
    """Mean and deviation that V1's Normalization holds, behind Rescaling(1 / 255).

    In the published weights its variance is the standard deviation, and Keras divides by the root
    of that once more in a second Rescaling: the same as dividing by the standard deviation
    (github.com/tensorflow/tensorflow/issues/49930).
    """
    if "mean" not in norm or "variance" not in norm or norm["mean"].numel() != 3:
        raise UserError("It lacks the Normalization layer with mean and variance of three colours.")
    variance = norm["variance"].double().flatten()
    imagenet = torch.tensor(IMAGENET_STD, dtype=torch.float64)
    published = torch.allclose(variance, imagenet, rtol=1e-4)
    twice = rescalings == 2 or (rescalings is None and published)
    red, green, blue = (variance * imagenet if twice else variance).sqrt().tolist()
    mean_red, mean_green, mean_blue = norm["mean"].flatten().tolist()
    return (mean_red, mean_green, mean_blue), (red, green, blue)
