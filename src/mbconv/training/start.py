"""How a network's weights start before the first step, as its recipe says."""

import torch

from mbconv.data.loader import Pictures
from mbconv.nn.model import MBConvNet
from mbconv.training.console import Reporter
from mbconv.training.distributed import World
from mbconv.training.head import fit_head, zero_head
from mbconv.training.recipe import Recipe
from mbconv.training.stem import whiten_stem


def start_weights(
    model: MBConvNet,
    pictures: Pictures,
    recipe: Recipe,
    reporter: Reporter,
    dtype: torch.dtype | None = None,
    world: World | None = None,
) -> bool:
    """Whiten the stem or leave it; fit the classifier, make it zero or leave it; all in place.

    `dtype` is what the classifier's features are computed in, by default float32. The processes of
    a `world` share that work and end with the same weights. Returns whether anything was set.
    """
    world, transfer = world or World(), recipe.transfer
    if transfer.whiten_stem:
        whiten_stem(model, pictures.samples)
        world.copy([model.stem.conv.weight])
    if transfer.head_resolution is not None:
        at = model.preprocessing.at(transfer.head_resolution)
        with reporter.bar(len(pictures.samples), "features") as bar:
            predictor = world.predictor(model, dtype=dtype, preprocessing=at)
            fit_head(predictor, pictures, recipe, bar.update)
        world.copy(model.head.classifier.state_dict().values())
    elif transfer.zero_head:
        zero_head(model)
    return transfer.whiten_stem or transfer.zero_head or transfer.head_resolution is not None
