"""An mbconv network in `fastai.vision_learner`: frozen body first, then all of it.

The pictures are scikit-learn's scanned digits 0 to 2, written as a folder of PNGs; give a folder
with one subfolder a class to learn your own.

    pip install mbconv fastai scikit-learn
    python examples/fastai_learner.py [FOLDER]
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    L,
    Learner,
    Resize,
    TrainEvalCallback,
    accuracy,
    params,
    vision_learner,
)
from fastai.vision.learner import model_meta
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import mbconv


def body(model: mbconv.MBConvNet) -> nn.Sequential:
    """What fastai's `cut` keeps: everything before the pooling."""
    return nn.Sequential(model.stem, model.stages, model.head.conv)


def split(model: Any) -> L:
    """Groups for freezing and for learning rates: early stages, late stages, fastai's head."""
    (stem, stages, last), head = model
    half = len(stages) // 2
    early, late = nn.Sequential(stem, stages[:half]), nn.Sequential(stages[half:], last)
    return L(early, late, head).map(params)


def register(network: str) -> Callable[[bool], mbconv.MBConvNet]:
    """The network as an `arch` of fastai, with its cut, its groups and the mean of its weights."""

    def arch(pretrained: bool = True) -> mbconv.MBConvNet:
        return mbconv.create_model(network, pretrained=pretrained)

    prepare = arch().preprocessing
    model_meta[arch] = {"cut": body, "split": split, "stats": (prepare.mean, prepare.std)}
    return arch


class KeepStatistics(Callback):  # type: ignore[misc]
    """The body's weights learn; few small batches would only spoil its batch norms' statistics."""

    run_after = TrainEvalCallback

    def before_train(self) -> None:
        self.model[0].eval()


def learner(folder: Path, network: str, side: int, batch: int = 16) -> Learner:
    """A frozen learner on the classes of `folder`, a fifth of its pictures held out."""
    dls = ImageDataLoaders.from_folder(
        folder, valid_pct=0.2, seed=0, bs=batch, num_workers=0, item_tfms=Resize(side)
    )
    return vision_learner(
        dls, register(network), metrics=accuracy, train_bn=False, cbs=KeepStatistics()
    )


def write_digits(folder: Path, classes: int = 3) -> None:
    """The scanned digits below `classes`, 8 x 8 pixels, as `folder`/<digit>/<number>.png."""
    digits = load_digits(n_class=classes)
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(path)


def main(folder: Path, network: str = "efficientnet_lite0", side: int = 64) -> None:
    torch.manual_seed(0)
    learn = learner(folder, network, side)
    print(f"{network} on {folder}: classes {', '.join(learn.dls.vocab)}")
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 1e-2)
        print(f"  frozen body: accuracy {learn.validate()[1]:.1%}")
        learn.unfreeze()
        learn.fit_one_cycle(1, slice(1e-5, 1e-3))  # early stages slowly, the head fast
        print(f"  all of it:   accuracy {learn.validate()[1]:.1%}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as digits:
            write_digits(Path(digits))
            main(Path(digits))
