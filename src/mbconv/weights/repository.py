"""A model repository: a folder with `config.json` and `model.safetensors`, timm's or ours.

timm's holds its own tensor names, and a config with the network's name and the preprocessing.
Ours holds a model file, which says everything itself; the config repeats that for people and
tools that look without downloading the weights, and is never read.
"""

import json
from pathlib import Path
from typing import Any

from mbconv.errors import UserError
from mbconv.files import write_json, write_text
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing
from mbconv.record import Record
from mbconv.weights import file
from mbconv.weights.conversion import convert
from mbconv.weights.labels import DATA_LICENSES, imagenet_labels

MODEL_FILE = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
FILES = (CONFIG, MODEL_FILE, CARD)
SHAPED = {"num_classes", "in_chans", "drop_rate", "drop_path_rate"}  # the tensors tell, or no odds
USUAL = ("global_pool", "avg")


def save_pretrained(
    model: MBConvNet,
    folder: str | Path,
    *,
    evaluation: Record | None = None,
    license: str | None = None,
    repository: str | None = None,
) -> Path:
    """Write `model.safetensors`, `config.json` and a model card to `folder`, and return it.

    `evaluation` is what `mbconv.evaluate` returned; the card shows it with n and interval.
    `license` (an SPDX name such as `apache-2.0`) is the weights', and kept in the provenance; None
    keeps the provenance's. `repository` (`owner/name`) is where the folder will be found. `load`
    reads the folder. Raises UserError where it cannot be written.
    """
    from mbconv.weights.card import model_card

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder that the model shall be written to.")
    provenance = dict(model.provenance or {})
    if license is not None:
        provenance["license"] = license
    digest = file.save(model, folder / MODEL_FILE, provenance)
    config = {
        "library_name": "mbconv",
        **file.describe(model, provenance, digest),
    }
    write_json(folder / CONFIG, config)
    card = model_card(model, provenance, evaluation=evaluation, repository=repository)
    write_text(folder / CARD, card)
    return folder


def is_foreign(folder: Path) -> bool:
    """Whether `folder` is a repository in timm's layout."""
    return "architecture" in read_config(folder)


def load(folder: Path) -> MBConvNet:
    """The network of a repository in timm's layout, in evaluation mode.

    Preprocessing, labels and licences are the config's and the card's; epsilon and padding follow
    from the name. Raises UserError where a file is missing or broken or the network is unknown.
    """
    model = assembled(read_config(folder), _tensors(folder), folder)
    model.provenance = {**(model.provenance or {}), **licences(folder)}
    return model


def assembled(config: dict[str, Any], tensors: dict[str, Any], folder: object) -> MBConvNet:
    """The network that timm's config and tensors make; `folder` is what errors name."""
    name = str(config["architecture"])
    about = config.get("pretrained_cfg", config)
    arguments = config.get("model_args") or {}
    changes = [f"{k}={v}" for k, v in arguments.items() if k not in SHAPED and (k, v) != USUAL]
    if changes:
        raise UserError(
            f"{folder} holds {name} changed by {', '.join(changes)}, which mbconv cannot follow. "
            "Take an unchanged one."
        )
    try:
        model = convert(tensors, source="timm", name=name)
        model.preprocessing = _preprocessing(about)
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is no repository that mbconv can read: {error}") from error
    model.spec = model.spec.replace(resolution=model.preprocessing.resolution)
    model.labels = _labels(config, about, model.spec.num_classes)
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config; empty where there is none. UserError where it is broken."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken ({error}). Copy or download it again.") from error
    return config if isinstance(config, dict) else {}


def _tensors(folder: Path) -> dict[str, Any]:
    path = folder / MODEL_FILE
    if not path.is_file():
        raise UserError(f"there is no {MODEL_FILE}; mbconv opens no pickled weights")
    return file.read_tensors(path)[1]


def _preprocessing(about: dict[str, Any]) -> Preprocessing:
    """timm's: resize the short side (`center`) or both (`squash`) to resolution / crop_pct."""
    side = int(about["input_size"][-1])
    mode = about.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise UserError(f"its crop_mode {mode!r} is unknown")
    return Preprocessing(
        resolution=side,
        resize=int(side / float(about.get("crop_pct") or 0.875)),
        interpolation=about.get("interpolation") or "bicubic",
        mean=about["mean"],
        std=about["std"],
        keep_aspect=mode == "center",
    )


def _labels(config: dict[str, Any], about: dict[str, Any], classes: int) -> tuple[str, ...] | None:
    """Class names in the order of the logits, described where the config has descriptions."""
    names = config.get("label_names") or about.get("label_names")
    if names is None:
        in1k = classes == 1000 and str(about.get("tag", "")).endswith("in1k")
        return imagenet_labels() if in1k else None
    if isinstance(names, dict):  # {"0": name}
        names = [names[key] for key in sorted(names, key=int)]
    described = config.get("label_descriptions") or about.get("label_descriptions") or {}
    labels = tuple(str(described.get(name, name)) for name in names)
    return labels if len(labels) == classes else None


def licences(folder: Path) -> dict[str, Any]:
    """Licence of the weights, the data that they were trained on and its licence; what is known.

    From the config and the card's front matter of a repository in timm's layout.
    """
    from huggingface_hub.repocard import metadata_load

    config = read_config(folder)
    about = config.get("pretrained_cfg", config)
    card = folder / CARD
    front = (metadata_load(card) if card.is_file() else None) or {}
    datasets = front.get("datasets") or []
    datasets = [datasets] if isinstance(datasets, str) else list(map(str, datasets))
    found = {
        "license": about.get("license") or front.get("license"),
        "trained_on": ", ".join(datasets),
        "data_license": "; ".join(
            dict.fromkeys(DATA_LICENSES[d] for d in datasets if d in DATA_LICENSES)
        ),
    }
    return {key: value for key, value in found.items() if value}
