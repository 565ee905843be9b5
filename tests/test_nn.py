"""The networks against independent implementations, their file format and their compilation."""

import re

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from mbconv.arch.block import Block
from mbconv.arch.scale import scale, with_output_stride
from mbconv.arch.spec import Spec, Stage
from mbconv.arch.zoo import get_spec, list_specs
from mbconv.errors import UserError
from mbconv.nn import MBConvNet, build

B0 = get_spec("efficientnet_b0")
TINY = Spec(
    in_channels=3,
    num_classes=5,
    stem_channels=8,
    head_channels=24,
    stages=(
        Stage(blocks=(Block(channels=8, expand=1, gate="se"),)),
        Stage(blocks=(Block(channels=12, kernel=5, stride=2), Block(channels=12, expand=3))),
    ),
)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give batch norms statistics and weights that matter, so that no slip hides behind 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator)
            nn.init.normal_(module.bias, 0, 0.2, generator)


def copy_by_order(source: nn.Module, target: nn.Module) -> None:
    theirs, ours = source.state_dict(), target.state_dict()
    assert [v.shape for v in theirs.values()] == [v.shape for v in ours.values()]
    target.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The peers are fixed in numerics: timm's tf_ nets pad as TensorFlow does with eps 1e-3,
# torchvision's B0 pads symmetrically with eps 1e-5.
def timm_b0() -> nn.Module:
    return timm.create_model("tf_efficientnet_b0", pretrained=False)


def timm_lite0() -> nn.Module:
    return timm.create_model("tf_efficientnet_lite0", pretrained=False)


