"""What NAME means to a benchmark: one of our networks, or a foreign module as it is."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from mbconv.arch.published import published_top1
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.weights.model import create_model, has_weights

USUAL_RESOLUTION = 224


@dataclass(frozen=True)
class Subject:
    """A network to be measured; `module` stays as it was made, tasks work on copies."""

    name: str
    library: str  # mbconv, timm or torchvision
    module: nn.Module = field(repr=False)
    resolution: int  # pixels; the network's own
    channels: int = 3
    spec_hash: str | None = None

    @property
    def published(self) -> dict[str, Any] | None:
        """`top1` (a share), `resolution` and `source`, as published; None where nothing is known.

        Of a network that torchvision has weights for: the score of its default ones.
        """
        key = self.name.partition(":")[2] or self.name
        known = published_top1(key.partition(".")[0])
        if self.library == "mbconv" or (known and self.library == "timm"):
            return known
        weights = _torchvision_weights(key.partition(".")[0])
        score = weights and weights.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
        if not score:
            return known
        return {"top1": score / 100, "resolution": weights.transforms().crop_size[0],
                "source": f"torchvision, {weights}"}  # fmt: skip


def open_subject(name: str) -> Subject:
    """The network `name`: ours as for `create_model`, or `timm:NAME` and `torchvision:NAME`.

    Those two are built by their own library and measured as they are, without weights, which no
    cost depends on. Raises UserError for an unknown name (with the nearest), a library that is
    not installed, and a network that its library cannot build.
    """
    library, _, key = name.partition(":")
    if library in FOREIGN and not Path(name).exists():
        return FOREIGN[library](_library(library, name), name, key)
    path = Path(name).expanduser()
    model: MBConvNet = create_model(name, pretrained=path.exists() and has_weights(path))
    return Subject(name, "mbconv", model, model.preprocessing.resolution, model.spec.in_channels,
                   model.spec.hash)  # fmt: skip


def _library(library: str, name: str) -> Any:
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{name} is a network of {library}, which is not installed here. "
            f"Run: pip install {library}"
        ) from error


def _from_timm(timm: Any, name: str, key: str) -> Subject:
    if not timm.is_model(key):  # which knows old names as well
        _check(name, key.partition(".")[0], timm.list_models())
    module = _built(name, lambda: timm.create_model(key))
    seen = timm.data.resolve_model_data_config(module)
    channels, side, _ = seen["input_size"]
    return Subject(name, "timm", module, side, channels)


def _from_torchvision(torchvision: Any, name: str, key: str) -> Subject:
    models = torchvision.models
    _check(name, key, models.list_models(module=models))
    module = _built(name, lambda: models.get_model(key, weights=None))
    weights = _torchvision_weights(key)
    side = weights.transforms().crop_size[0] if weights else USUAL_RESOLUTION
    return Subject(name, "torchvision", module, side)


def _torchvision_weights(key: str) -> Any:
    """The default weights of torchvision's network `key`; None where it has none."""
    models = import_module("torchvision").models
    if key not in models.list_models(module=models):
        return None
    return models.get_model_weights(key).DEFAULT


def _check(name: str, key: str, known: list[str]) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or known[:3]
        library = name.partition(":")[0]
        raise UserError(
            f"{library} has no network {key!r}; the nearest names: "
            f"{', '.join(f'{library}:{other}' for other in near)}."
        )


def _built(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:  # whatever a foreign library raises
        raise UserError(f"{name} cannot be built: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An exception of somebody else's code, as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".") if len(text) <= 160 else text[:159] + "…"


FOREIGN: dict[str, Callable[[Any, str, str], Subject]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}
