"""Classification metrics as pure functions of logits and targets, in numpy.

torchmetrics has most of them, but importing it takes 3 to 4.5 seconds, twice as long as torch
itself, which a user of `mbconv eval` would wait for each time. The tests compare these functions
with scikit-learn and with hand-computed values.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbconv.interval import wilson

CALIBRATION_BINS = 15

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def share(successes: int, n: int) -> dict[str, float]:
    """A share with its Wilson interval: {value, low, high}."""
    low, high = wilson(successes, n)
    return {"value": successes / n, "low": low, "high": high}


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Probabilities along the last axis, in float64: logits [..., classes] -> the same shape."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def hits(logits: Floats, targets: Ints, k: int = 1) -> NDArray[np.bool_]:
    """Whether the true class is among the `k` largest logits.

    logits [n, classes], targets [n] -> bool [n]. Among equal logits the lower class number comes
    first, as in argmax, so that a network whose answers are all the same is not called right.
    """
    true = np.take_along_axis(logits, targets[:, None], axis=1)
    earlier = np.arange(logits.shape[1])[None, :] < targets[:, None]
    before = (logits > true) | ((logits == true) & earlier)
    result: NDArray[np.bool_] = before.sum(axis=1) < k
    return result


def confusion_matrix(targets: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts [classes, classes]: rows are the true class, columns the predicted one."""
    counts = np.bincount(targets * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def per_class(confusion: Ints) -> dict[str, NDArray[np.float64]]:
    """Precision, recall and F1 of each class, float64 [classes]; 0 where a denominator is 0."""
    right = confusion.diagonal().astype(np.float64)
    is_true, said = confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "precision": right / np.maximum(said, 1),
        "recall": right / np.maximum(is_true, 1),
        "f1": 2 * right / np.maximum(is_true + said, 1),
    }


def balanced_accuracy(confusion: Ints) -> dict[str, float]:
    """Mean recall of the classes that occur, with a 95% interval: {value, low, high}.

    The interval joins the classes' Wilson intervals by the method of variance estimates recovery
    (Zou and Donner, Statistics in Medicine 27, 2008). Unlike the normal approximation it does not
    shrink to a point where every small class happens to be all right; with one class it is
    Wilson's.
    """
    counts = confusion.sum(axis=1)
    rows = [(int(confusion[i, i]), int(counts[i])) for i in np.flatnonzero(counts)]
    recalls = np.array([right / n for right, n in rows])
    bounds = np.array([wilson(right, n) for right, n in rows])
    value = float(recalls.mean())
    below = float(np.sqrt(((recalls - bounds[:, 0]) ** 2).sum())) / len(rows)
    above = float(np.sqrt(((bounds[:, 1] - recalls) ** 2).sum())) / len(rows)
    return {"value": value, "low": max(0.0, value - below), "high": min(1.0, value + above)}


def calibration(
    confidence: Floats, right: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> list[dict[str, float | int | None]]:
    """The reliability diagram: confidence [n] in 0..1 against right [n], in bins of equal width.

    Each bin (low, high] has n and the means of confidence and accuracy, None where it is empty.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    rows: list[dict[str, float | int | None]] = []
    for number in range(bins):
        inside = index == number
        n = int(inside.sum())
        rows.append(
            {
                "low": float(edges[number]),
                "high": float(edges[number + 1]),
                "n": n,
                "confidence": float(confidence[inside].mean()) if n else None,
                "accuracy": float(right[inside].mean()) if n else None,
            }
        )
    return rows


def expected_calibration_error(rows: list[dict[str, Any]]) -> float:
    """Mean distance between confidence and accuracy over `calibration`'s bins, weighted by n.

    Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3.
    """
    total = sum(row["n"] for row in rows)
    gaps = (row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows if row["n"])
    return float(sum(gaps) / total)