PEERS = {
    "b0": (timm_b0, B0.replace(padding="same", bn_eps=1e-3)),
    "lite0": (timm_lite0, get_spec("efficientnet_lite0").replace(padding="same", bn_eps=1e-3)),
    "symmetric": (
        torchvision.models.efficientnet_b0,
        B0.replace(padding="symmetric", bn_eps=1e-5),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_logits_equal_those_of_an_independent_implementation(name: str) -> None:
    make, spec = PEERS[name]
    torch.manual_seed(0)
    peer, model = make().eval(), build(spec).eval()
    randomise(peer)
    copy_by_order(peer, model)
    with torch.no_grad():
        for size in ((224, 224), (131, 97), (130, 65)):
            x = pictures(1, 3, *size)
            assert relative(model(x), peer(x)) < 1e-4


def test_training_step_equals_that_of_an_independent_implementation() -> None:
    """Logits, gradients and running statistics in float64, batch norm in training mode."""
    torch.manual_seed(0)
    peer = torchvision.models.efficientnet_b0(dropout=0.0, stochastic_depth_prob=0.0).double()
    spec = B0.replace(padding="symmetric", bn_eps=1e-5, bn_momentum=0.1, dropout=0, drop_path=0)
    model = build(spec).double()
    randomise(peer)
    copy_by_order(peer, model)
    x, target = pictures(3, 3, 97, 72).double(), torch.tensor([3, 999, 0])
    for net in (peer, model):
        torch.autograd.backward(nn.functional.cross_entropy(net.train()(x), target))
    for (key, ours), theirs in zip(model.named_parameters(), peer.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=key)
    for ours_b, theirs_b in zip(model.buffers(), peer.buffers(), strict=True):
        torch.testing.assert_close(ours_b, theirs_b)


def test_map_sizes_of_b0_follow_table_1_of_the_paper() -> None:
    """Stage resolutions of EfficientNet's table 1 (arXiv 1905.11946); the official code once had
    the strides of two stages swapped, which leaves the final size and every weight as they are."""
    with torch.device("meta"):
        maps = MBConvNet(B0).features(torch.empty(1, 3, 224, 224))
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {
        "stem": (32, 112, 112),
        "stage1": (16, 112, 112),
        "stage2": (24, 56, 56),
        "stage3": (40, 28, 28),
        "stage4": (80, 14, 14),
        "stage5": (112, 14, 14),
        "stage6": (192, 7, 7),
        "stage7": (320, 7, 7),
    }


LIKE_B0 = [n for n in list_specs() if re.fullmatch(r"(efficientnet_(b|lite|l2)|tinynet).*", n)]


@pytest.mark.parametrize("name", LIKE_B0)
def test_every_efficientnet_reduces_where_b0_does(name: str) -> None:
    spec = get_spec(name)
    with torch.device("meta"):
        maps = MBConvNet(spec).eval().features(torch.empty(1, 3, 320, 256))
    factors = [2, 2, 4, 8, 16, 16, 32, 32]
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(320 // f, 256 // f) for f in factors]


def test_taps_are_what_features_returns() -> None:
    spec = get_spec("mobilenetv4_conv_small")
    model = MBConvNet(spec).eval()
    x = pictures(1, 3, 64, 96)
    maps = model.features(x)
    assert [(name, m.shape[1], 64 // m.shape[2]) for name, m in maps.items()] == [
        (tap.name, tap.channels, tap.reduction) for tap in spec.taps()
    ]
    some = model.features(x, taps=["stage3", "stem"])
    assert list(some) == ["stem", "stage3"]
    torch.testing.assert_close(some["stage3"], maps["stage3"])
    with pytest.raises(UserError, match="no map 'stage9'; did you mean stage"):
        model.features(x, taps=["stage9"])


def test_nothing_behind_the_last_tap_is_computed() -> None:
    model = MBConvNet(get_spec("efficientnet_b0"))
    model.stages[3:].requires_grad_(False)
    for stage in model.stages[3:]:
        stage.register_forward_hook(lambda *_: pytest.fail("a stage behind the last tap ran"))
    assert list(model.features(pictures(1, 3, 64, 64), taps=["stage3"])) == ["stage3"]


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnetv2_b0", "mobilenetv4_conv_small"])
def test_dilation_computes_the_missing_places(name: str) -> None:
    """At the places that the reducing network computes, the dilated one has the same values.

    On a large picture and away from its border, where padding makes the difference.
    """
    spec = scale(get_spec(name), width=0.25).replace(padding="symmetric", gate=None)
    torch.manual_seed(0)
    model = build(spec).eval().double()
    flat = build(with_output_stride(spec, 8)).eval().double()
    randomise(model)
    flat.load_state_dict(model.state_dict())
    x = pictures(1, 3, 512, 512).double()
    last = [tap.name for tap in spec.taps() if tap.reduction == 16][-1]
    with torch.no_grad():
        coarse = model.features(x, taps=[last])[last]
        fine = flat.features(x, taps=[last])[last]
    inner = coarse.shape[2] // 2
    torch.testing.assert_close(
        fine[:, :, ::2, ::2][:, :, inner, inner], coarse[:, :, inner, inner], rtol=1e-6, atol=1e-9
    )


def test_pooled_and_features_are_the_forward_pass() -> None:
    torch.manual_seed(0)
    model = build(TINY.replace(pooling="concat", dropout=0.9)).eval()
    randomise(model)
    x = pictures(2, 3, 21, 34)
    pooled, maps = model.pooled(x), model.features(x)
    assert pooled.shape == (2, 48)
    torch.testing.assert_close(model.head.classifier(pooled), model(x))
    torch.testing.assert_close(model.head(maps["stage2"]), model(x))
    head = model.head.conv(maps["stage2"])
    torch.testing.assert_close(pooled, torch.cat([head.mean((2, 3)), head.amax((2, 3))], 1))


def test_dropout_stands_before_the_classifier_in_training_only() -> None:
    torch.manual_seed(0)
    model = build(TINY.replace(dropout=0.5, drop_path=0)).eval()
    seen: list[Tensor] = []
    model.head.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = pictures(64, 3, 16, 16)
    pooled = model.pooled(x)
    model(x)
    torch.testing.assert_close(seen[0], pooled)
    model.head.dropout.train()
    model(x)
    kept = seen[1] != 0
    torch.testing.assert_close(seen[1][kept], 2 * pooled[kept])
    assert 0.4 < float(kept.float().mean()) < 0.6


def test_compiles_into_one_graph_and_channels_last_changes_nothing() -> None:
    torch.manual_seed(0)
    spec = TINY.replace(gate="scse", shortcut="resnet_d", padding="same", pooling="concat")
    model = build(spec).eval()
    x = pictures(2, 3, 30, 41)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        model.to(memory_format=torch.channels_last)
        maps = model.features(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(model.head(maps["stage2"]), expected, rtol=1e-4, atol=1e-5)
    for name, m in maps.items():
        assert m.is_contiguous(memory_format=torch.channels_last), name


def test_training_compiles_into_one_graph() -> None:
    torch.manual_seed(0)
    model = build(TINY.replace(gate="eca", drop_path=0.5)).train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(pictures(4, 3, 30, 41)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_bfloat16_autocast_stays_near_float32() -> None:
    torch.manual_seed(0)
    model = build(TINY.replace(gate="scse")).eval()
    x = pictures(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
    assert logits.dtype == torch.bfloat16
    assert relative(logits.float(), expected) < 0.05


def test_reset_classifier_changes_the_classifier_alone() -> None:
    model = build(TINY).double()
    model.labels = ("a", "b", "c", "d", "e")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.reset_classifier(3)
    assert model.spec == TINY.replace(num_classes=3)
    assert model.labels is None
    assert model.eval()(pictures(2, 3, 20, 20).double()).shape == (2, 3)
    for key, value in model.state_dict().items():
        assert "classifier" in key or torch.equal(value, before[key])
    with pytest.raises(UserError, match="num_classes"):
        model.reset_classifier(0)
    assert model.spec.num_classes == 3


def test_initialisation_is_that_of_the_reference_code() -> None:
    """Fan-out of a depthwise k x k convolution is k * k, whatever its width."""
    torch.manual_seed(0)
    model = build(B0.replace(num_classes=400))
    for path, fan_out in (
        ("stages.5.1.expand.conv", 1152),
        ("stages.5.1.depthwise.conv", 25),
        ("stages.5.1.gate.reduce", 48),
        ("head.conv.conv", 1280),
    ):
        conv = model.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        std = float(conv.weight.detach().std())
        assert std == pytest.approx((2 / fan_out) ** 0.5, rel=0.03), path
        assert conv.bias is None or not conv.bias.any()
    weight = model.head.classifier.weight.detach()
    assert float(weight.abs().max()) == pytest.approx(0.05, rel=0.01)
    assert float(weight.std()) == pytest.approx(0.05 / np.sqrt(3), rel=0.01)
    assert not model.head.classifier.bias.any()


@pytest.mark.parametrize(("resolution", "resize"), [(224, 256), (240, 274), (1, 1)])
def test_preprocessing_starts_at_the_specs_resolution(resolution: int, resize: int) -> None:
    preprocessing = build(TINY.replace(resolution=resolution)).preprocessing
    assert (preprocessing.resolution, preprocessing.resize) == (resolution, resize)


NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def triple(path: str) -> list[str]:
    return [f"{path}.conv.weight", *(f"{path}.norm.{name}" for name in NORM)]


def test_state_dict_keys_are_the_file_format() -> None:
    """Model files hold these keys for ever: a rename needs a migration in `weights`."""
    se = [f"reduce.{p}" for p in ("weight", "bias")] + [f"expand.{p}" for p in ("weight", "bias")]
    assert list(build(TINY).state_dict()) == [
        *triple("stem"),
        *triple("stages.0.0.depthwise"),
        *(f"stages.0.0.gate.{p}" for p in se),
        *triple("stages.0.0.project"),
        *triple("stages.1.0.expand"),
        *triple("stages.1.0.depthwise"),
        *triple("stages.1.0.project"),
        *triple("stages.1.1.expand"),
        *triple("stages.1.1.depthwise"),
        *triple("stages.1.1.project"),
        *triple("head.conv"),
        "head.classifier.weight",
        "head.classifier.bias",
    ]


@pytest.mark.parametrize(
    ("gate", "keys"),
    [
        ("sse", ["conv.weight"]),
        ("eca", ["conv.weight"]),
        ("scse", [
            "channel.reduce.weight", "channel.reduce.bias", "channel.expand.weight",
            "channel.expand.bias", "spatial.conv.weight",
        ]),
    ],
)  # fmt: skip
def test_state_dict_keys_of_gates_and_shortcut(gate: str, keys: list[str]) -> None:
    state = build(TINY.replace(gate=gate, shortcut="resnet_d")).state_dict()
    prefix = "stages.1.0."
    tail = [k.removeprefix(prefix) for k in state if k.startswith((prefix + "g", prefix + "s"))]
    assert tail == [*(f"gate.{k}" for k in keys), *triple("shortcut.project")]
    assert not [k for k in state if k.startswith("stages.1.1.shortcut")]
