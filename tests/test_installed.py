"""MODEL names of other libraries, `timm:NAME` and `torchvision:NAME`; without the network."""

import json
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.error import URLError

import huggingface_hub.constants
import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner
from torch import Tensor

from libraries import build_foreign
from mbconv.arch.zoo import get_spec
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.weights import create_model, installed, load
from mbconv.weights.labels import IMAGENET_TERMS
from mbconv.weights.libraries import LIBRARIES, is_library_model, library_spec

V2 = torchvision.models.MobileNet_V2_Weights


def picture(side: int = 64) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))


def same_logits(ours: MBConvNet, theirs: torch.nn.Module) -> bool:
    with torch.no_grad():
        a, b = ours.eval()(picture()), theirs(picture())
    return bool((a - b).abs().max() < 1e-4 * b.abs().max())


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.nn.Module]:
    """Networks whose weights the two libraries' own loaders find on the disk, as if downloaded."""
    from_torchvision = build_foreign("torchvision", "mobilenet_v2")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    for weights in V2:
        file = tmp_path / "hub/checkpoints" / Path(weights.url).name
        torch.save(from_torchvision.state_dict(), file)
    from_timm = build_foreign("timm", "tf_mobilenetv3_small_075")
    torch.save(from_timm.state_dict(), tmp_path / "timm.pth")
    create = timm.create_model

    def from_disk(name: str, **options: Any) -> Any:
        overlay = {"file": str(tmp_path / "timm.pth")}
        return create(name, pretrained_cfg_overlay=overlay, **options)

    monkeypatch.setattr(timm, "create_model", from_disk)
    return {"timm": from_timm, "torchvision": from_torchvision}


def test_a_fresh_network_has_the_library_s_numerics() -> None:
    torch.manual_seed(0)
    net = create_model("timm:tf_efficientnet_b0", num_classes=3)
    assert net.training
    assert net.provenance is None
    assert (net.spec.padding, net.spec.bn_eps, net.spec.num_classes) == ("same", 1e-3, 3)
    spec = library_spec("torchvision:efficientnet_b0")
    assert (spec.padding, spec.bn_eps, spec.bn_momentum) == ("symmetric", 1e-5, 0.1)
    assert spec.stages == get_spec("efficientnet_b0").stages
    assert create_model(spec, drop_path=0.0).spec.name == "torchvision:efficientnet_b0"


def test_every_name_has_a_spec() -> None:
    for library in LIBRARIES.values():
        for key in library.networks:
            assert is_library_model(f"{library.name}:{key}")
            assert library_spec(f"{library.name}:{key}").num_classes == 1000
    assert not is_library_model("efficientnet_b0")
    assert not is_library_model("other:efficientnet_b0")


def test_weights_of_torchvision(published: dict[str, torch.nn.Module]) -> None:
    net = load("torchvision:mobilenet_v2")
    assert not net.training
    assert same_logits(net, published["torchvision"])
    assert net.labels == tuple(V2.DEFAULT.meta["categories"])
    seen = net.preprocessing  # of IMAGENET1K_V2
    assert (seen.resolution, seen.resize, seen.interpolation) == (224, 232, "bilinear")
    assert net.provenance == {
        "weights": "torchvision:mobilenet_v2@IMAGENET1K_V2",
        "package": f"torchvision {metadata.version('torchvision')}",
        "data_license": IMAGENET_TERMS,
    }
    first = load("torchvision:mobilenet_v2@IMAGENET1K_V1")
    assert (first.preprocessing.resolution, first.preprocessing.resize) == (224, 256)
    model = create_model("torchvision:mobilenet_v2", pretrained=True, num_classes=5)
    assert model.training
    assert model.labels is None
    assert model.spec.num_classes == 5
    assert torch.equal(model.stem.conv.weight, net.stem.conv.weight)


def test_weights_of_timm(published: dict[str, torch.nn.Module]) -> None:
    net = load("timm:tf_mobilenetv3_small_075.in1k")
    assert same_logits(net, published["timm"])
    assert net.spec.name == "timm:tf_mobilenetv3_small_075.in1k"
    seen = net.preprocessing
    assert (seen.resolution, seen.resize, seen.interpolation) == (224, 256, "bilinear")
    assert seen.mean == (0.5, 0.5, 0.5)
    assert net.provenance is not None
    assert net.provenance["weights"] == "timm:tf_mobilenetv3_small_075.in1k"
    assert net.provenance["license"] == "apache-2.0"
    assert net.provenance["data_license"] == IMAGENET_TERMS
    again = create_model(net.spec, pretrained=True)  # the spec's name says whose weights
    assert torch.equal(again.head.classifier.weight, net.head.classifier.weight)
    plain = create_model("timm:tf_mobilenetv3_small_075", pretrained=True, resolution=96)
    assert (plain.preprocessing.resolution, plain.preprocessing.resize) == (96, 110)


def test_the_weights_decide_the_resolution(published: dict[str, torch.nn.Module]) -> None:
    weights = torchvision.models.EfficientNet_B2_Weights.DEFAULT
    state = build_foreign("torchvision", "efficientnet_b2").state_dict()
    torch.save(state, Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name)
    net = create_model("torchvision:efficientnet_b2", pretrained=True)
    assert library_spec("torchvision:efficientnet_b2").resolution == 260
    assert (net.spec.resolution, net.preprocessing.resolution) == (288, 288)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("timm:tf_efficientnet_b0", "cannot fetch them"),
        ("torchvision:efficientnet_b0", r"cannot fetch them .*no network"),
        ("timm:mnasnet_050", "timm has no such weights"),
        ("timm:tf_efficientnet_b0.nope", r"timm has no such weights.*nope"),
        ("torchvision:mobilenet_v2@NOPE", "known: IMAGENET1K_V1, IMAGENET1K_V2"),
        ("lukemelas:efficientnet-b0", "--from lukemelas --name efficientnet_b0"),
        ("timm:efficientnet_b99", "timm has no network 'efficientnet_b99'"),
    ],
)
def test_weights_that_cannot_be_had(model: str, words: str, offline: None) -> None:
    for call in (lambda: load(model), lambda: create_model(model, pretrained=True)):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_offline_torchvision_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot fetch them .*--offline or HF_HUB_OFFLINE is set"):
        load("torchvision:efficientnet_b0")


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(installed, "import_module", missing)
    with pytest.raises(UserError, match="pip install timm"):
        load("timm:tf_efficientnet_b0")


def test_pixels_are_what_all_weights_of_a_network_agree_on() -> None:
    """The tables' mean and deviation against timm's record of each set of published weights."""
    agreed: dict[str, set[tuple[float, float]]] = {}
    for name in timm.list_pretrained():
        config = timm.models.get_pretrained_cfg(name)
        seen = (config.mean[0], config.std[0])
        agreed.setdefault(name.split(".")[0], set()).add(seen)
    usual = (0.485, 0.229)
    for key, network in LIBRARIES["timm"].networks.items():
        found = agreed.get(key, set())
        if len(found) == 1:
            assert found == {network.pixels or usual}, key
        else:
            assert network.pixels is None, key


def test_info_of_another_library_s_network() -> None:
    done = CliRunner().invoke(main, ["info", "torchvision:mobilenet_v2", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["params"] == 3_504_872
    done = CliRunner().invoke(main, ["info", "torchvision:mobilenet_v9"])
    assert done.exit_code == 2
    assert "the nearest: mobilenet_v" in done.output
