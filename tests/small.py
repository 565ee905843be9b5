"""A network and a folder of pictures that train in seconds."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.nn.model import MBConvNet, build
from mbconv.weights.file import save, tensor_hash
from mbconv.weights.model import load

SMALL = Spec(
    name="small",
    resolution=32,
    num_classes=4,
    stem_channels=8,
    head_channels=16,
    stages=(
        Stage(blocks=(Block(channels=8, expand=1),)),
        Stage(blocks=(Block(channels=16, stride=2, expand=2, gate="se"),)),
        Stage(blocks=(Block(channels=24, stride=2, expand=2), Block(channels=24, expand=2))),
    ),
)


def lively(spec: Spec) -> MBConvNet:
    """Random weights with batch-norm statistics of their own, so that folding matters."""
    torch.manual_seed(0)
    model = build(spec)
    with torch.no_grad():
        model(torch.randn(16, 3, spec.resolution, spec.resolution))
    model.labels = tuple(f"class{i}" for i in range(spec.num_classes))
    return model.eval()


def write_classes(root: Path, *, classes: int = 3, each: int = 12, side: int = 40) -> Path:
    """`classes` folders of noisy pictures; a class is a colour, so that it can be learnt."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        colour = np.eye(3)[c % 3] * 120 + 60
        for i in range(each):
            pixels = rng.normal(colour, 50, (side, side, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class{c}" / f"{i}.png")
    return root


def write_model(path: Path, spec: Spec = SMALL) -> Path:
    """A model file with weights drawn from a fixed seed: stands for pretrained ones."""
    torch.manual_seed(0)
    save(build(spec), path)
    return path


def weights(run: Path) -> str:
    """A hash of the network that a run has kept."""
    return tensor_hash(load(run).state_dict())
