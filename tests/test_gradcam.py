"""Grad-CAM where the answer is known: by construction, by formula, and on a real photograph."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.data.decode import Unreadable
from mbconv.data.source import scan
from mbconv.measure.accuracy import evaluate
from mbconv.measure.gradcam import crop, explain_mistakes, grad_cam, overlay
from mbconv.nn.model import MBConvNet, build
from mbconv.preprocessing import Preprocessing
from mbconv.runtime.predictor import Predictor
from mbconv.weights import load

RED, GREEN = 0, 1


def small_spec(num_classes: int = 2) -> Spec:
    stages = (Stage(blocks=(Block(channels=8, stride=2),)),)
    return Spec(stages=stages, stem_channels=8, head_channels=12, num_classes=num_classes)


def colour_network() -> MBConvNet:
    """Its last map is the picture in cells of 8 x 8 pixels; class 0 weighs red, class 1 green."""
    model = MBConvNet(small_spec())
    model.stem, model.stages = nn.AvgPool2d(8), nn.Identity()  # type: ignore[assignment]
    model.head.conv = nn.Identity()  # type: ignore[assignment]
    model.head.classifier = nn.Linear(3, 2)
    with torch.no_grad():
        model.head.classifier.weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]))
    model.labels = ("red", "green")
    model.preprocessing = Preprocessing(
        resolution=64, resize=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    return model


def red_corner_green_elsewhere() -> Image.Image:
    image = Image.new("RGB", (64, 64), (0, 200, 0))
    image.paste((255, 0, 0), (0, 0, 24, 24))
    return image


def test_a_class_that_one_corner_speaks_for_lights_that_corner() -> None:
    heat = grad_cam(colour_network(), red_corner_green_elsewhere(), RED)
    assert heat.shape == (64, 64)
    assert heat.dtype == np.float32
    assert (heat.min(), heat.max()) == (0, 1)
    assert heat[:16, :16].min() > 0.9
    outside = heat.copy()
    outside[:32, :32] = 0
    assert outside.max() < 0.01


def test_the_other_class_lights_the_rest_and_is_the_answer() -> None:
    model, image = colour_network(), red_corner_green_elsewhere()
    heat = grad_cam(model, image, GREEN)
    assert heat[:16, :16].max() < 0.01
    assert heat[32:, 32:].min() > 0.9
    np.testing.assert_array_equal(grad_cam(model, image), heat)


def test_a_class_that_no_place_speaks_for_stays_dark() -> None:
    heat = grad_cam(colour_network(), Image.new("RGB", (64, 64), (0, 255, 0)), RED)
    assert heat.max() == 0


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_formula_on_a_real_network(pooling: str) -> None:
    """For average pooling Grad-CAM is CAM (Zhou et al. 2016): classifier weights times maps.

    The mean of the gradient is the classifier's weight for both kinds of pooling, up to a factor
    that the scaling to 0..1 removes.
    """
    torch.manual_seed(0)
    model = build(small_spec(5).replace(pooling=pooling)).eval()
    model.preprocessing = Preprocessing(resolution=40, resize=40)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    p = model.preprocessing
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255
    x = (pixels - torch.tensor(p.mean).view(1, 3, 1, 1)) / torch.tensor(p.std).view(1, 3, 1, 1)
    with torch.no_grad():
        maps = model.head.conv(model.stages(model.stem(x)))
    cam = torch.einsum("c,nchw->nhw", model.head.classifier.weight[3].detach(), maps).relu()[None]
    cam = F.interpolate(cam, (40, 40), mode="bicubic")[0, 0].clamp(0, float(cam.max()))
    heat = grad_cam(model, image, 3)
    np.testing.assert_allclose(heat, cam / cam.max(), atol=1e-3)


def test_a_hidden_layer_behind_the_pooling_is_gone_through() -> None:
    """MobileNetV3's classifier does not fit the pooled maps themselves."""
    torch.manual_seed(0)
    model = build(small_spec().replace(head_hidden=7)).eval()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for class_index in range(2):
        heat = grad_cam(model, pixels, class_index)
        assert heat.shape == (model.preprocessing.resolution,) * 2
        assert np.isfinite(heat).all()


def test_the_network_is_left_as_it_was() -> None:
    model = build(small_spec()).train()
    model.preprocessing = Preprocessing(resolution=32, resize=32)
    statistics = [buffer.clone() for buffer in model.buffers()]
    model.requires_grad_(False)  # a frozen network has a map as well
    with torch.no_grad():
        heat = grad_cam(model, red_corner_green_elsewhere())
    assert heat.max() == 1
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(statistics, model.buffers(), strict=True))


def test_a_photograph_lights_where_the_object_is() -> None:
    model = load("efficientnet_lite0")
    photo = Image.fromarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]
    heat = grad_cam(model, photo, (model.labels or ()).index("football helmet"))
    helmet = heat[155:, 115:]  # in the crop of 224 x 224, the white helmet lies bottom right
    assert helmet.mean() > 5 * (heat.sum() - helmet.sum()) / (heat.size - helmet.size)


def test_overlay_colours_hot_places_only() -> None:
    image = Image.new("RGB", (6, 4), (10, 20, 30))
    heat = np.zeros((4, 6), dtype=np.float32)
    heat[0, 5] = 1
    heat[0, 0] = 0.5
    result = np.asarray(overlay(image, heat, strength=1.0))
    assert result.shape == (4, 6, 3)
    assert result[0, 5].tolist() == [252, 255, 164]
    assert result[3, 3].tolist() == [10, 20, 30]
    assert result[0, 5].sum() > result[0, 0].sum() > result[3, 3].sum()


def test_crop_is_what_the_network_sees() -> None:
    model, image = colour_network(), red_corner_green_elsewhere()
    np.testing.assert_array_equal(np.asarray(crop(model, image)), Predictor(model).prepare(image))


def test_a_broken_picture_is_said_to_be_unreadable() -> None:
    with pytest.raises(Unreadable):
        grad_cam(colour_network(), b"no picture")


def test_mistakes_get_their_pictures(tmp_path: Path) -> None:
    for folder, colour in (("red", (0, 255, 0)), ("green", (0, 255, 0))):
        (tmp_path / folder).mkdir()
        for number in range(3):
            Image.new("RGB", (80, 64), colour).save(tmp_path / folder / f"{number}.png")
    model = colour_network()
    record = evaluate(model, tmp_path)
    mistakes = record.detail["mistakes"]
    assert [m["path"] for m in mistakes] == ["red/0.png", "red/1.png", "red/2.png"]
    dataset = scan(tmp_path)
    (tmp_path / "red" / "1.png").unlink()
    explain_mistakes(model, record, dataset, limit=2)
    assert ["thumbnail" in m for m in mistakes] == [True, False, False]
    prefix = "data:image/jpeg;base64,"
    images = []
    for key in ("thumbnail", "cam"):
        assert mistakes[0][key].startswith(prefix)
        content = base64.b64decode(mistakes[0][key].removeprefix(prefix), validate=True)
        images.append(np.asarray(Image.open(io.BytesIO(content)), dtype=int))
        assert images[-1].shape == (160, 160, 3)
    plain, hot = images
    assert plain[80, 80] == pytest.approx([0, 255, 0], abs=4)
    assert hot[80, 80, 0] > 100  # the wrong answer, green, is what the map is of
