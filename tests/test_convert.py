"""Converting other libraries' weights and back, and what gets a sentence instead."""

from collections.abc import Callable

import pytest
import torch

from libraries import SMALLEST, State, build_foreign, foreign, same
from mbconv.arch.zoo import get_spec
from mbconv.errors import UserError
from mbconv.nn.model import build
from mbconv.weights import convert, counterpart, export_state_dict
from mbconv.weights.libraries import library_spec


@pytest.fixture(scope="module")
def v3() -> State:
    """timm's smallest MobileNetV3."""
    return foreign("timm", SMALLEST)


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# There and back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "key"),
    [
        ("timm", SMALLEST),  # its hidden layer is a 1x1 convolution
        ("timm", "mobilenetv4_conv_small"),
        ("timm", "tf_efficientnetv2_b0"),
        ("timm", "semnasnet_050"),
        ("torchvision", "efficientnet_b0"),
        ("torchvision", "mobilenet_v2"),
        ("torchvision", "mobilenet_v3_small"),
        ("torchvision", "mnasnet0_5"),
    ],
)
def test_there_and_back_is_the_identity(library: str, key: str) -> None:
    theirs = build_foreign(library, key)
    model = convert(theirs.state_dict(), library, key)
    assert counterpart(model.spec, library) == key
    back = export_state_dict(model, library)
    assert same(back, theirs.state_dict())
    theirs.load_state_dict(back)  # strict


def test_one_library_to_another() -> None:
    """torchvision's and timm's MobileNetV2 are one function under two namings."""
    theirs = foreign("torchvision", "mobilenet_v2")
    model = convert(theirs)
    back = convert(export_state_dict(model, "timm"), "timm", counterpart(model.spec, "timm"))
    assert back.spec.name == "timm:mobilenetv2_100"
    assert same(back.state_dict(), model.state_dict())


def test_what_a_converted_network_says(v3: State) -> None:
    model = convert(v3, "timm", f"{SMALLEST}.lamb_in1k")
    assert not model.training
    assert model.labels is None
    assert model.provenance == {"weights": f"timm:{SMALLEST}.lamb_in1k"}
    assert model.spec == library_spec(f"timm:{SMALLEST}")
    zoo = get_spec(SMALLEST)
    assert (zoo.padding, zoo.bn_eps) == ("same", 1e-3)  # TensorFlow's; timm trained it with torch's
    assert (model.spec.padding, model.spec.bn_eps) == ("symmetric", 1e-5)
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert convert(v3, "timm", f"tf_{SMALLEST}").preprocessing.mean == (0.5, 0.5, 0.5)


def test_the_result_owns_its_tensors(v3: State) -> None:
    model = convert(v3, "timm", SMALLEST)
    before = v3["conv_stem.weight"].clone()
    with torch.no_grad():
        model.stem.conv.weight.zero_()
    assert torch.equal(v3["conv_stem.weight"], before)
    exported = export_state_dict(model, "timm")
    exported["conv_head.weight"].fill_(5)
    assert model.head.hidden is not None
    assert not (model.head.hidden.linear.weight == 5).any()


def test_classes_and_channels_are_those_of_the_tensors(v3: State) -> None:
    changed = dict(v3)
    changed["classifier.weight"] = torch.randn(7, 1024)
    changed["classifier.bias"] = torch.randn(7)
    changed["conv_stem.weight"] = torch.randn(16, 1, 3, 3)
    model = convert(changed, "timm", SMALLEST)
    assert (model.spec.num_classes, model.spec.in_channels) == (7, 1)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 7)
    assert same(export_state_dict(model, "timm"), changed)


def test_files_of_old_times_lack_counters(v3: State) -> None:
    old = {k: v for k, v in v3.items() if not k.endswith("num_batches_tracked")}
    assert len(old) < len(v3)
    model = convert(old, "timm", SMALLEST)
    assert int(model.stem.norm.num_batches_tracked) == 0
    assert torch.equal(model.stem.norm.running_var, v3["bn1.running_var"])


# Whose weights they are ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "key", "source", "name"),
    [
        ("lukemelas", "efficientnet_b0", None, None),
        ("efficientnet_lite_pytorch", "efficientnet_lite0", None, None),
        ("torchvision", "efficientnet_b0", None, None),
        ("torchvision", "mnasnet0_5", "torchvision", None),
        ("timm", "mobilenetv4_conv_small", None, None),
        ("timm", "tinynet_e", "timm", None),
        ("timm", "tf_mobilenetv3_small_minimal_100", "timm", None),
    ],
)
def test_recognised_where_there_is_one_answer(
    library: str, key: str, source: str | None, name: str | None
) -> None:
    assert convert(foreign(library, key), source, name).spec.name == f"{library}:{key}"


