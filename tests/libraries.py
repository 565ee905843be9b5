"""Networks of other libraries with weights that give away every difference from ours."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mbconv.arch.spec import Spec
from mbconv.weights.libraries import get_library

SMALLEST = "mobilenetv3_small_075"  # of timm's that are used more than once
State = dict[str, Tensor]


def foreign(library: str, key: str) -> State:
    """A state dict of the library's own network."""
    return build_foreign(library, key).state_dict()


def same(a: State, b: State) -> bool:
    """Whether two state dicts have the same names and the same numbers."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def build_foreign(library: str, key: str, size: tuple[int, int] = (64, 64)) -> nn.Module:
    """The library's own network, in evaluation mode, with random weights for pictures of `size`."""
    with torch.device("meta"):  # nothing is drawn that would be drawn again
        net = _construct(library, key)
    net = net.to_empty(device="cpu").eval()
    network = get_library(library).networks[key]
    spec = network.spec(key)
    names = network.layout(spec)
    ends = [
        names[f"stages.{s}.{b}.{block.parts(channels)[-1].name}.norm"]
        for s, b, channels, block in spec.blocks()
        if block.has_skip(channels)
    ]
    _randomise(net, ends, size)
    return net


def _construct(library: str, key: str) -> nn.Module:
    if library == "timm":
        import timm

        return timm.create_model(key)
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model(key)
    if library == "geffnet":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it scripts its activations on import
            import geffnet

        return geffnet.create_model(key)
    # image_size=None: these two pad by the picture's size instead of the size they are built for
    if library == "lukemelas":
        from efficientnet_pytorch import EfficientNet
    else:
        from efficientnet_lite_pytorch import EfficientNet
    return EfficientNet.from_name(key.replace("_", "-"), image_size=None)


@torch.no_grad()
def _randomise(net: nn.Module, ends: list[str], size: tuple[int, int]) -> None:
    """Weights, batch-norm statistics, scales and gates far from any default.

    Batch-norm statistics are measured on noise, so that signals keep their size through any depth,
    and shifted, so that they are nobody's. At default initialisation many errors vanish: gates
    are near 0.5, biases zero. The norms `ends`, before shortcuts are added, get small scales: with
    large ones, a deep random network blows up, and multiplies rounding errors as well.
    """
    draw = torch.Generator().manual_seed(0)
    pool = torch.randn(1_000_003, generator=draw)  # a prime: long tensors do not repeat in step

    def noise(like: Tensor, scale: float, shift: float = 0.0) -> Tensor:
        start = int(torch.randint(len(pool), (), generator=draw))
        repeats = (start + like.numel()) // len(pool) + 1
        return pool.repeat(repeats)[start : start + like.numel()].view_as(like) * scale + shift

    def measure(norm: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        """Take the statistics of what comes in, shifted, before it passes."""
        variance, mean = torch.var_mean(args[0], dim=(0, 2, 3), correction=0)
        mean += noise(mean, 0.2) * variance.sqrt()
        variance *= noise(variance, 0.1, 1.0).clamp(0.7, 1.3)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance.clamp(min=0.1 * float(variance.mean())))

    handles = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.copy_(noise(module.weight, (2 / fan_in) ** 0.5))
            if module.bias is not None:
                module.bias.copy_(noise(module.bias, 0.5))
        elif isinstance(module, nn.BatchNorm2d):
            scale = 0.1 if name in ends else 1.0
            module.weight.copy_(noise(module.weight, 0.2 * scale, scale))
            module.bias.copy_(noise(module.bias, 0.3 * scale))
            module.num_batches_tracked.fill_(7)
            handles.append(module.register_forward_pre_hook(measure))
    batch = max(2, 2**15 // (size[0] * size[1]))  # enough places for the statistics of small maps
    net(torch.randn(batch, 3, *size, generator=draw))
    for handle in handles:
        handle.remove()


def stage_modules(library: str, key: str, spec: Spec) -> list[str]:
    """The modules there whose outputs are the maps at the ends of our stages."""
    ends: list[int] = []  # number of the last block of each stage, through the whole network
    for stage in spec.stages:
        ends.append(len(stage.blocks) + (ends[-1] if ends else -1))
    numbers = range(len(spec.stages))
    if library in ("timm", "geffnet"):
        return [f"blocks.{s}" for s in numbers]
    if library != "torchvision":
        return [f"_blocks.{end}" for end in ends]
    if key.startswith("efficientnet"):
        return [f"features.{s + 1}" for s in numbers]
    if key.startswith("mobilenet"):
        return [f"features.{end + 1}" for end in ends]
    return ["layers.7", *(f"layers.{s + 7}" for s in numbers if s > 0)]


def first_block(library: str, key: str) -> str:
    """The module there whose input is the stem's map."""
    if library in ("timm", "geffnet"):
        return "blocks"
    if library == "torchvision":
        return "layers.3" if key.startswith("mnasnet") else "features.1"
    return "_blocks.0"


@contextmanager
def watched(net: nn.Module, stem: str, stages: list[str]) -> Iterator[dict[str, Tensor]]:
    """Fill a dict with the maps that a forward pass makes, named as ours are."""
    maps: dict[str, Tensor] = {}

    def keep_input(module: nn.Module, args: tuple[Any, ...]) -> None:
        maps["stem"] = args[0].clone()

    handles = [net.get_submodule(stem).register_forward_pre_hook(keep_input)]
    for number, path in enumerate(stages, start=1):

        def keep(
            module: nn.Module, args: Any, output: Tensor, name: str = f"stage{number}"
        ) -> None:
            maps[name] = output.clone()

        handles.append(net.get_submodule(path).register_forward_hook(keep))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
