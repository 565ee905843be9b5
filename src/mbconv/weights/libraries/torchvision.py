"""torchvision's MBConv networks and how it names modules: four families, four ways."""

from collections.abc import Iterator

from mbconv.arch.spec import Spec
from mbconv.arch.table import TORCH
from mbconv.weights.libraries.network import Library, table

TRAINED_BY_TENSORFLOW = {**TORCH, "bn_eps": 1e-3, "bn_momentum": 0.01}  # with symmetric padding


def efficientnet(spec: Spec) -> dict[str, str]:
    """Stages in one list with stem and head; a block is a list of its parts."""
    names = {"head.classifier": "classifier.1"}
    names |= _pair("stem", "features.0")
    names |= _pair("head.conv", f"features.{len(spec.stages) + 1}")
    for s, b, j, part in _parts(spec):
        names |= _part(f"stages.{s}.{b}.{part}", f"features.{s + 1}.{b}.block.{j}")
    return names


def mobilenet_v3(spec: Spec) -> dict[str, str]:
    """Blocks, not stages, in one list with stem and head."""
    names = {"head.hidden.linear": "classifier.0", "head.classifier": "classifier.3"}
    names |= _pair("stem", "features.0")
    names |= _pair("head.conv", f"features.{spec.num_blocks + 1}")
    number = _numbers(spec)
    for s, b, j, part in _parts(spec):
        names |= _part(f"stages.{s}.{b}.{part}", f"features.{number[s, b]}.block.{j}")
    return names


def mobilenet_v2(spec: Spec) -> dict[str, str]:
    """As MobileNetV3, but the projection's batch norm is an entry of its own."""
    names = {"head.classifier": "classifier.1"}
    names |= _pair("stem", "features.0")
    names |= _pair("head.conv", f"features.{spec.num_blocks + 1}")
    number = _numbers(spec)
    for s, b, j, part in _parts(spec):
        ours, theirs = f"stages.{s}.{b}.{part}", f"features.{number[s, b]}.conv"
        if part == "project":
            names |= _apart(ours, theirs, j)
        else:
            names |= _pair(ours, f"{theirs}.{j}")
    return names


def mnasnet(spec: Spec) -> dict[str, str]:
    """All layers in one list, activations counted; stages from the second on are entries of it."""
    first = 8  # the entry of the second stage: before it stem (3) and the first block (3 + 2)
    names = {"head.classifier": "classifier.1"}
    names |= _apart("stem", "layers", 0)
    names |= _apart("head.conv", "layers", first + len(spec.stages) - 1)
    for s, b, j, part in _parts(spec):
        ours = f"stages.{s}.{b}.{part}"
        if s == 0:
            names |= _apart(ours, "layers", 3 * (j + 1))
        else:
            names |= _apart(ours, f"layers.{first + s - 1}.{b}.layers", 3 * j)
    return names


def _parts(spec: Spec) -> Iterator[tuple[int, int, int, str]]:
    """(stage, block, place in the block, name) of all parts."""
    for s, b, channels, block in spec.blocks():
        for j, part in enumerate(block.parts(channels)):
            yield s, b, j, part.name


def _numbers(spec: Spec) -> dict[tuple[int, int], int]:
    """Place of each block in a list that starts with the stem."""
    return {(s, b): number for number, (s, b, _, _) in enumerate(spec.blocks(), start=1)}


def _part(ours: str, theirs: str) -> dict[str, str]:
    if ours.endswith(".gate"):
        return {f"{ours}.reduce": f"{theirs}.fc1", f"{ours}.expand": f"{theirs}.fc2"}
    return _pair(ours, theirs)


def _pair(ours: str, theirs: str) -> dict[str, str]:
    """Convolution and batch norm as a list of their own."""
    return _apart(ours, theirs, 0)


def _apart(ours: str, theirs: str, index: int) -> dict[str, str]:
    """Convolution and batch norm as two entries of a longer list."""
    return {f"{ours}.conv": f"{theirs}.{index}", f"{ours}.norm": f"{theirs}.{index + 1}"}


LIBRARY = Library(
    "torchvision",
    table({f"efficientnet_b{i}": f"efficientnet_b{i}" for i in range(5)}, efficientnet, TORCH)
    | table(
        {f"efficientnet_b{i}": f"efficientnet_b{i}" for i in range(5, 8)},
        efficientnet,
        TRAINED_BY_TENSORFLOW,
    )
    | table(
        {"efficientnet_v2_s": "efficientnetv2_s", "efficientnet_v2_m": "efficientnetv2_m"},
        efficientnet,
        {**TORCH, "bn_eps": 1e-3},
    )
    | table(
        {"efficientnet_v2_l": "efficientnetv2_l"},
        efficientnet,
        {**TORCH, "bn_eps": 1e-3},
        (0.5, 0.5),
    )
    | table({"mobilenet_v2": "mobilenetv2_100"}, mobilenet_v2, TORCH)
    | table(
        {
            "mobilenet_v3_large": "mobilenetv3_large_100",
            "mobilenet_v3_small": "mobilenetv3_small_100",
        },
        mobilenet_v3,
        TRAINED_BY_TENSORFLOW,
    )
    | table(
        {
            "mnasnet0_5": "mnasnet_b1_050",
            "mnasnet0_75": "mnasnet_b1_075",
            "mnasnet1_0": "mnasnet_b1",
            "mnasnet1_3": "mnasnet_b1_130",
        },
        mnasnet,
        {**TORCH, "bn_momentum": 0.0003},
        version=2,
    ),
)
