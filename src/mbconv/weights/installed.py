"""Published weights through the loader of the library that publishes them: timm, torchvision."""

import math
import re
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing
from mbconv.weights.conversion import convert
from mbconv.weights.hub import is_offline
from mbconv.weights.labels import IMAGENET_TERMS, imagenet_labels
from mbconv.weights.libraries import find_network, get_library, split_tag

IMAGENET_CLASSES = 1000
ON_IMAGENET = re.compile(r"(^|_)in\d+k")  # in timm's name of a set of weights
Loaded = tuple[nn.Module, Preprocessing, dict[str, Any]]  # network, how it sees, provenance


def load_installed(model: str, *, labels: bool = True) -> MBConvNet:
    """The network `timm:NAME[.TAG]` or `torchvision:NAME[@WEIGHTS]` with its published weights.

    In evaluation mode, at the resolution and with the preprocessing that the library gives; the
    first use downloads the weights into that library's own cache. Labels are ImageNet's class
    names where there are 1,000 classes, None with `labels=False`. Raises UserError where the
    library is not installed, has no such network or weights, or cannot fetch them.
    """
    source, _, name = model.partition(":")
    key = find_network(get_library(source), name)
    if source not in LOADERS:
        raise UserError(
            f"{source} has no weights that mbconv can fetch: download the file and run "
            f"mbconv convert FILE OUT --from {source} --name {key}."
        )
    theirs, preprocessing, about = _call(source, key, split_tag(name)[1])
    ours = convert(theirs.state_dict(), source, key)
    ours.spec = ours.spec.replace(name=model, resolution=preprocessing.resolution)
    ours.preprocessing = preprocessing
    if labels and ours.spec.num_classes == IMAGENET_CLASSES:
        ours.labels = imagenet_labels()
    package = f"{source} {metadata.version(source)}"
    ours.provenance = {**about, "package": package}
    return ours


def _call(source: str, key: str, tag: str) -> Loaded:
    try:
        library = import_module(source)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{source}:{key} takes its weights through {source}, which is not installed here. "
            f"Run: pip install {source}"
        ) from error
    try:
        return LOADERS[source](library, key, tag)
    except (OSError, RuntimeError) as error:  # what the two raise, offline included
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source} has no such weights of {key}, or cannot fetch them ({reason}). "
            "Check the name and the network connection, or build it without weights."
        ) from error


def _from_timm(timm: Any, key: str, tag: str) -> Loaded:
    net = timm.create_model(f"{key}.{tag}" if tag else key, pretrained=True)
    seen = timm.data.resolve_model_data_config(net)
    side = seen["input_size"][-1]
    preprocessing = Preprocessing(
        resolution=side,
        resize=math.floor(side / seen["crop_pct"]),
        interpolation=seen["interpolation"],
        mean=seen["mean"],
        std=seen["std"],
        keep_aspect=seen["crop_mode"] != "squash",
    )
    cfg = net.pretrained_cfg
    about = {"weights": f"timm:{key}.{cfg['tag']}"}
    if cfg.get("license"):
        about["license"] = cfg["license"]
    if ON_IMAGENET.search(cfg["tag"]):
        about["data_license"] = IMAGENET_TERMS
    return net, preprocessing, about


def _from_torchvision(torchvision: Any, key: str, tag: str) -> Loaded:
    known = torchvision.models.get_model_weights(key)
    if tag and tag not in known.__members__:
        names = ", ".join(known.__members__)
        raise UserError(f"torchvision has no weights {tag!r} of {key}; known: {names}.")
    weights = known[tag or "DEFAULT"]
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    if is_offline() and not cached.exists():  # torchvision knows no such switch
        raise OSError(f"{cached} does not exist, and --offline or HF_HUB_OFFLINE is set")
    net = torchvision.models.get_model(key, weights=weights)
    seen = weights.transforms()
    preprocessing = Preprocessing(
        resolution=seen.crop_size[0],
        resize=seen.resize_size[0],
        interpolation=seen.interpolation.value,
        mean=seen.mean,
        std=seen.std,
    )
    about = {"weights": f"torchvision:{key}@{weights.name}", "data_license": IMAGENET_TERMS}
    return net, preprocessing, about


LOADERS: dict[str, Callable[[Any, str, str], Loaded]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}
