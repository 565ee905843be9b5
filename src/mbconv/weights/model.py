"""What MODEL means: a zoo name, a spec.json, a model file or a run folder."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from mbconv.arch.scale import with_output_stride
from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec, list_specs
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet, build
from mbconv.weights import file
from mbconv.weights.assemble import misfit
from mbconv.weights.pretrained import load_pretrained, pretrained_names

MODEL_FILE = "model.safetensors"  # in a run folder
STEM = "stem.conv.weight"
CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")


def create_model(
    model: str | Path | Spec,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_channels: int | None = None,
    output_stride: int | None = None,
    **spec_changes: Any,
) -> MBConvNet:
    """A network to train, in training mode.

    `model` is a Spec, a zoo name, a spec.json, a model file or a run folder; an existing path
    wins over a name. `pretrained` takes the published weights of the network of that name; a
    model file or run folder always brings its own weights. `num_classes`, `in_channels` and
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
    spec = (source if isinstance(source, Spec) else source.spec).replace(**changes)
    if output_stride is not None:
        spec = with_output_stride(spec, output_stride)
    if isinstance(source, Spec):
        if not pretrained:
            return build(spec)
        keeps_classes = spec.num_classes == source.num_classes
        source = load_pretrained(source.name, labels=keeps_classes)
    return (source if spec == source.spec else _carry_over(source, spec)).train()


def load(model: str | Path) -> MBConvNet:
    """A trained network, in evaluation mode, with `.spec .labels .preprocessing .provenance`.

    `model` is a model file, a run folder or a zoo name with published weights; an existing path
    wins over a name. Raises UserError for anything else, with what to do.
    """
    source = _resolve(model)
    if isinstance(source, MBConvNet):
        return source
    if _existing(model) is None and source.name in pretrained_names():
        return load_pretrained(source.name)
    raise UserError(
        f"{model} is a network without weights. Train it (mbconv train DIR --model {model}), or "
        f"take one that has weights: {', '.join(pretrained_names())}, or a model file."
    )


def _resolve(model: str | Path) -> Spec | MBConvNet:
    """The spec or the trained network that a path or name stands for."""
    path = _existing(model)
    if path is None:
        return get_spec(str(model))
    if path.is_dir():
        return _from_folder(path)
    return _read_spec(path) if path.suffix == ".json" else file.load(path)


def _existing(model: str | Path) -> Path | None:
    """The path that `model` is; None for a name. UserError for a path that leads nowhere."""
    path = Path(model).expanduser()
    if str(model).strip() and os.path.exists(path):  # Path("") would be the working folder
        return path
    if isinstance(model, Path) or path.suffix in (".json", ".safetensors") or len(path.parts) > 1:
        raise UserError(f"{model} does not exist; give a model file, a run folder or a name.")
    return None


def _from_folder(folder: Path) -> MBConvNet:
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
