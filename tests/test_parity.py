"""Our networks against the libraries that the weights come from: every network that both have."""

import pytest
import torch
from torch import Tensor

from libraries import build_foreign, first_block, stage_modules, watched
from mbconv.arch.cost import cost
from mbconv.weights import convert
from mbconv.weights.assemble import outline
from mbconv.weights.libraries import LIBRARIES, get_library

TOLERANCE = 1e-4  # of the largest magnitude
SMALL = ((64, 64), (53, 75))
LARGE = 10e6  # parameters; beyond, one library's is enough for the quick run
HUGE = 80e6  # for the slow run alone


def every() -> list[tuple[str, str]]:
    """(library, network) of all networks, published several times over or not."""
    return [(library.name, key) for library in LIBRARIES.values() for key in library.networks]


def distinct() -> list[tuple[str, str]]:
    """One name for each network that is the same function under the same naming."""
    seen, rows = set(), []
    for library, key in every():
        network = get_library(library).networks[key]
        params = cost(network.spec(key)).params
        kind = (library, network.zoo, *sorted(network.numerics.items()))
        kind = kind if params < LARGE else (network.zoo,)
        if kind not in seen and params < HUGE:
            rows.append((library, key))
        seen.add(kind)
    return rows


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def noise(size: tuple[int, int]) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(size[0]))


@torch.no_grad()
def check_parity(library: str, key: str, sizes: tuple[tuple[int, int], ...]) -> None:
    theirs = build_foreign(library, key, sizes[0])
    ours = convert(theirs.state_dict(), library, key)
    spec = ours.spec
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (
                pytest.approx(spec.bn_eps),
                pytest.approx(spec.bn_momentum),
            )
    stem, stages = first_block(library, key), stage_modules(library, key, spec)
    logits = {}
    for size in sizes:
        x = noise(size)
        with watched(theirs, stem, stages) as expected:
            logits[size] = theirs(x)
        with watched(ours, "stages", [f"stages.{s}" for s in range(len(stages))]) as maps:
            assert relative(ours(x), logits[size]) < TOLERANCE, size
        assert maps.keys() == expected.keys()
        for name in maps:
            assert relative(maps[name], expected[name]) < TOLERANCE, (size, name)
    # With these weights a wrong padding would show, and it shows where it matters: at even sizes.
    other = "symmetric" if spec.padding == "same" else "same"
    padded = outline(spec.replace(padding=other)).eval()
    padded.load_state_dict(ours.state_dict(), assign=True)
    assert relative(padded(noise(sizes[0])), logits[sizes[0]]) > 0.01


@pytest.mark.parametrize(("library", "key"), distinct())
def test_small_pictures(library: str, key: str) -> None:
    check_parity(library, key, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "key"), every())
def test_native_size(library: str, key: str) -> None:
    side = get_library(library).networks[key].spec(key).resolution
    odd = (side * 3 // 4 | 1, side * 7 // 8 | 1)
    check_parity(library, key, ((side, side), odd))


@pytest.mark.parametrize(
    ("library", "key"),
    [
        ("timm", "tf_efficientnet_b0"),
        ("torchvision", "efficientnet_v2_s"),
        ("efficientnet_lite_pytorch", "efficientnet_lite0"),
    ],
)
def test_gradients(library: str, key: str) -> None:
    """Of a random function of the logits, in float64, for every parameter."""
    theirs = build_foreign(library, key)
    ours = convert(theirs.state_dict(), library, key).double()
    theirs = theirs.double()
    x, weight = noise((64, 64)).double(), torch.randn(1000, dtype=torch.float64)
    for net in (ours, theirs):
        (net(x) @ weight).sum().backward()
    names = get_library(library).networks[key].layout(ours.spec)
    foreign = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        module, _, leaf = name.rpartition(".")
        expected = foreign[f"{names[module]}.{leaf}"].grad
        assert parameter.grad is not None
        assert expected is not None
        assert relative(parameter.grad, expected.reshape(parameter.shape)) < 1e-9, name
