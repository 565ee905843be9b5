"""Repositories in timm's layout, written by timm itself, read from a folder and from the hub."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

import mbconv
from mbconv.errors import UserError

TINY = {
    "efficientnet_b0": "symmetric",
    "tf_efficientnet_b0": "same",
    "tf_efficientnetv2_b0": "same",
}


def write(folder: Path, name: str, classes: int = 4, **config: Any) -> torch.nn.Module:
    """What timm uploads for the network `name`; `config` goes into its config.json."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=classes)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    save_for_hf(net, folder, model_config=config, safe_serialization=True)
    return net.eval()


def change(folder: Path, **fields: Any) -> None:
    """Set fields of the config's `pretrained_cfg`."""
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"].update(fields)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("name", "padding"), TINY.items())
def test_logits_and_preprocessing_are_timms(name: str, padding: str, tmp_path: Path) -> None:
    net = write(tmp_path, name)
    model = mbconv.load(tmp_path)
    x = torch.randn(1, 3, 97, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = net(x)
        assert (model(x) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert model.spec.padding == padding
    seen = timm.data.resolve_data_config(model=net)
    pre = model.preprocessing
    assert (pre.mean, pre.std) == (tuple(seen["mean"]), tuple(seen["std"]))
    assert pre.interpolation == seen["interpolation"]
    assert pre.resolution == seen["input_size"][-1] == model.spec.resolution
    resize = timm.data.create_transform(**seen).transforms[0].size
    assert pre.resize == (resize[0] if isinstance(resize, tuple | list) else resize)
    assert model.labels is None
    assert model.provenance is not None
    assert model.provenance["license"] == net.pretrained_cfg["license"]


def test_labels_and_licences_come_along(tmp_path: Path) -> None:
    names = ["n1", "n2", "n3", "n4"]
    described = {"n1": "ant", "n2": "bee", "n3": "cat", "n4": "dog"}
    write(tmp_path, "efficientnet_b0", label_names=names, label_descriptions=described)
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\ndatasets:\n- imagenet-1k\n- imagenet-12k\n---\n# A card\n"
    )
    change(tmp_path, license=None)
    model = mbconv.load(tmp_path)
    assert model.labels == ("ant", "bee", "cat", "dog")
    assert model.provenance is not None
    assert model.provenance["license"] == "mit"
    assert model.provenance["trained_on"] == "imagenet-1k, imagenet-12k"
    assert model.provenance["data_license"].count("non-commercial") == 1


@pytest.mark.parametrize(("tag", "known"), [("ra_in1k", True), ("in21k", False)])
def test_imagenet_names_go_without_saying(tag: str, known: bool, tmp_path: Path) -> None:
    write(tmp_path, "efficientnet_b0", classes=1000)
    change(tmp_path, tag=tag)
    labels = mbconv.load(tmp_path).labels
    assert (labels is not None and labels[162] == "beagle") == known


def test_squashed_pictures_stay_squashed(tmp_path: Path) -> None:
    write(tmp_path, "efficientnet_b0")
    change(tmp_path, crop_mode="squash", crop_pct=1.0, input_size=[3, 192, 192])
    pre = mbconv.load(tmp_path).preprocessing
    assert (pre.resolution, pre.resize, pre.keep_aspect) == (192, 192, False)


def test_a_repository_can_start_another_task(tmp_path: Path) -> None:
    net = write(tmp_path, "efficientnet_b0")
    model = mbconv.create_model(tmp_path, pretrained=True, num_classes=9, in_channels=1)
    assert model.head.classifier.out_features == 9
    assert model.stem.conv.weight.shape[1] == 1
    assert torch.equal(model.head.conv.conv.weight, net.conv_head.weight)


def test_weights_of_a_repository_for_a_network_of_the_zoo(tmp_path: Path) -> None:
    net = write(tmp_path, "efficientnet_b0")
    model = mbconv.create_model("efficientnet_b0", pretrained=tmp_path, num_classes=9)
    assert torch.equal(model.head.conv.conv.weight, net.conv_head.weight)
    assert (model.spec.padding, model.spec.bn_eps) == ("symmetric", 1e-5)  # the weights' own
    assert model.spec.num_classes == 9
    with pytest.raises(UserError, match=r"has no weights for 'efficientnet_b1': missing stages"):
        mbconv.create_model("efficientnet_b1", pretrained=tmp_path)


def test_what_cannot_be_read_gets_a_sentence(tmp_path: Path) -> None:
    write(tmp_path, "efficientnet_b0")

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as caught:
            mbconv.load(tmp_path)
        assert "\n" not in str(caught.value)

    config = (tmp_path / "config.json").read_text()
    change(tmp_path, crop_mode="border")
    refused("crop_mode 'border' is unknown")
    (tmp_path / "config.json").write_text(config)
    change(tmp_path, mean=None)
    refused("is no repository that mbconv can read")
    (tmp_path / "config.json").write_text(config.replace("efficientnet_b0", "vit_tiny_patch16_224"))
    refused("vit_tiny_patch16_224")
    (tmp_path / "config.json").write_text(config.replace("efficientnet_b0", "efficientnet_b1"))
    refused("do not fit|missing")
    (tmp_path / "config.json").write_text(json.dumps(json.loads(config) | {"model_args": {"x": 1}}))
    refused("changed by x=1, which mbconv cannot follow")
    (tmp_path / "config.json").write_text("{")
    refused("config.json is broken")
    (tmp_path / "config.json").write_text(config)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    refused("cut off or damaged")
    (tmp_path / "model.safetensors").unlink()
    refused(r"there is no model\.safetensors; mbconv opens no pickled weights")
