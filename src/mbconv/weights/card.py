"""The model card of a repository: what a network is, how it is loaded, what its figures mean."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mbconv.arch.cost import cost
from mbconv.nn.model import MBConvNet
from mbconv.record import Record
from mbconv.weights.labels import DATA_LICENSES

CLASSES_SHOWN = 200


def model_card(
    model: MBConvNet,
    provenance: dict[str, Any],
    *,
    evaluation: Record | None = None,
    repository: str | None = None,
) -> str:
    """`README.md` in Markdown, with the front matter that the hub reads.

    `evaluation` is shown with n and its 95% interval; without one the card claims no accuracy.
    `repository` is the `owner/name` that the card tells to load.
    """
    figures = cost(model.spec)
    parts = [
        f"---\n{_front_matter(model, provenance, evaluation)}\n---",
        f"# {model.spec.name}",
        f"An image classifier for {model.spec.num_classes} classes, made with mbconv: "
        f"{figures.params:,} parameters, {figures.macs / 1e6:,.1f} million multiply-adds at "
        f"{figures.resolution}x{figures.resolution}.",
        _use(repository),
        "## Preprocessing\n\nIt travels in the model file and is applied by `mbconv`: "
        + _preprocessing(model),
        _evaluation(evaluation),
        "## Where the weights come from\n\n" + "\n".join(_lines(provenance)),
        f"## Licences\n\n- weights: {_licence(provenance, 'license')}\n"
        f"- training data: {_licence(provenance, 'data_license')}",
        _classes(model.labels),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(model: MBConvNet, provenance: dict[str, Any], evaluation: Record | None) -> str:
    licence = str(provenance.get("license", "")).lower()
    named = bool(re.fullmatch(r"[a-z0-9.\-]+", licence))  # as SPDX names are
    trained_on = str(provenance.get("trained_on", "")).lower().split(", ")
    results = None
    if evaluation is not None:
        data = _dataset(evaluation)
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=re.sub(r"[^\w.\-]+", "-", data),
                dataset_name=data,
                dataset_split=evaluation.detail.get("split"),
                metric_type="accuracy",
                metric_name="top-1 accuracy",
                metric_value=round(evaluation.value, 4),
                metric_args={"n": evaluation.n, "low": evaluation.low, "high": evaluation.high},
            )
        ]
    return ModelCardData(
        license=(licence if named else "other") if licence else None,
        license_name=licence if licence and not named else None,
        library_name="mbconv",
        pipeline_tag="image-classification",
        tags=["image-classification", "mbconv"],
        # The hub links these names to its own data sets, so a folder's name is no entry.
        datasets=[name for name in trained_on if name in DATA_LICENSES] or None,
        metrics=None if results is None else ["accuracy"],
        model_name=model.spec.name,
        eval_results=results,
    ).to_yaml()


def _licence(provenance: dict[str, Any], key: str) -> str:
    own, base = provenance.get(key), (provenance.get("base") or {}).get(key)
    if own or not base:
        return str(own or "not stated")
    return f"not stated; of what training started from: {base}"


def _use(repository: str | None) -> str:
    source = f"hf-hub:{repository}" if repository else "path/to/this/folder"
    return (
        "## Use\n\n```\npip install mbconv\n"
        f"mbconv predict {source} PICTURE...\n```\n\n"
        f'```python\nimport mbconv\n\nmodel = mbconv.load("{source}")\n'
        'for prediction in mbconv.Predictor(model).predict(["picture.jpg"]):\n'
        "    print(prediction.labels[0], prediction.scores[0])\n```"
    )


def _preprocessing(model: MBConvNet) -> str:
    pre = model.preprocessing
    sides = "the short side" if pre.keep_aspect else "both sides"
    mean, std = (", ".join(f"{x:.4g}" for x in values) for values in (pre.mean, pre.std))
    return (
        f"RGB, {sides} resized to {pre.resize} ({pre.interpolation}), the centre "
        f"{pre.resolution}x{pre.resolution} cropped, pixels in 0..1, mean {mean}, deviation {std}."
    )


def _evaluation(evaluation: Record | None) -> str:
    if evaluation is None:
        return ""
    split, interval = evaluation.detail.get("split"), ""
    if evaluation.low is not None and evaluation.high is not None:
        interval = f", 95% interval {evaluation.low:.1%} to {evaluation.high:.1%}"
    where = _dataset(evaluation) + (f", split {split}" if split else "")
    count = "" if evaluation.n is None else f" (n = {evaluation.n})"
    return f"## Evaluation\n\nTop-1 accuracy {evaluation.value:.1%}{interval}{count}, on {where}."


def _dataset(evaluation: Record) -> str:
    """The data's name; the folders above it are nobody's business."""
    return Path(str(evaluation.detail.get("data") or "unnamed data")).name


def _lines(provenance: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in provenance.items():
        if isinstance(value, dict):
            lines += [f"{indent}- {key}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}- {key}: {value}")
    return lines or [f"{indent}Not recorded."]


def _classes(labels: tuple[str, ...] | None) -> str:
    if labels is None:
        return ""
    shown = "; ".join(labels[:CLASSES_SHOWN])
    more = len(labels) - CLASSES_SHOWN
    return "## Classes\n\n" + shown + (f"; and {more} more." if more > 0 else ".")
