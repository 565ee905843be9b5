"""The examples, on small arguments, where the library that they are for is installed."""

import importlib
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import mbconv

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    torch.manual_seed(0)


def example(name: str, *libraries: str) -> ModuleType:
    """The example as a module; skips where one of its libraries is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other libraries warn of while they are imported
        for library in libraries:
            pytest.importorskip(library)
        return importlib.import_module(name)


def learns(model: torch.nn.Module, stem: torch.nn.Module) -> bool:
    """Whether the last backward pass reached every parameter, down to the first convolution."""
    first = next(stem.parameters()).grad
    everywhere = all(p.grad is not None for p in model.parameters() if p.requires_grad)
    return everywhere and first is not None and bool(first.abs().sum() > 0)


# Segmentation -------------------------------------------------------------------------------


@pytest.fixture
def segmentation() -> ModuleType:
    return example("segmentation", "segmentation_models_pytorch")


def segmenter(segmentation: ModuleType, decoder: str, name: str, **options: Any) -> Any:
    segmentation.register(name)
    return getattr(segmentation.smp, decoder)(name, encoder_weights=None, classes=3, **options)


def test_a_unet_learns(segmentation: ModuleType) -> None:
    segmentation.register("efficientnet_lite0", pretrained=True)
    model = segmentation.smp.Unet(
        "efficientnet_lite0", encoder_weights=None, decoder_channels=(64, 48, 32, 24, 16), classes=3
    )
    before = segmentation.mean_iou(model, side=64)
    losses = segmentation.train(model, steps=12, side=64)
    assert learns(model, model.encoder.stem)
    assert losses[-1] < 0.7 * losses[0]
    assert segmentation.mean_iou(model, side=64) > before


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "mobilenetv3_large_100", "mobilenetv4_conv_small"]
)
def test_deeplab_gets_dilated_maps(segmentation: ModuleType, name: str, output_stride: int) -> None:
    model = segmenter(segmentation, "DeepLabV3Plus", name, encoder_output_stride=output_stride)
    x = torch.randn(2, 3, 64, 96)
    maps = model.encoder(x)
    assert [x.shape[2] // y.shape[2] for y in maps] == [
        min(2**level, output_stride) for level in range(6)
    ]
    assert [y.shape[1] for y in maps] == model.encoder.out_channels
    dilations = {m.dilation[0] for m in model.encoder.modules() if isinstance(m, torch.nn.Conv2d)}
    assert max(dilations) == 32 // output_stride
    logits = model(x)
    assert logits.shape == (2, 3, 64, 96)
    logits.square().mean().backward()
    assert learns(model, model.encoder.stem)


def test_the_librarys_own_options_reach_the_network(segmentation: ModuleType) -> None:
    model = segmenter(
        segmentation, "Unet", "mobilenetv3_small_100", encoder_depth=3,
        decoder_channels=(32, 16, 8), in_channels=1,
    )  # fmt: skip
    assert [tap.reduction for tap in model.encoder.taps] == [2, 4, 8]
    assert model.encoder.out_channels[0] == model.encoder.stem.conv.weight.shape[1] == 1
    assert model(torch.randn(2, 1, 40, 56)).shape == (2, 3, 40, 56)
    model.freeze_encoder()
    model.train()(torch.randn(2, 1, 40, 56)).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())


def test_grey_pictures_keep_the_pretrained_weights(segmentation: ModuleType) -> None:
    segmentation.register("efficientnet_lite0", pretrained=True)
    model = segmentation.smp.Unet("efficientnet_lite0", encoder_weights=None, in_channels=1)
    colour = mbconv.load("efficientnet_lite0").stem.conv.weight
    torch.testing.assert_close(model.encoder.stem.conv.weight, colour.sum(1, keepdim=True))


def test_the_segmentation_example(
    segmentation: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    segmentation.main(steps=8, side=32)
    shown = capsys.readouterr().out
    assert re.findall(r"(\S+): [\d,]+ parameters", shown) == [
        "u-efficientnet_lite0", "deeplabv3plus-efficientnet_lite0",
    ]  # fmt: skip
    for first, last in re.findall(r"loss ([\d.]+) -> ([\d.]+)", shown):
        assert float(last) < float(first)


# Detection ----------------------------------------------------------------------------------


def test_retinanet_learns_and_finds(capsys: pytest.CaptureFixture[str]) -> None:
    detection = example("detection")
    model = detection.detector(mbconv.create_model("efficientnet_lite0", pretrained=True), 128, 2)
    assert tuple(model.transform.image_mean) == mbconv.load("efficientnet_lite0").preprocessing.mean
    history = detection.train(model, steps=25, side=128)
    assert learns(model, model.backbone.encoder.stem)
    assert set(history[0]) == {"classification", "bbox_regression"}
    first, last = (
        {name: sum(h[name] for h in part) for name in history[0]}
        for part in (history[:5], history[-5:])
    )
    assert last["classification"] < 0.7 * first["classification"]
    assert last["bbox_regression"] < first["bbox_regression"]
    picture = torch.rand(3, 96, 160)
    with torch.inference_mode():
        (answer,) = model.eval()([picture])
    boxes = answer["boxes"]
    assert len(boxes) > 0
    assert boxes.shape == (len(answer["scores"]), 4)
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([160, 96, 160, 96])).all()
    detection.main(steps=2, side=64)
    assert re.search(r"found in new pictures: \d+% of the shapes", capsys.readouterr().out)


def test_a_pyramid_of_equally_wide_maps() -> None:
    detection = example("detection")
    backbone = detection.PyramidBackbone(mbconv.create_model("mobilenetv3_small_100"), 24)
    maps = backbone(torch.randn(1, 3, 96, 64))
    assert [tuple(y.shape) for y in maps.values()] == [
        (1, 24, 12, 8), (1, 24, 6, 4), (1, 24, 3, 2),
    ]  # fmt: skip


# Super-resolution ---------------------------------------------------------------------------


def test_super_resolution_beats_bicubic(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("superresolution", "skimage")
    model = module.SuperResolution(
        mbconv.create_model("efficientnet_lite0", pretrained=True, stem_stride=1)
    )
    sharp = module.photograph("chelsea")[None]
    small = module.smaller(sharp)
    assert small.shape[2] * 2 == sharp.shape[2]
    usual = module.bicubic(small)
    with torch.inference_mode():
        assert torch.equal(model(small), usual)  # untrained, it adds nothing
    module.train(model, steps=60, side=48)
    assert learns(model, model.encoder.stem)
    with torch.inference_mode():
        ours = model(small)
    assert module.psnr(ours, sharp) > module.psnr(usual, sharp) + 0.1
    module.main(steps=2, side=32)
    assert re.findall(r"(\w+): [\d.]+ dB, bicubic [\d.]+ dB", capsys.readouterr().out) == [
        "chelsea", "coffee",
    ]  # fmt: skip


# fastai -------------------------------------------------------------------------------------


def test_fastai_freezes_splits_and_learns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("fastai_learner", "fastai", "sklearn")
    module.write_digits(tmp_path, classes=2)
    learn = module.learner(tmp_path, "efficientnet_lite0", side=32)
    body, head = learn.model
    groups = [sum(p.numel() for p in group) for group in learn.splitter(learn.model)]
    assert len(groups) == 3
    assert groups[0] + groups[1] == sum(p.numel() for p in body.parameters())
    assert groups[2] == sum(p.numel() for p in head.parameters())
    assert not any(p.requires_grad for p in body.parameters())
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    chance = learn.loss_func(torch.zeros(1, 2), torch.tensor([0]))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-2)
        assert all(torch.equal(before[k], v) for k, v in body.state_dict().items())
        loss, accuracy = learn.validate()
        assert accuracy > 0.8
        assert loss < chance
        learn.unfreeze()
        learn.fit_one_cycle(1, slice(1e-5, 1e-4))
    assert all(p.requires_grad for p in body.parameters())
    assert not torch.equal(before["0.conv.weight"], body.state_dict()["0.conv.weight"])
    (normalize,) = (t for t in learn.dls.after_batch.fs if type(t).__name__ == "Normalize")
    assert normalize.mean.flatten().tolist() == pytest.approx([0.498] * 3, abs=1e-3)
    module.main(tmp_path, side=32)
    frozen, free = re.findall(r"accuracy ([\d.]+)%", capsys.readouterr().out)
    assert min(float(frozen), float(free)) > 70
