"""Writes format1.safetensors and format1.json: run once, when format 1 was made, never again.

    PYTHONPATH=src python tests/golden/make.py

Files of a released format must load for ever with the same logits. A newer format gets a new
function and new files beside these.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.nn.model import MBConvNet, build
from mbconv.preprocessing import Preprocessing
from mbconv.weights import save

HERE = Path(__file__).parent


def pictures() -> Tensor:
    """Two pictures with 4 channels and odd sides, [2, 4, 33, 31], the same on every machine."""
    k = torch.arange(2 * 4 * 33 * 31, dtype=torch.float64)
    return ((k * 0.37).sin() * k / 2000).float().view(2, 4, 33, 31)


def network() -> MBConvNet:
    """A few hundred weights that use every kind of gate, activation and shortcut."""
    stages = (
        Stage(blocks=(Block(channels=4, expand=1, gate=None),)),
        Stage(
            blocks=(
                Block(channels=6, kernel=5, stride=2, expand=2, activation="hard_swish", gate="se"),
                Block(channels=6, expand=1.5, activation="gelu", gate="scse"),
            )
        ),
        Stage(blocks=(Block(channels=8, stride=2, expand=2, gate="eca", shortcut="resnet_d"),)),
        Stage(blocks=(Block(channels=8, expand=2, activation="relu6", gate="sse"),)),
    )
    spec = Spec(
        name="golden",
        stages=stages,
        resolution=32,
        in_channels=4,
        num_classes=3,
        stem_channels=4,
        head_channels=8,
        pooling="concat",
        padding="same",
        bn_eps=1e-3,
        bn_momentum=0.01,
    )
    torch.manual_seed(1)
    model = build(spec)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:  # biases and batch norms, which start as zeros and ones
            torch.nn.init.normal_(weight, mean=float("norm.weight" in name), std=0.3)
    torch.nn.init.normal_(model.head.classifier.weight)
    for _ in range(300):  # running means and variances that fit the maps
        model(pictures())
    model.labels = ("a", "zèbre", "猫")
    model.preprocessing = Preprocessing(
        resolution=32,
        resize=40,
        interpolation="bilinear",
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )
    return model.eval()


def make() -> None:
    model = network()
    digest = save(model, HERE / "format1.safetensors", {"made_by": "tests/golden/make.py"})
    with torch.inference_mode():
        logits = model(pictures())
    expected = {"sha256": digest, "spec_hash": model.spec.hash, "logits": logits.tolist()}
    (HERE / "format1.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make()
