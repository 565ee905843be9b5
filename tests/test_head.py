"""The classifier fitted on frozen features: the optimum, whatever the features' last bits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mbconv
from mbconv.data.loader import Pictures
from mbconv.nn.model import MBConvNet
from mbconv.runtime.predictor import Predictor
from mbconv.training import head
from mbconv.training.recipe import Phase, Recipe, Transfer
from small import SMALL

RECIPE = Recipe(name="t", phases=(Phase(32, 1),), transfer=Transfer(head_penalty=1e-3))


def fitted(features: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch) -> MBConvNet:
    """A network whose classifier has been fitted on these."""
    monkeypatch.setattr(head, "pooled_features", lambda *_: (features.clone(), targets))
    model = mbconv.create_model(SMALL)
    head.fit_head(Predictor(model), Pictures([], RECIPE.augmentation), RECIPE)
    return model


@pytest.fixture
def features() -> tuple[Tensor, Tensor]:
    """Of few pictures, which a hyperplane parts."""
    torch.manual_seed(0)
    targets = torch.arange(30) % SMALL.num_classes
    centres = torch.randn(SMALL.num_classes, SMALL.head_channels)
    return 3 + centres[targets] + 0.3 * torch.randn(30, SMALL.head_channels), targets


def test_the_classifier_is_at_the_optimum(
    features: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, targets = features
    classifier = fitted(x, targets, monkeypatch).head.classifier
    std = x.double().std(0) + 1e-6
    weight = (classifier.weight.double() * std).detach().requires_grad_()
    bias = (classifier.bias + classifier.weight @ x.mean(0)).double().detach().requires_grad_()
    logits = (x.double() - x.double().mean(0)) / std @ weight.T + bias
    smoothing = RECIPE.loss.label_smoothing
    loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    (loss + RECIPE.transfer.head_penalty * weight.square().sum()).backward()
    for gradient in (weight.grad, bias.grad):
        assert gradient is not None
        assert gradient.abs().max() < 2e-5


def test_it_does_not_depend_on_the_last_bits(
    features: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, targets = features
    weight = fitted(x, targets, monkeypatch).head.classifier.weight
    near = x * (1 + 1e-7 * torch.randn_like(x))
    assert not torch.equal(near, x)
    other = fitted(near, targets, monkeypatch).head.classifier.weight
    assert (other - weight).abs().max() < 1e-5 * weight.abs().max()
