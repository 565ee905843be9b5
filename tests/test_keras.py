"""Keras files of every layout, read back; files that are none.

They are written by `keras_files`; test_keras_parity.py lets Keras itself write them.
"""

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import mbconv
from keras_files import as_keras, norm, random_net, variables, write
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.weights import keras, keras_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# The layouts ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["efficientnet_b0", "efficientnetv2_b0"])
def net(request: pytest.FixtureRequest) -> tuple[str, MBConvNet]:
    return request.param, random_net(request.param)


@pytest.mark.parametrize(
    "layout", ["old weights", "old model", "weights", "unnamed weights", "archive"]
)
def test_every_layout_gives_the_network_back(
    net: tuple[str, MBConvNet], layout: str, tmp_path: Path
) -> None:
    name, model = net
    layers = as_keras(model, name)
    if name == "efficientnet_b0":
        layers |= norm((0.25, 0.16, 0.09))
    loaded = mbconv.load(write(tmp_path / "net", layout, layers))
    assert loaded.spec.name == name
    assert (loaded.spec.padding, loaded.spec.bn_eps, loaded.spec.num_classes) == ("same", 1e-3, 5)
    x = torch.randn(2, 3, 65, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(loaded(x), model(x), atol=1e-5)
    assert not loaded.training
    assert loaded.provenance == {"source": "keras", "name": name}
    if name == "efficientnet_b0":
        assert loaded.preprocessing.mean == pytest.approx((0.1, 0.2, 0.3))
        assert loaded.preprocessing.std == pytest.approx((0.5, 0.4, 0.3))
    assert (loaded.preprocessing.resolution, loaded.preprocessing.resize) == (224, 256)


def test_variables_of_a_model_in_memory_can_be_converted(net: tuple[str, MBConvNet]) -> None:
    name, model = net
    paths = {
        f"{layer}/{variable.removeprefix('depthwise_')}": torch.from_numpy(array.copy())
        for layer, arrays in as_keras(model, name).items()
        for variable, array in zip(variables(layer, arrays), arrays, strict=True)
    }
    paths |= {"normalization/mean": torch.zeros(3), "normalization/variance": torch.ones(3)}
    converted = keras.convert(paths, name)
    assert torch.equal(converted.head.classifier.weight, model.head.classifier.weight)


def test_a_classifier_may_have_any_name(net: tuple[str, MBConvNet], tmp_path: Path) -> None:
    name, model = net
    layers = as_keras(model, name) | norm((1, 1, 1))
    layers["flowers"] = layers.pop("predictions")
    loaded = keras.load(write(tmp_path / "net", "weights", layers))
    assert torch.equal(loaded.head.classifier.weight, model.head.classifier.weight)


def test_the_command_converts_keras_files(net: tuple[str, MBConvNet], tmp_path: Path) -> None:
    name, model = net
    path = write(tmp_path / "net", "archive", as_keras(model, name) | norm((1, 1, 1)))
    out = tmp_path / "ours.safetensors"
    done = CliRunner().invoke(main, ["convert", str(path), str(out), "--from", "keras"])
    assert done.exit_code == 0, done.output
    converted = mbconv.load(out)
    assert torch.equal(converted.stem.conv.weight, model.stem.conv.weight)
    assert converted.provenance is not None
    assert converted.provenance["file"] == "net.keras"
    assert converted.preprocessing == mbconv.load(path).preprocessing


@pytest.mark.parametrize("layout", ["old weights", "weights"])
def test_a_network_inside_another_model(
    net: tuple[str, MBConvNet], layout: str, tmp_path: Path
) -> None:
    """As keras.Sequential([EfficientNetB0(include_top=False), Dense(5)]) is saved."""
    name, model = net
    path = write(tmp_path / "net", layout, as_keras(model, name) | norm((1, 1, 1)))
    with h5py.File(path, "a") as opened:
        inner = "efficientnetb0" if layout == "old weights" else "layers/functional/layers"
        for key in list(opened["layers"] if layout == "weights" else opened):
            outer = key if layout == "old weights" else f"layers/{key}"
            if "predictions" not in key and "dense" not in key:
                opened.move(outer, f"{inner}/{key}")
    loaded = keras.load(path)
    assert loaded.spec.name == name
    assert torch.equal(loaded.stem.conv.weight, model.stem.conv.weight)
    assert torch.equal(loaded.head.classifier.bias, model.head.classifier.bias)


# What Keras does before the stem ------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "rescalings", "variance", "std"),
    [
        ("old weights", 1, IMAGENET_STD, IMAGENET_STD),  # the published file
        ("weights", 2, IMAGENET_STD, IMAGENET_STD),  # the same, loaded by Keras and saved again
        ("old model", 2, IMAGENET_STD, IMAGENET_STD),
        ("weights", 1, IMAGENET_STD, tuple(s**0.5 for s in IMAGENET_STD)),  # what that file does
        ("old weights", 1, (0.04, 0.09, 0.16), (0.2, 0.3, 0.4)),
        ("archive", 1, (0.04, 0.09, 0.16), (0.2, 0.3, 0.4)),
    ],
)
def test_v1_divides_by_what_its_layers_divide_by(
    layout: str, rescalings: int, variance: tuple[float, ...], std: tuple[float, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    layers = as_keras(random_net("efficientnet_b0"), "efficientnet_b0")
    layers |= norm(variance, IMAGENET_MEAN)
    path = write(tmp_path / "net", layout, layers, rescalings)
    pre = keras.load(path, "efficientnet_b0").preprocessing
    assert pre.mean == pytest.approx(IMAGENET_MEAN)
    assert pre.std == pytest.approx(std)


@pytest.mark.parametrize(
    ("name", "rescalings", "mean", "side", "resize"),
    [
        ("efficientnetv2_b0", 1, 0.485, 224, 256),
        ("efficientnetv2_b0", 0, 0.5, 224, 256),
        ("efficientnetv2_s", 1, 128 / 255, 384, 384),
        ("efficientnetv2_s", 0, 0.5, 384, 384),
    ],
)
def test_v2_includes_its_preprocessing_or_not(
    name: str, rescalings: int, mean: float, side: int, resize: int, tmp_path: Path
) -> None:
    layers = as_keras(random_net(name), name)
    pre = keras.load(write(tmp_path / "net", "weights", layers, rescalings)).preprocessing
    assert pre.mean[0] == pytest.approx(mean)
    assert (pre.resolution, pre.resize) == (side, resize)
    assert pre.keep_aspect == (side == 224)


# What is no such file ---------------------------------------------------------------------


def test_what_cannot_be_read_gets_a_sentence(tmp_path: Path) -> None:
    layers = as_keras(random_net("efficientnet_b0"), "efficientnet_b0") | norm((1, 1, 1))
    whole = write(tmp_path / "whole", "weights", layers)

    def refused(path: Path, words: str, name: str | None = None) -> None:
        with pytest.raises(UserError, match=words) as caught:
            keras.load(path, name)
        assert "\n" not in str(caught.value)

    cut = tmp_path / "cut.h5"
    cut.write_bytes(whole.read_bytes()[:100_000])
    refused(cut, "cannot be read as a Keras file")
    (tmp_path / "text.h5").write_text("hello")
    refused(tmp_path / "text.h5", "cannot be read as a Keras file")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    refused(tmp_path / "empty.keras", "cannot be read as a Keras file")
    refused(tmp_path / "none.h5", "does not exist")
    refused(whole, "has no mobilenetv2_100; it has efficientnet_b0", "mobilenetv2_100")
    refused(whole, r"it lacks block1b_bn, .* and 51 more", "efficientnet_b1")
    headless = {k: v for k, v in layers.items() if k != "predictions"}
    refused(write(tmp_path / "headless", "weights", headless), "no EfficientNet .*classifier")
    refused(write(tmp_path / "other", "weights", {"dense": [np.zeros((2, 3), "f4")]}), "is no Eff")
    flat = layers | {"block1a_dwconv": [np.zeros(9, "f4")]}
    refused(write(tmp_path / "flat", "weights", flat), "block1a_dwconv has no kernel of 4 dim")
    odd = layers | {"top_conv": [np.zeros((1, 1, 8, 1280), "f4")]}
    refused(write(tmp_path / "odd", "weights", odd), r"head\.conv\.conv\.weight has the shape")
    bare = as_keras(random_net("efficientnet_b0"), "efficientnet_b0")
    refused(write(tmp_path / "bare", "weights", bare), "lacks the Normalization layer")


def test_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    layers = as_keras(random_net("efficientnet_b0"), "efficientnet_b0") | norm((1, 1, 1))
    secret = write(tmp_path / "secret", "old weights", layers)
    with h5py.File(tmp_path / "link.h5", "w") as opened:
        for layer in layers:
            opened[layer] = h5py.ExternalLink(str(secret), layer)
    with pytest.raises(UserError, match="is no EfficientNet"):
        keras.load(tmp_path / "link.h5")


def test_without_h5py_the_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UserError, match=r'pip install "mbconv\[keras\]"'):
        keras_file.read(tmp_path / "net.h5")
