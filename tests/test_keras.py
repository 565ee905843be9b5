"""Keras files: every layout that Keras writes, and what Keras itself makes of them.

The files of the ordinary tests are written here with h5py, by Keras's conventions. Tests marked
`keras` let Keras write them, in an environment of its own: `make test-keras`.
"""

import io
import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import mbconv
from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec
from mbconv.cli import main
from mbconv.data.transform import normalise
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet, build
from mbconv.weights import keras
from mbconv.weights.assemble import assemble

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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
        keras.read(tmp_path / "net.h5")


# Against Keras ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Let Keras write the files of a network, once; returns their folder."""
    python = os.environ.get("MBCONV_KERAS")
    if not python:
        pytest.skip("MBCONV_KERAS is not set: it names a Python with TensorFlow (make test-keras)")
    folder = tmp_path_factory.mktemp("keras")
    script = Path(__file__).parent / "keras_reference.py"

    def write(name: str) -> Path:
        if not (folder / f"{name}.npz").exists():
            command = [python, str(script), str(folder), name]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
        return folder

    return write


def compare(model: MBConvNet, pixels: Any, expected: Any) -> float:
    """Largest difference of the logits relative to their largest magnitude."""
    with torch.inference_mode():
        logits = model(normalise(torch.from_numpy(pixels), model.preprocessing)).numpy()
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


@pytest.mark.keras
@pytest.mark.parametrize("name", list(keras.NETWORKS))
def test_logits_equal_those_of_keras(name: str, written: Any) -> None:
    folder: Path = written(name)
    reference = np.load(folder / f"{name}.npz")
    files = sorted(path for path in folder.glob(f"{name}.*") if path.suffix != ".npz")
    assert len(files) == (5 if name == "efficientnet_b0" else 3)
    models = [keras.load(path) for path in files]
    for shown in ("native", "odd"):
        pixels, expected = reference[shown], reference[f"{shown}_logits"]
        difference = compare(models[0], pixels, expected)
        print(f"{name} {shown} {pixels.shape[1]}x{pixels.shape[2]}: {difference:.1e}")
        assert difference < 1e-4
    for other in models[1:]:
        assert other.preprocessing == models[0].preprocessing
        ours, theirs = models[0].state_dict(), other.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    spread = np.abs(np.diff(reference["odd_logits"], axis=0)).max()
    assert spread > 0.01 * np.abs(reference["odd_logits"]).max()  # pictures make a difference
    symmetric: Spec = models[0].spec.replace(padding="symmetric")
    wrong = assemble(symmetric, models[0].state_dict())
    wrong.preprocessing = models[0].preprocessing
    assert compare(wrong, reference["native"], reference["native_logits"]) > 0.01


@pytest.mark.keras
def test_a_fine_tuned_network_is_found_in_its_model(written: Any) -> None:
    """Augmentation, the network without its top, a classifier of the user's; by Keras 3 and 2."""
    folder: Path = written("transfer")
    reference = np.load(folder / "transfer.npz")
    files = sorted(folder.glob("transfer_*"))
    assert len(files) == 6
    for file in files:
        library = file.name.split(".")[0]
        model = keras.load(file)
        assert compare(model, reference["shown"], reference[library]) < 1e-4, file


@pytest.mark.keras
def test_published_weights_are_normalised_as_keras_does(written: Any) -> None:
    """Keras mends their variance by a layer that the file does not have."""
    folder: Path = written("published")
    reference = np.load(folder / "published.npz")
    for file in ("published.h5", "published.weights.h5"):
        model = keras.load(folder / file)
        assert model.preprocessing.std == pytest.approx(IMAGENET_STD)
        difference = compare(model, reference["native"], reference["native_logits"])
        assert difference < 1e-4, file
