"""A network as an encoder: the maps that it gives, and the weights that it keeps."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss

import mbconv
from mbconv.arch.scale import with_output_stride
from mbconv.errors import UserError
from mbconv.nn.encoder import Encoder
from mbconv.nn.model import build
from mbconv.weights import create_model, load
from small import SMALL, write_model


def pictures(height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv4_conv_small", "mnasnet_small"])
def test_an_encoder_gives_the_picture_and_the_pyramid(name: str) -> None:
    model = mbconv.build(mbconv.get_spec(name)).eval()
    encoder = mbconv.Encoder(model)
    x = pictures(64, 96)
    with torch.no_grad():
        first, *maps = encoder(x)
        expected = model.features(x)
    assert first is x
    assert [tap.reduction for tap in encoder.taps] == [2, 4, 8, 16, 32]
    assert encoder.out_channels == [3, *(y.shape[1] for y in maps)]
    for tap, y in zip(encoder.taps, maps, strict=True):
        assert y.shape[2:] == (64 // tap.reduction, 96 // tap.reduction)
        assert torch.equal(y, expected[tap.name])


def test_an_encoder_ends_at_its_last_tap_and_shares_the_weights() -> None:
    model = build(SMALL)
    encoder = Encoder(model, taps=["stage2", "stem"])
    assert [tap.name for tap in encoder.taps] == ["stem", "stage2"]
    assert len(encoder.stages) == 2
    assert len(Encoder(model, taps=["stem"]).stages) == 0
    *_, stage2 = encoder(pictures())
    mse_loss(stage2, torch.ones_like(stage2)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert model.stem.conv.weight.grad is not None
    assert model.head.classifier.weight.grad is None
    assert encoder.preprocessing == model.preprocessing
    model.load_state_dict(model.state_dict() | encoder.state_dict())  # the same names


def test_maps_that_there_are_not() -> None:
    model = build(SMALL)
    with pytest.raises(UserError, match="'small' has no map 'stage9'; did you mean stage"):
        Encoder(model, taps=["stem", "stage9"])
    with pytest.raises(UserError, match="at least one map; 'small' has \\['stem', 'stage1'"):
        Encoder(model, taps=[])


def test_pretrained_weights_stay_with_an_output_stride() -> None:
    source = load("efficientnet_lite0")
    model = create_model("efficientnet_lite0", pretrained=True, output_stride=16)
    assert model.spec == with_output_stride(source.spec, 16)
    assert model.training
    assert model.labels == source.labels
    assert model.preprocessing == source.preprocessing
    assert model.provenance == source.provenance
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    x = pictures(64, 96)
    with torch.no_grad():
        ours, theirs = model.eval().features(x), source.features(x)
    assert ours["stage7"].shape == (2, 320, 4, 6)
    for name in ("stem", "stage3", "stage5"):  # nothing changes before the stride that goes
        assert torch.equal(ours[name], theirs[name])


def test_an_output_stride_for_a_model_file_and_for_no_weights(tmp_path: Path) -> None:
    path = write_model(tmp_path / "small.safetensors")
    model = create_model(path, output_stride=4, num_classes=2)
    assert [tap.reduction for tap in model.spec.taps()] == [2, 2, 4, 4]
    assert model.spec.num_classes == 2
    weight = load(path).stages[2][0].depthwise.conv.weight
    assert torch.equal(model.stages[2][0].depthwise.conv.weight, weight)
    fresh = create_model("efficientnet_b0", output_stride=8)
    assert fresh.spec.taps()[-1].reduction == 8
    with pytest.raises(UserError, match="output_stride is 12"):
        create_model("efficientnet_b0", output_stride=12)
