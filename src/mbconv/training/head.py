"""How the classifier starts: fitted on frozen features in about a second, or from zero."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbconv.data.loader import Pictures
from mbconv.measure.accuracy import Progress, collect
from mbconv.nn.model import MBConvNet
from mbconv.runtime.predictor import Predictor
from mbconv.training.recipe import Recipe


def zero_head(model: MBConvNet) -> None:
    """Make all logits zero, in place: the loss starts at the logarithm of the number of classes.

    The usual fresh classifier is made for a thousand classes. For ten its weights are ten times as
    large, and the first steps go into making them smaller.
    """
    torch.nn.init.zeros_(model.head.classifier.weight)
    torch.nn.init.zeros_(model.head.classifier.bias)


def fit_head(
    predictor: Predictor, pictures: Pictures, recipe: Recipe, progress: Progress | None = None
) -> None:
    """Set the classifier to the penalised optimum on the features of `pictures`, in place.

    `predictor` runs the network; it says resolution, number format and device. The features are
    standardised for the fit, so that one penalty serves every network. It is done in float64: in
    float32 it stops early, and where depends on the features' last bits, which then end up in the
    third digit of the weights.
    """
    model = predictor.model
    features, targets = pooled_features(predictor, pictures, progress)
    features = features.double()
    mean, std = features.mean(0), features.std(0) + 1e-6
    weight, bias = solve(
        features.sub_(mean).div_(std),
        targets,
        model.spec.num_classes,
        penalty=recipe.transfer.head_penalty,
        smoothing=recipe.loss.label_smoothing,
    )
    classifier = model.head.classifier
    with torch.no_grad():
        classifier.weight.copy_(weight / std)
        classifier.bias.copy_(bias - weight @ (mean / std))


def pooled_features(
    predictor: Predictor, pictures: Pictures, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """What the classifier sees: features [n, width] and targets [n] of the readable pictures.

    They are read as training reads them, so that the first epoch finds them decoded in its cache.
    """
    head, samples = predictor.model.head, pictures.samples
    centres = (partial(pictures.centre, number) for number in range(len(samples)))
    classifier = head.classifier
    head.classifier = nn.Identity()  # type: ignore[assignment]
    try:
        collected = collect(predictor, samples, pictures=centres, progress=progress)
    finally:
        head.classifier = classifier
    return torch.from_numpy(collected.logits), torch.from_numpy(collected.targets)


def solve(
    features: Tensor, targets: Tensor, classes: int, *, penalty: float, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by L-BFGS: weight [classes, width] and bias [classes].

    Minimises the smoothed cross-entropy of `features` [n, width] plus `penalty` times the
    squared norm of the weight.
    """
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.T + bias, targets, label_smoothing=smoothing)
        loss = loss + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
