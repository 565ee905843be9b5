"""INT8: close to the network it was made from, and mended where it is not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from images import photo
from mbconv.errors import UserError
from mbconv.export.distil import distil
from mbconv.export.guard import Guard
from mbconv.export.network import folded
from mbconv.export.rounding import input_ranges, layers_of, rounded
from mbconv.export.run import export_model
from mbconv.export.sensitive import fewest, most_sensitive
from mbconv.measure.paired import Paired
from mbconv.nn.model import MBConvNet, build
from mbconv.runtime.artifact import Form, Runtime
from mbconv.runtime.predictor import Logits, Predictor
from small import SMALL

pytest.importorskip("nncf")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
PICTURES = [photo(i) for i in range(36)]


def normalised(model: MBConvNet) -> torch.Tensor:
    from mbconv.data.transform import normalise

    reader = Predictor(model)
    pixels = np.stack([reader.prepare(p) for p in PICTURES])
    return normalise(torch.from_numpy(pixels), reader.preprocessing).contiguous()


@pytest.fixture
def model() -> MBConvNet:
    """Random weights, with batch norms that know the pictures, as those of a trained network do."""
    torch.manual_seed(0)
    network = build(SMALL).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(normalised(network))
        network.head.classifier.weight.mul_(8)  # answers that differ between the pictures
    network.labels = tuple("abcd")
    return network.eval()


def uneven(model: MBConvNet, factor: float = 1000) -> None:
    """One channel between two linear layers so many times as large; the same function."""
    with torch.no_grad():
        norm = model.get_submodule("stages.1.0.project.norm")
        reader = model.get_submodule("stages.2.0.expand.conv")
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(reader, nn.Conv2d)
        norm.weight[0] *= factor
        norm.bias[0] *= factor
        reader.weight[:, 0] /= factor


def half_lost(found: Paired) -> Paired:
    """As if the artifact named half of the pictures wrongly that the network names rightly."""
    return replace(found, second=found.first - 0.5, lost=found.n // 2)


def write_own_answers(model: MBConvNet, root: Path) -> Path:
    """The pictures, in the folders of the model's own answers, so that it is always right."""
    for number, answer in enumerate(Predictor(model).predict(PICTURES)):
        for split in ("train", "test"):
            folder = root / split / answer.labels[0]
            folder.mkdir(parents=True, exist_ok=True)
            PICTURES[number].save(folder / f"{number}.png")
    return root


def logits(predictor: Predictor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.stack([o.logits for o in predictor.logits(PICTURES) if o.logits is not None])


@pytest.mark.parametrize(
    "runtime",
    ["openvino", *(pytest.param(r, marks=pytest.mark.slow) for r in ("onnx", "executorch"))],
)
def test_int8_answers_nearly_as_the_network(
    model: MBConvNet, tmp_path: Path, runtime: Runtime
) -> None:
    if runtime == "executorch":
        pytest.importorskip("executorch")
    data = write_own_answers(model, tmp_path / "data")
    form = Form(runtime=runtime, precision="int8")
    done = export_model(model, tmp_path / "q", form=form, data=data, max_drop=100, pictures=False)
    exact, got = logits(Predictor(model)), logits(Predictor(done.paths["tensor"]))
    error = ((got - exact) ** 2).mean() ** 0.5 / exact.std(0).mean()
    assert 0.001 < error < 0.15  # NNCF's usual ranges: 0.5
    assert done.in_float == ()


def test_the_layer_that_int8_cannot_round_is_found(model: MBConvNet) -> None:
    x = normalised(model)
    before = model(x)
    plain = most_sensitive(model, [x.numpy()])
    uneven(model)
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)
    named = most_sensitive(model, [x.numpy()])
    assert named[0] == "stages.2.0.expand"
    assert plain[0] != named[0]
    assert sorted(plain) == sorted(named)
    assert {"stem", "stages.1.0.gate.reduce", "head.classifier"} <= set(named)


@pytest.mark.parametrize(
    "runtime",
    ["onnx", *(pytest.param(r, marks=pytest.mark.slow) for r in ("openvino", "executorch"))],
)
def test_sensitive_layers_go_back_to_floating_point(
    model: MBConvNet, tmp_path: Path, runtime: Runtime
) -> None:
    if runtime == "executorch":
        pytest.importorskip("executorch")
    data = write_own_answers(model, tmp_path / "data")
    uneven(model)
    form = Form(runtime=runtime, precision="int8")
    done = export_model(model, tmp_path / "q", form=form, data=data, max_drop=9, pictures=False)
    assert done.in_float[0] == "stages.2.0.expand"
    assert len(done.in_float) <= 2
    assert done.comparisons["tensor"].drop <= 0.09
    artifact = Predictor(done.paths["tensor"]).artifact
    assert artifact is not None
    assert artifact.provenance["exported"]["in_float"] == list(done.in_float)
    if runtime == "onnx":  # whose integer convolutions take one zero point for their input
        import onnx

        graph = onnx.load(done.paths["tensor"]).graph
        sizes = {i.name: int(np.prod(i.dims)) for i in graph.initializer}
        rounded = [n for n in graph.node if n.op_type == "QuantizeLinear"]
        assert len(rounded) > 5
        assert {sizes[n.input[1]] for n in rounded} == {1}


