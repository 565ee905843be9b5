"""The loss of a batch, for labels or for shares of mixed pictures."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.training.recipe import Loss


def class_weights(recipe: Loss, counts: Sequence[int] | None) -> Tensor | None:
    """A weight a class, inverse to its number of pictures, 1 on average over all pictures."""
    if recipe.balance != "weights" or counts is None:
        return None
    number = torch.tensor(counts, dtype=torch.float32)
    return number.sum() / (len(counts) * number.clamp(min=1))


def batch_loss(
    logits: Tensor, targets: Tensor, recipe: Loss, weights: Tensor | None = None
) -> Tensor:
    """Mean loss of logits [N, C] in float32 against labels [N] or shares [N, C].

    `bce` is the binary cross-entropy of each class on its own, averaged over classes too, as
    "ResNet strikes back" trains (arXiv 2110.00476); smoothing then spreads over all classes.
    """
    if recipe.kind == "cross_entropy":
        return F.cross_entropy(
            logits, targets, weight=weights, label_smoothing=recipe.label_smoothing
        )
    classes = logits.shape[1]
    shares = F.one_hot(targets, classes).to(logits) if targets.ndim == 1 else targets.to(logits)
    shares = shares * (1 - recipe.label_smoothing) + recipe.label_smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, shares, weight=weights)
