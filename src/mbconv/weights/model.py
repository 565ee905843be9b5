"""What MODEL means: a network's name here or elsewhere, a file, a folder, a repository."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from mbconv.arch.scale import with_output_stride
from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec, list_specs
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet, build
from mbconv.weights import file, hub, keras, keras_file, repository
from mbconv.weights.assemble import misfit, outline
from mbconv.weights.installed import LOADERS, load_installed
from mbconv.weights.libraries import is_library_model, library_spec
from mbconv.weights.pretrained import load_pretrained, pretrained_names

MODEL_FILE = "model.safetensors"  # in a run folder or repository
STEM = "stem.conv.weight"
CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")


def create_model(
    model: str | Path | Spec,
    *,
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    in_channels: int | None = None,
    output_stride: int | None = None,
    **spec_changes: Any,
) -> MBConvNet:
    """A network to train, in training mode.

    `model` is a Spec, a zoo name, a network of another library (`timm:tf_efficientnet_b0`,
    `torchvision:efficientnet_b0`), a spec.json, a model file (ours or Keras's), a run folder, or a
    repository (`hf-hub:owner/name`, or a folder with its files); an existing path wins over a
    name. `pretrained` takes the published weights of the network of that name, for another
    library's through that library, which must be installed; which of several sets is written
    `timm:efficientnet_b0.ra_in1k` or `torchvision:efficientnet_b1@IMAGENET1K_V2`. Files, folders
    and repositories always bring their own weights. Where `pretrained` is itself a network as
    for `load`, its weights are taken, with their padding, epsilon and preprocessing; it must be
    of the same architecture. `num_classes`, `in_channels` and
    `spec_changes` (fields of Spec or Block, as for `Spec.replace`) change the network first;
    `output_stride` (8 or 16, for dense prediction) puts dilation in the place of later strides.

    Weights are carried over into the changed network:
    - another number of classes gives a fresh classifier and no labels;
    - for 1 input channel the first convolution's filters are summed over their channels, so that
      a grey picture gives what it gave as RGB; for more, the channels are repeated in turn
      (RGBRGB...) and scaled by old / new, which keeps the size of the response;
    - another resolution keeps the preprocessing's crop share.

    Raises UserError for an unknown name (with the nearest), a path that holds no model, a network
    without published weights, an unknown field, and changes that the weights cannot follow.
    """
    changes = dict(spec_changes)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    if in_channels is not None:
        changes["in_channels"] = in_channels
    source = model if isinstance(model, Spec) else _resolve(model)
    if isinstance(source, Spec) and not pretrained:
        return build(_changed(source, changes, output_stride))
    base = source if isinstance(source, Spec) else source.spec
    if not isinstance(pretrained, bool):
        source = _weights_for(base, pretrained)
        base = source.spec
    elif isinstance(source, Spec):
        keeps_classes = changes.get("num_classes", source.num_classes) == source.num_classes
        source = _published(source.name, labels=keeps_classes)
        if isinstance(model, str) and is_library_model(model):
            base = source.spec  # which of several weights decides classes and resolution
    spec = _changed(base, changes, output_stride)
    return (source if spec == source.spec else _carry_over(source, spec)).train()


def _changed(spec: Spec, changes: dict[str, Any], output_stride: int | None) -> Spec:
    spec = spec.replace(**changes)
    return spec if output_stride is None else with_output_stride(spec, output_stride)


def load(model: str | Path) -> MBConvNet:
    """A trained network, in evaluation mode, with `.spec .labels .preprocessing .provenance`.

    `model` is a model file (ours or Keras's), a run folder, a repository (`hf-hub:owner/name`, or
    a folder with its files) or a network's name with published weights, here or in another
    library, as for `create_model`; an existing path wins over a name. Raises UserError for
    anything else, with what to do.
    """
    source = _resolve(model)
    if isinstance(source, MBConvNet):
        return source
    named = _existing(model) is None
    if named and (is_library_model(source.name) or source.name in pretrained_names()):
        return _published(source.name)
    raise UserError(
        f"{model} is a network without weights. Train it (mbconv train DIR --model {model}), or "
        f"take one that has weights: {', '.join(pretrained_names())}, or a model file."
    )


def _weights_for(spec: Spec, model: str | Path) -> MBConvNet:
    """The network `model`, which must be as `spec` but for its numerics, classes and channels."""
    source = load(model)
    ends = {"num_classes": source.spec.num_classes, "in_channels": source.spec.in_channels}
    reason = misfit(outline(spec.replace(**ends)).state_dict(), source.state_dict())
    if reason:
        raise UserError(
            f"{model} has no weights for {spec.name!r}: {reason}. Take its own network."
        )
    return source


def has_weights(model: str | Path) -> bool:
    """Whether `model`, as for `create_model`, brings weights or has published ones."""
    path = Path(model)
    if path.exists():
        return path.suffix != ".json"
    name = str(model)
    published = name.partition(":")[0] in LOADERS or name in pretrained_names()
    return published or hub.is_hub(name)


def _resolve(model: str | Path) -> Spec | MBConvNet:
    """The spec or the trained network that a path or name stands for."""
    if hub.is_hub(model):
        return hub.load(str(model))
    path = _existing(model)
    if path is None:
        name = str(model)
        return library_spec(name) if is_library_model(name) else get_spec(name)
    if path.is_dir():
        return _from_folder(path)
    if path.suffix in keras_file.SUFFIXES:
        return keras.load(path)
    return _read_spec(path) if path.suffix == ".json" else file.load(path)


def is_name(model: str) -> bool:
    """Whether it names a network, of ours or of another library, instead of a file or folder."""
    return not os.path.exists(Path(model).expanduser()) and (
        model in list_specs() or is_library_model(model)
    )


def _published(name: str, labels: bool = True) -> MBConvNet:
    """The network `name` with its published weights, as `load_pretrained` gives it."""
    loader = load_installed if is_library_model(name) else load_pretrained
    return loader(name, labels=labels)


def _existing(model: str | Path) -> Path | None:
    """The path that `model` is; None for a name. UserError for a path that leads nowhere."""
    path = Path(model).expanduser()
    if str(model).strip() and os.path.exists(path):  # Path("") would be the working folder
        return path
    if isinstance(model, Path) or path.suffix in (".json", ".safetensors") or len(path.parts) > 1:
        raise UserError(f"{model} does not exist; give a model file, a run folder or a name.")
    return None


def _from_folder(folder: Path) -> MBConvNet:
    if repository.is_foreign(folder):
        return repository.load(folder)
    if (folder / MODEL_FILE).is_file():
        return file.load(folder / MODEL_FILE)
    hint = "Give a run folder that mbconv train has written, or a model file."
    if folder.name in list_specs():
        hint = "Rename the folder, or work elsewhere, to mean the network of that name."
    raise UserError(f"The folder {folder} holds no {MODEL_FILE}. {hint}")


def _read_spec(path: Path) -> Spec:
    try:
        return Spec.from_json(path.read_text(encoding="utf-8"))
    except (UserError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is no spec that can be read: {error}") from error


def _carry_over(source: MBConvNet, spec: Spec) -> MBConvNet:
    """A network of `spec` with the weights of `source`; see `create_model`."""
    model = build(spec)
    own, tensors = model.state_dict(), source.state_dict()
    tensors[STEM] = _adapt_input(tensors[STEM], spec.in_channels)
    other_classes = spec.num_classes != source.spec.num_classes
    if other_classes:
        tensors.update({name: own[name] for name in CLASSIFIER})
    reason = misfit(own, tensors)
    if reason:
        raise UserError(
            f"The weights of {source.spec.name!r} do not fit the changed network: {reason}. "
            "Leave that change out, or build the network without weights."
        )
    model.load_state_dict(tensors)
    model.labels = None if other_classes else source.labels
    model.preprocessing = source.preprocessing
    if spec.resolution != source.spec.resolution:
        model.preprocessing = source.preprocessing.at(spec.resolution)
    model.provenance = source.provenance
    return model


def _adapt_input(weight: Tensor, channels: int) -> Tensor:
    """Filters [O, I, k, k] for another number of input channels, [O, channels, k, k]."""
    old = weight.shape[1]
    if channels == old:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    order = [number % old for number in range(channels)]
    return weight[:, order] * (old / channels)