def test_lite_and_the_original_share_keys_but_not_tensors() -> None:
    gated = convert(foreign("lukemelas", "efficientnet_b0"))
    plain = convert(foreign("efficientnet_lite_pytorch", "efficientnet_lite0"))
    assert next(gated.spec.blocks())[3].gate == "se"
    assert next(plain.spec.blocks())[3].gate is None
    assert plain.preprocessing.mean[0] == pytest.approx(127 / 255)


@pytest.mark.parametrize(("source", "name"), [(None, None), ("timm", None), ("geffnet", None)])
def test_equal_keys_need_a_name(v3: State, source: str | None, name: str | None) -> None:
    words = message(lambda: convert(v3, source, name))
    assert f"{source or 'timm'}'s {SMALLEST} or {source or 'timm'}'s tf_{SMALLEST}" in words
    assert "give the source and the name" in words


def test_names_are_read_leniently_and_missed_helpfully(v3: State) -> None:
    b0 = foreign("lukemelas", "efficientnet_b0")
    assert convert(b0, "lukemelas", "efficientnet-b0").spec.name == "lukemelas:efficientnet_b0"
    for call, words in (
        (lambda: convert(v3, "tim"), "no source 'tim'; known: timm, torchvision"),
        (lambda: convert(v3, "timm", "mobilenetv3_smal_075"), f"nearest: .*{SMALLEST}"),
        (lambda: convert(v3, None, "resnet50"), "No source has a network 'resnet50'"),
        (lambda: library_spec("timm:resnet50"), "timm has no network 'resnet50'"),
    ):
        with pytest.raises(UserError, match=words):
            call()


# What does not fit ---------------------------------------------------------------------------


def test_a_mismatch_names_keys_and_what_would_fit(v3: State) -> None:
    broken = dict(v3)
    del broken["blocks.0.0.conv_dw.weight"]
    broken["extra.weight"] = torch.ones(2)
    broken["conv_head.weight"] = torch.ones(1024, 432)  # ours has it so, theirs not
    words = message(lambda: convert(broken, "timm", SMALLEST))
    assert f"do not fit timm's {SMALLEST}: missing blocks.0.0.conv_dw.weight; " in words
    assert "no place for extra.weight; " in words
    assert "conv_head.weight has the shape [1024, 432] instead of [1024, 432, 1, 1]" in words
    words = message(lambda: convert(v3, "timm", "mobilenetv3_small_100"))
    assert f"They fit timm's {SMALLEST}" in words
    words = message(lambda: convert(v3, "torchvision", "efficientnet_b0"))
    assert "missing features.0.0.weight" in words
    assert f"They fit timm's {SMALLEST}" in words


def test_the_nearest_network_is_named_where_none_fits(v3: State) -> None:
    wider = {k: v for k, v in v3.items() if k != "conv_head.bias"}
    words = message(lambda: convert(wider, "timm"))
    assert f"the nearest, timm's {SMALLEST}, differs: missing conv_head.bias." in words
    words = message(lambda: convert(wider, "timm", "efficientnet_b0"))
    assert f"The nearest network is timm's {SMALLEST}" in words
    assert "no state dict" in message(lambda: convert({}))
    assert "no state dict" in message(lambda: convert({"a": 1}))  # type: ignore[dict-item]


def test_export_refuses_what_would_compute_something_else() -> None:
    model = build(get_spec("efficientnet_b0"))
    assert counterpart(model.spec, "timm") == "tf_efficientnet_b0"
    words = message(lambda: export_state_dict(model, "torchvision"))
    assert "the nearest, efficientnet_b0," in words
    assert "padding ('same' here, 'symmetric' there)" in words
    assert "bn_eps (0.001 here, 1e-05 there)" in words
    without = get_spec("efficientnet_b0").replace(gate=None)
    assert "other stages" in message(lambda: counterpart(without, "timm"))
    assert "not for 'keras'" in message(lambda: export_state_dict(model, "keras"))
    trained_otherwise = model.spec.replace(
        name="mine", num_classes=3, dropout=0.5, drop_path=0.0, bn_momentum=0.3, resolution=96
    )
    assert counterpart(trained_otherwise, "timm") == "tf_efficientnet_b0"
