"""Augmentation: every policy changes pictures, draws from torch's generator, mixes by shares."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from images import photo
from mbconv.data.augment import GREY, mix, pipeline
from mbconv.data.augmentation import Augmentation
from mbconv.errors import UserError


def drawn(seed: int, phase: float | None = None, **fields: Any) -> Image.Image:
    picture = photo(0, 48, 48)
    transform = pipeline(Augmentation(**fields), phase)
    if transform is None:
        return picture
    torch.manual_seed(seed)
    result = transform(picture)
    assert isinstance(result, Image.Image)
    assert result.size == (48, 48)
    return result


def same(a: Image.Image, b: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
def test_policies_change_pictures_and_repeat_by_seed(policy: str) -> None:
    pairs = [(drawn(seed, policy=policy), drawn(seed)) for seed in range(12)]
    assert sum(not same(a, b) for a, b in pairs) >= 6  # some operations are the identity
    assert all(same(drawn(seed, policy=policy), pairs[seed][0]) for seed in range(12))


def test_magnitude_is_strength_and_a_phases_own_comes_first() -> None:
    def distance(magnitude: float) -> float:
        total = 0.0
        for seed in range(20):
            plain = np.asarray(drawn(seed), float)
            shown = np.asarray(drawn(seed, policy="randaugment", magnitude=magnitude), float)
            total += float(np.abs(shown - plain).mean())
        return total

    assert distance(1) < distance(9)
    weak = drawn(3, policy="randaugment", magnitude=2)
    assert same(drawn(3, 2, policy="randaugment", magnitude=9), weak)
    transform = pipeline(Augmentation(policy="randaugment", magnitude=10), None)
    assert "magnitude=30" in repr(transform)  # torchvision's strongest of 0 to 30


def test_erasing_leaves_a_grey_rectangle() -> None:
    grey = 0
    for seed in range(8):
        erased, plain = np.asarray(drawn(seed, erasing=1.0)), np.asarray(drawn(seed))
        changed = (erased != plain).any(2)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert (erased[changed] == GREY).all()
        grey += len(rows) > 0
        inside = erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (inside == GREY).all()
    assert grey == 8


def test_mixup_weighs_pictures_and_labels_alike() -> None:
    torch.manual_seed(0)
    x, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    mixed, shares = mix(x, labels, mixup=1.0, cutmix=0.0, classes=5)
    share = shares[0, 0].item()
    assert 0 < share < 1
    assert torch.allclose(mixed, share * x + (1 - share) * x.roll(1, 0))
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    assert torch.allclose(shares, share * one_hot + (1 - share) * one_hot.roll(1, 0))


def test_cutmix_weighs_labels_by_area() -> None:
    labels = torch.arange(4)
    x = labels.view(4, 1, 1, 1).expand(4, 3, 16, 16).float()
    for seed in range(6):
        torch.manual_seed(seed)
        mixed, shares = mix(x, labels, mixup=0.0, cutmix=1.0, classes=4)
        for k in range(4):
            own = (mixed[k] == k).float().mean().item()
            assert shares[k, k].item() == pytest.approx(own, abs=1e-6)
            assert shares[k].sum().item() == pytest.approx(1)


def test_with_both_alphas_either_is_drawn() -> None:
    x, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    cut = 0
    for seed in range(40):
        torch.manual_seed(seed)
        mixed, _ = mix(x, labels, mixup=1.0, cutmix=1.0, classes=4)
        cut += bool(((mixed == x) | (mixed == x.roll(1, 0))).all())
    assert 10 <= cut <= 30


def test_without_alphas_nothing_is_mixed_or_drawn() -> None:
    state = torch.random.get_rng_state()
    x, labels = torch.rand(2, 3, 4, 4), torch.arange(2)
    torch.random.set_rng_state(state)
    mixed, targets = mix(x, labels, mixup=0.0, cutmix=0.0, classes=2)
    assert mixed is x
    assert targets is labels
    assert torch.equal(torch.random.get_rng_state(), state)


def test_impossible_values_are_refused() -> None:
    for wrong in ({"policy": "auto"}, {"erasing": 1.1}, {"magnitude": 12}, {"operations": 0}):
        with pytest.raises(UserError):
            Augmentation(**wrong)  # type: ignore[arg-type]
