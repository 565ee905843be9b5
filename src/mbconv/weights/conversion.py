"""Other libraries' weights <-> our networks."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.weights import keras
from mbconv.weights.keymap import KeyMap
from mbconv.weights.libraries import LIBRARIES, find_network, get_library, split_tag
from mbconv.weights.libraries.network import Layout, Library, Network

# Fields that change how a network is trained, made or called, but not what it computes.
WITHOUT_EFFECT = (
    "name", "source", "resolution", "in_channels", "num_classes",
    "dropout", "drop_path", "bn_momentum", "zero_gamma",
    "width_divisor", "width_tenth_rule", "depth_rounding",
    "scale_stem", "scale_head", "scale_outer_depth",
)  # fmt: skip
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class Candidate(NamedTuple):
    """A network of another library, by the name it has there."""

    library: Library
    key: str

    @property
    def network(self) -> Network:
        return self.library.networks[self.key]

    @property
    def spec(self) -> Spec:
        return self.network.spec(f"{self.library.name}:{self.key}")

    def __str__(self) -> str:
        return f"{self.library.name}'s {self.key}"


def convert(
    state_dict: Mapping[str, Tensor], source: str | None = None, name: str | None = None
) -> MBConvNet:
    """Another library's state dict as a network of ours, in evaluation mode.

    `source` is that library: timm, torchvision, lukemelas, geffnet, efficientnet_lite_pytorch, or
    keras for `{variable.path: variable}` as tensors;
    `name` is what it calls the network. Either may be left out where tensors' names and shapes
    allow one answer; they do not say how the network pads or which epsilon it has, so timm's
    weights mostly need a name. Number of classes and input channels are those of the tensors.

    The spec has the library's numerics and is called `source:name`; `labels` is None;
    `preprocessing` is ImageNet's usual one unless all published weights of that network agree on
    another, so set it where you know better; `provenance` names the source.

    Raises UserError for an unknown source or name, and for tensors that do not fit: with the
    first that are missing, too many or of another shape, and with the network they would fit.
    """
    if source == "keras":
        return keras.convert(state_dict, name)
    candidates = _candidates(source, name)
    if not state_dict or not all(isinstance(tensor, Tensor) for tensor in state_dict.values()):
        raise UserError("This is no state dict: it must map names to tensors, at least one.")
    fitting = _fitting(candidates, state_dict)
    if not fitting:
        raise UserError(_why_none_fits(state_dict, candidates))
    if len(fitting) > 1:
        raise UserError(
            f"These weights fit {_list(fitting)}, which pad or normalise differently; "
            "give the source and the name."
        )
    chosen = fitting[0]
    model = _key_map(chosen, state_dict).to_own(state_dict)
    usual = model.preprocessing
    model.preprocessing = chosen.network.preprocessing(usual.resolution, usual.resize)
    model.provenance = {"weights": f"{chosen.library.name}:{name or chosen.key}"}
    return model


def export_state_dict(model: MBConvNet, target: str) -> OrderedDict[str, Tensor]:
    """The weights of `model` as timm or torchvision names them, copied to the CPU.

    They belong to the network that `counterpart(model.spec, target)` names, made there with as
    many classes and input channels. Raises UserError where that library has no network that
    computes the same, with the nearest and what differs.
    """
    key = counterpart(model.spec, target)
    library = get_library(target)
    network = library.networks[key]
    state = OrderedDict(KeyMap(library, network, model.spec).to_foreign(model.state_dict()))
    if network.version is not None:  # an attribute that only torch's own state dicts have
        state.__dict__["_metadata"] = {"": {"version": network.version}}
    return state


def counterpart(spec: Spec, target: str) -> str:
    """What timm or torchvision calls the network that computes what `spec` does."""
    if target not in ("timm", "torchvision"):
        raise UserError(f"Weights can be written for timm and torchvision, not for {target!r}.")
    candidates = _candidates(target, None)
    for candidate in candidates:
        if _function(candidate.spec) == _function(spec):
            return candidate.key
    nearest = min(candidates, key=lambda c: _distance(_differing(c.spec, spec)))
    words = ", ".join(
        field if field == "stages" else f"{field} ({ours!r} here, {theirs!r} there)"
        for field, (theirs, ours) in _differing(nearest.spec, spec).items()
    )
    raise UserError(
        f"{target} has no network that computes what {spec.name!r} does: the nearest, "
        f"{nearest.key}, has other {words}. Build it as {target}:{nearest.key} and train that."
    )


def _candidates(source: str | None, name: str | None) -> list[Candidate]:
    """The networks that `source` and `name` allow."""
    if source is not None:
        library = get_library(source)
        keys = list(library.networks) if name is None else [find_network(library, name)]
        return [Candidate(library, key) for key in keys]
    allowed = [
        Candidate(library, key)
        for library in LIBRARIES.values()
        for key in library.networks
        if name is None or key == split_tag(name)[0]
    ]
    if not allowed:
        raise UserError(f"No source has a network {name!r}; give the source as well.")
    return allowed


def _spec_for(candidate: Candidate, tensors: Mapping[str, Tensor]) -> Spec:
    """The candidate's spec with the classes and input channels of `tensors`."""
    spec = candidate.spec
    names = candidate.network.layout(spec)
    stem = tensors.get(names["stem.conv"] + ".weight")
    classifier = tensors.get(names["head.classifier"] + ".weight")
    changes = {}
    if stem is not None and stem.ndim == 4:
        changes["in_channels"] = stem.shape[1]
    if classifier is not None and classifier.ndim == 2:
        changes["num_classes"] = classifier.shape[0]
    return spec.replace(**changes)


