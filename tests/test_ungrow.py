"""Growing undone: the source's function comes back exactly."""

import pytest
import torch
from hypothesis import given, settings

import mbconv
from grown import calibrated, in_stage, relative
from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.growing.inverse import ungrow
from mbconv.growing.plan import plan
from mbconv.growing.transfer import grow
from small import SMALL
from strategies import specs
from test_growing import CASES


def check_back(source: mbconv.MBConvNet, target: Spec | str) -> None:
    source = source.double()
    back = ungrow(grow(source, target), source.spec)
    assert back.spec == source.spec
    x = torch.randn(2, source.spec.in_channels, 41, 36, dtype=torch.float64)
    assert relative(source, back, x) <= 1e-10


@pytest.mark.parametrize("name", CASES)
def test_grown_and_shrunk_is_the_source(name: str) -> None:
    source, target = CASES[name]
    check_back(calibrated(source), target)


def test_neighbours_of_a_family() -> None:
    check_back(calibrated(mbconv.get_spec("efficientnet_b0")), "efficientnet_b1")


@settings(max_examples=30)
@given(specs(), specs())
def test_random_pairs(source: Spec, other: Spec) -> None:
    check_back(calibrated(source, 48), plan(source, other, "nearest").target)


def test_what_belongs_to_the_network_comes_along() -> None:
    source = calibrated(SMALL)
    source.labels, source.provenance = ("a", "b", "c", "d"), {"license": "mit"}
    larger = mbconv.grow(source, in_stage(SMALL, 3, channels=40).replace(num_classes=6))
    done = mbconv.shrink(larger, to=SMALL)
    assert done.plan is None
    assert done.model.labels == source.labels
    assert done.model.preprocessing == source.preprocessing
    assert done.model.provenance is not None
    assert done.model.provenance["license"] == "mit"


def test_a_network_that_cannot_have_been_the_source_is_refused() -> None:
    with pytest.raises(UserError, match=r"does not shrink into .*is 40 in the source, 24 in the"):
        ungrow(calibrated(SMALL), in_stage(SMALL, 3, channels=40))