def test_layers_go_back_for_the_sake_of_preprocessing_inside_too(
    model: MBConvNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_own_answers(model, tmp_path / "data")
    compare, asked = Guard.compare, []

    def strict(guard: Guard, predictor: Predictor) -> Paired:
        """INT8 throughout loses half of the pictures where they are prepared inside."""
        artifact, found = predictor.artifact, compare(guard, predictor)
        assert artifact is not None
        exported = artifact.provenance["exported"]
        asked.append((artifact.form.entry, len(exported["in_float"])))
        inside = artifact.form.entry == "pictures" and not exported["in_float"]
        return half_lost(found) if inside else found

    monkeypatch.setattr(Guard, "compare", strict)
    form = Form(runtime="onnx", precision="int8")
    done = export_model(model, tmp_path / "q", form=form, data=data, max_drop=9)
    assert len(done.in_float) == 1
    assert sorted(done.comparisons) == ["pictures", "tensor"]
    assert all(c.drop <= 0.09 for c in done.comparisons.values())
    assert asked == [("tensor", 0), ("pictures", 0), ("tensor", 1), ("pictures", 1)]


@pytest.mark.slow
def test_a_network_beyond_mending_is_refused(
    model: MBConvNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_own_answers(model, tmp_path / "data")
    uneven(model)
    monkeypatch.setattr("mbconv.export.build.most_sensitive", lambda *_: ["stem", "head.conv"])
    form = Form(runtime="openvino", precision="int8")
    monkeypatch.setattr("mbconv.export.build.distil", lambda model, _: model)
    refused = r"With 1 of 2 layers in floating point .* taught to bear it with 1 of 2 layers"
    with pytest.raises(UserError, match=refused):
        export_model(model, tmp_path / "q", form=form, data=data, max_drop=1, pictures=False)
    assert not list(tmp_path.glob("q*"))


def in_int8(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a folded network answers with all its layers rounded, over this input's ranges."""
    layers = layers_of(network)
    ranges = input_ranges(network, layers, [x])
    with rounded(layers, ranges), torch.no_grad():
        answers: torch.Tensor = network(x)
    return answers


def test_weights_learn_to_bear_rounding(model: MBConvNet) -> None:
    uneven(model, 100)
    x = normalised(model)
    exact = model(x).detach()
    before = (in_int8(folded(model), x) - exact).square().mean()
    learnt = distil(model, [x.numpy()])
    after = (in_int8(learnt, x) - exact).square().mean()
    assert after < before / 2, (before, after)
    again = distil(model, [x[:20].numpy(), x[20:].numpy()])
    torch.testing.assert_close(again(x), learnt(x))  # nothing is left to chance
    torch.testing.assert_close(model(x), exact)  # and the network is as it was


def test_distillation_is_the_last_resort(
    model: MBConvNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_own_answers(model, tmp_path / "data")
    compare, taught = Guard.compare, []

    def strict(guard: Guard, predictor: Predictor) -> Paired:
        """INT8 loses half of the pictures, however few layers it has, until it was taught."""
        found = compare(guard, predictor)
        return found if taught else half_lost(found)

    def teach(source: MBConvNet, batches: Sequence[Logits]) -> MBConvNet:
        taught.append(sum(map(len, batches)))
        return distil(source, batches, steps=3)

    monkeypatch.setattr(Guard, "compare", strict)
    monkeypatch.setattr("mbconv.export.build.distil", teach)
    monkeypatch.setattr("mbconv.export.build.most_sensitive", lambda *_: ["stem", "head.conv"])
    form = Form(runtime="onnx", precision="int8")
    done = export_model(model, tmp_path / "q", form=form, data=data, max_drop=9, pictures=False)
    assert taught == [len(PICTURES)]
    assert done.distilled
    assert done.in_float == ()
    assert done.comparisons["tensor"].drop <= 0.09
    artifact = Predictor(done.paths["tensor"]).artifact
    assert artifact is not None
    assert artifact.provenance["exported"]["distilled"] is True


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 7, 8, 11])
def test_the_fewest_that_are_enough(needed: int) -> None:
    asked: list[int] = []

    def enough(count: int) -> bool:
        asked.append(count)
        return count >= needed

    assert fewest(10, enough) == (needed if needed <= 10 else None)
    assert len(asked) <= 7
    assert len(set(asked)) == len(asked)