def _key_map(candidate: Candidate, tensors: Mapping[str, Tensor]) -> KeyMap:
    return KeyMap(candidate.library, candidate.network, _spec_for(candidate, tensors))


def _excess(candidate: Candidate, tensors: Mapping[str, Tensor]) -> int:
    """Parameters of the candidate beyond those of `tensors`: 0 for few, and quickly counted."""
    given = sum(t.numel() for name, t in tensors.items() if not name.endswith(BUFFERS))
    return cost(_spec_for(candidate, tensors)).params - given


def _fitting(candidates: list[Candidate], tensors: Mapping[str, Tensor]) -> list[Candidate]:
    """The candidates whose tensors these are, one for each function under each naming."""
    distinct: dict[tuple[str, Layout], Candidate] = {}
    for candidate in candidates:
        if _excess(candidate, tensors) == 0:
            kind = _function(candidate.spec), candidate.network.layout
            distinct.setdefault(kind, candidate)
    return [c for c in distinct.values() if _key_map(c, tensors).misfit(tensors) is None]


def _nearest(candidates: list[Candidate], tensors: Mapping[str, Tensor]) -> Candidate:
    """The one most of whose tensors are there, among those of about that size."""
    by_size = sorted(candidates, key=lambda c: abs(_excess(c, tensors)))
    return max(by_size[:8], key=lambda c: _key_map(c, tensors).agreement(tensors))


def _why_none_fits(tensors: Mapping[str, Tensor], candidates: list[Candidate]) -> str:
    nearest = _nearest(candidates, tensors)
    reason = _key_map(nearest, tensors).misfit(tensors)
    others = [c for c in _candidates(None, None) if c not in candidates]
    fitting = _fitting(others, tensors)
    if fitting:
        return f"These weights do not fit {nearest}: {reason}. They fit {_list(fitting)}."
    if len(candidates) > 1:
        return f"No network fits these weights; the nearest, {nearest}, differs: {reason}."
    best = _nearest(others, tensors)
    return f"These weights do not fit {nearest}: {reason}. The nearest network is {best}."


def _list(candidates: list[Candidate]) -> str:
    return " or ".join(str(c) for c in candidates[:4]) + (" and others" * (len(candidates) > 4))


def _function(spec: Spec) -> str:
    """Equal for specs that compute the same from the same weights."""
    return spec.replace(**_neutral()).hash


@cache
def _neutral() -> dict[str, Any]:
    defaults = {f.name: f.default for f in fields(Spec) if f.default is not MISSING}
    return {name: value for name, value in defaults.items() if name in WITHOUT_EFFECT}


def _differing(theirs: Spec, ours: Spec) -> dict[str, tuple[Any, Any]]:
    """Fields with an effect that differ, with both values."""
    both = {f.name: (getattr(theirs, f.name), getattr(ours, f.name)) for f in fields(Spec)}
    return {n: (a, b) for n, (a, b) in both.items() if a != b and n not in WITHOUT_EFFECT}


def _distance(differing: dict[str, Any]) -> tuple[bool, int]:
    return "stages" in differing, len(differing)
