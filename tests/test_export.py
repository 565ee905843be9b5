"""Artifacts: the same answers in every runtime, nothing foreign inside, changes noticed."""

import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from grown import calibrated
from images import photo
from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.arch.zoo import get_spec, list_specs
from mbconv.cli import main
from mbconv.data.transform import normalise, prepare
from mbconv.errors import UserError
from mbconv.export.network import folded
from mbconv.export.preprocessing_graph import preprocessing_graph
from mbconv.export.run import export_model
from mbconv.kernels.native import processor_features
from mbconv.measure.paired import paired
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing
from mbconv.runtime.artifact import Entry, Form, Runtime, content_hash
from mbconv.runtime.predictor import Picture, Predictor
from mbconv.weights.file import save
from small import SMALL, lively, write_classes

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxslim")
pytest.importorskip("onnxruntime")

# Every kind of block, gate, activation and shortcut in one small network with SAME padding.
MIXED = Spec(
    name="mixed",
    resolution=40,
    num_classes=4,
    stem_channels=8,
    head_channels=16,
    head_hidden=12,
    padding="same",
    stages=(
        Stage(blocks=(Block(channels=8, expand=1, activation="relu6"),)),
        Stage(blocks=(Block(channels=12, stride=2, expand=2, gate="se", activation="silu"),)),
        Stage(blocks=(Block(channels=12, expand=2, gate="scse", activation="hard_swish"),)),
        Stage(blocks=(Block(channels=16, stride=2, expand=2, gate="eca", kernel=5),)),
    ),
)

PICTURES = [photo(i) for i in range(5)]
NATIVE = (
    "efficientnet_b0", "efficientnet_b1", "efficientnet_b3", "efficientnet_lite0",
    "efficientnet_lite2", "efficientnetv2_b0", "efficientnetv2_s", "mobilenetv2_100",
    "mobilenetv3_large_100", "mnasnet_a1",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache of every test, also for what is exported once for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBCONV_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="module")
def model() -> MBConvNet:
    return lively(MIXED)


@pytest.fixture(scope="module")
def folder(model: MBConvNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of `model` for every runtime."""
    root = tmp_path_factory.mktemp("artifacts")
    export_model(model, root / "a", form=Form(runtime="torch"))
    export_model(model, root / "a", form=Form(runtime="onnx"))
    export_model(model, root / "a", form=Form(runtime="openvino", batch=2))
    return root


def logits(
    predictor: Predictor, pictures: Sequence[Picture] = PICTURES
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    outputs = predictor.logits(pictures)
    return np.stack([o.logits for o in outputs if o.logits is not None])


@pytest.mark.parametrize("name", ["a.pt2", "a.onnx", "a.xml"])
def test_a_runtime_answers_as_the_network(model: MBConvNet, folder: Path, name: str) -> None:
    if name == "a.xml":
        pytest.importorskip("openvino")
    predictor = Predictor(folder / name)
    exact = logits(Predictor(model))
    np.testing.assert_allclose(logits(predictor), exact, atol=1e-4 * np.abs(exact).max())
    assert predictor.labels == model.labels
    assert predictor.spec == model.spec
    with pytest.raises(UserError, match="needs the network's modules"):
        _ = predictor.model


@pytest.mark.parametrize("name", ["a.pictures.onnx", "a.pictures.xml"])
def test_pictures_of_any_size_go_in(model: MBConvNet, folder: Path, name: str) -> None:
    exact, got = logits(Predictor(model)), logits(Predictor(folder / name))
    np.testing.assert_allclose(got, exact, atol=0.03 * np.abs(exact).max())


def test_only_plain_operators_and_no_folders_of_this_machine(folder: Path) -> None:
    graph = onnx.load(folder / "a.pictures.onnx")
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    kinds = {node.op_type for node in graph.graph.node}
    assert "HardSwish" in kinds
    assert "BatchNormalization" not in kinds
    assert str(Path(__file__).parent.parent).encode() not in graph.SerializeToString()
    program = torch.export.load(folder / "a.pt2")
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert {t.split(".")[0] for t in targets} <= {"aten", "<built-in function getitem>"}
    assert not any("batch_norm" in t for t in targets)


@pytest.mark.parametrize(
    ("size", "interpolation", "keep_aspect"),
    [((61, 47), "bicubic", True), ((30, 90), "bilinear", True), ((90, 50), "bicubic", False)],
)
def test_the_graph_of_the_preprocessing_is_pillows(
    size: tuple[int, int], interpolation: str, keep_aspect: bool
) -> None:
    import onnxruntime

    p = Preprocessing(
        resolution=24, resize=29, interpolation=interpolation, keep_aspect=keep_aspect,  # type: ignore[arg-type]
    )  # fmt: skip
    picture = photo(1, *size)
    graph = preprocessing_graph(p, None, ir=10, opset=20)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (got,) = session.run(None, {"pictures": np.asarray(picture)[None]})
    exact = normalise(torch.from_numpy(prepare(picture, p))[None], p).numpy()
    levels = np.abs(got - exact) * 255 * np.array(p.std).reshape(1, 3, 1, 1)
    assert levels.max() < 3.5  # which axis Pillow rounds first differs between its versions
    assert levels.mean() < 0.25


def test_folding_keeps_the_function(model: MBConvNet) -> None:
    x = torch.randn(2, 3, 40, 40)
    own = folded(model)
    assert not any("BatchNorm" in type(m).__name__ for m in own.modules())
    with torch.no_grad():
        torch.testing.assert_close(own(x), model(x), rtol=1e-4, atol=1e-5)
    assert any("BatchNorm" in type(m).__name__ for m in model.modules())


@pytest.mark.parametrize("name", ["a.onnx", "a.bin"])
def test_a_changed_artifact_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    for source in folder.glob("a.*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="was changed after it was exported"):
        Predictor((tmp_path / name).with_suffix(".xml" if name == "a.bin" else ".onnx"))


def test_a_program_from_elsewhere_needs_trust(
    model: MBConvNet, folder: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "b.pt2"
    foreign.write_bytes((folder / "a.pt2").read_bytes())
    Predictor(foreign)  # known by its content, not by its place
    with zipfile.ZipFile(foreign, "a") as archive:
        archive.writestr("a/extra/more", "x")
    with pytest.raises(UserError, match="can run code"):
        Predictor(foreign)
    with pytest.raises(UserError, match="was changed after"):
        Predictor(foreign, trust=True)


def test_others_files_and_missing_ones(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"something else")
    with pytest.raises(UserError, match="not written by mbconv export"):
        Predictor(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="does not exist"):
        Predictor(tmp_path / "none.onnx")


def test_a_runtime_that_is_missing_and_another_processor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mbconv.runtime import backend

    artifact = Predictor(folder / "a.onnx").artifact
    assert artifact is not None
    with monkeypatch.context() as patch:
        patch.setattr(backend, "processor_features", lambda: frozenset({"avx2"}))
        with pytest.raises(UserError, match="made for processors with avx512_vnni"):
            backend._check_processor(replace(artifact, needs=("avx512_vnni",)), folder)
        backend._check_processor(replace(artifact, needs=("avx2", "x")), folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r'pip install "mbconv\[onnx\]"'):
        Predictor(folder / "a.onnx")


def test_executorch_that_is_missing_or_does_not_fit(
    model: MBConvNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = Form(runtime="executorch")
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(UserError, match=r'pip install "mbconv\[executorch\]"'):
        export_model(model, tmp_path / "a", form=form)
    # As if its compiled part was made for another torch.
    monkeypatch.setitem(sys.modules, "executorch", ModuleType("executorch"))
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(UserError, match="an executorch that fits torch"):
        export_model(model, tmp_path / "a", form=form)
    assert not list(tmp_path.iterdir())


def test_wishes_that_cannot_be_had(model: MBConvNet, tmp_path: Path) -> None:
    cases: list[tuple[Form, str]] = [
        (Form(runtime="onnx", precision="bfloat16"), "no bfloat16"),
        (Form(runtime="executorch", precision="bfloat16"), "ExecuTorch computes no bfloat16"),
        (Form(runtime="torch", precision="int8"), "INT8 is for onnx"),
        (Form(runtime="onnx", precision="int8"), "name them with --data"),
    ]
    for form, words in cases:
        with pytest.raises(UserError, match=words):
            export_model(model, tmp_path / "a", form=form)
    with pytest.raises(UserError, match=r"ends in \.xml"):
        export_model(model, tmp_path / "a.onnx", form=Form(runtime="openvino"))
    assert not list(tmp_path.iterdir())


def test_every_format_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(lively(SMALL), tmp_path / "m.safetensors")
    monkeypatch.setitem(sys.modules, "executorch", None)
    wishes = ["export", str(tmp_path / "m.safetensors"), "--format", "all"]
    done = CliRunner().invoke(main, [*wishes, "--no-embed-preprocessing"])
    assert done.exit_code == 0, done.output
    assert "no executorch: The export to ExecuTorch needs executorch" in done.output
    assert {p.suffix for p in tmp_path.glob("m.*")} == {
        ".safetensors", ".onnx", ".xml", ".bin", ".pt2",
    }  # fmt: skip
    none = CliRunner().invoke(main, [*wishes, "--int8"])  # without --data
    assert none.exit_code == 2
    assert none.output.count("\nerror: ") == 1


def test_the_command_measures_and_the_guard_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = lively(SMALL)
    save(network, tmp_path / "m.safetensors")
    data = tmp_path / "data"
    for number, answer in enumerate(Predictor(network).predict([photo(i) for i in range(24)])):
        (data / answer.labels[0]).mkdir(parents=True, exist_ok=True)  # so that it is always right
        photo(number).save(data / answer.labels[0] / f"{number}.png")
    wishes = ["export", str(tmp_path / "m.safetensors"), "--data", str(data)]
    done = CliRunner().invoke(main, wishes)
    assert done.exit_code == 0, done.output
    assert "on the same 24 pictures" in done.output
    assert "24 pictures do not settle" in done.output
    assert {p.name for p in tmp_path.glob("m.*")} == {
        "m.safetensors", "m.onnx", "m.pictures.onnx",
    }  # fmt: skip
    accuracy = Predictor(tmp_path / "m.onnx").artifact.accuracy  # type: ignore[union-attr]
    assert accuracy is not None
    assert (accuracy["n"], accuracy["lost"], accuracy["won"]) == (24, 0, 0)
    picture = next(data.rglob("*.png"))
    named = CliRunner().invoke(
        main, ["predict", str(tmp_path / "m.onnx"), str(picture), "--timing"]
    )
    assert named.exit_code == 0
    assert "1 picture in" in named.output
    scored = CliRunner().invoke(main, ["eval", str(tmp_path / "m.onnx"), str(data)])
    assert "of 24 pictures" in scored.output

    # An artifact that always answers what the network does not.
    from mbconv.export import build

    spoilt = build.make

    def worse(job: build.Job, form: Form, entries: Sequence[Entry]) -> build.Build:
        with torch.no_grad():
            job.source.head.classifier.weight.neg_()
            job.source.head.classifier.bias.neg_()
        return spoilt(job, form, entries)

    monkeypatch.setattr(build, "make", worse)
    refused = CliRunner().invoke(main, [*wishes, "--out", str(tmp_path / "worse")])
    assert refused.exit_code == 2
    assert "a drop of 100.0 points" in refused.output
    assert not list(tmp_path.glob("worse*"))


def test_the_seal_covers_everything_else(folder: Path) -> None:
    runtimes: list[tuple[Runtime, str]] = [("onnx", "a.onnx"), ("openvino", "a.xml")]
    for _, name in runtimes:
        assert content_hash(folder / name).encode() in (folder / name).read_bytes()


def test_a_paired_difference() -> None:
    first = np.array([True] * 90 + [False] * 10)
    second = np.array([True] * 85 + [False] * 12 + [True] * 3)
    found = paired(first, second)
    assert (found.lost, found.won, found.drop) == (5, 3, pytest.approx(0.02))
    low, high = found.interval
    assert low < 0 < found.drop < high
    n, differ = 102, 9  # the same by hand
    assert found.half_width == pytest.approx(1.959964 * (differ - 4 / n) ** 0.5 / n)
    many = paired(np.tile(first, 50), np.tile(second, 50))
    assert many.half_width < found.half_width / 6
    assert many.half_width <= many.pictures_for(many.half_width * 0.5) ** 0.5
    assert many.pictures_for(many.half_width) == pytest.approx(many.n, abs=2)


@pytest.mark.slow
def test_int8_has_a_scale_for_each_channel(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    data = write_classes(tmp_path / "data", classes=4, each=12)
    form = Form(runtime="onnx", precision="int8")
    done = export_model(lively(SMALL), tmp_path / "q", form=form, data=data, max_drop=100)
    graph = onnx.load(done.paths["tensor"]).graph
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    dense = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights]
    kernels = [n for n in dense if weights[n.input[0]].ndim == 4]
    assert len(kernels) > 5
    for node in kernels:
        assert weights[node.input[0]].dtype == np.int8
        assert weights[node.input[1]].shape == weights[node.input[0]].shape[:1]
    assert np.isfinite(logits(Predictor(done.paths["tensor"]))).all()


def check_the_exports_of(spec: Spec, folder: Path) -> None:
    """On faint noise: the deepest random networks blow up on anything stronger than what they were
    calibrated with, and are then 6% off their own float64."""
    pytest.importorskip("openvino")
    model = calibrated(spec.replace(num_classes=10), spec.resolution)
    model.labels = tuple("abcdefghij")
    side, rng = model.preprocessing.resize, np.random.default_rng(0)
    noise = [rng.integers(64, 192, (side, side, 3), dtype=np.uint8) for _ in range(2)]
    exact = logits(Predictor(model), noise)
    for runtime in ("onnx", "openvino"):
        done = export_model(model, folder / "a", form=Form(runtime=runtime), pictures=False)
        got = logits(Predictor(done.paths["tensor"]), noise)
        np.testing.assert_allclose(got, exact, atol=1e-4 * np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", list_specs())
def test_the_zoo_exports(name: str, tmp_path: Path) -> None:
    # The graph is the same at any size, and large ones take minutes.
    check_the_exports_of(get_spec(name).replace(resolution=96), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_exports_at_native_size(name: str, tmp_path: Path) -> None:
    check_the_exports_of(get_spec(name), tmp_path)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_bfloat16(model: MBConvNet, tmp_path: Path, runtime: Runtime) -> None:
    features = processor_features()
    if runtime == "openvino" and not features & {"avx512_bf16", "amx_bf16", "bf16"}:
        pytest.skip("this processor has no bfloat16")
    form = Form(runtime=runtime, precision="bfloat16")
    done = export_model(model, tmp_path / "a", form=form, pictures=False)
    exact, got = logits(Predictor(model)), logits(Predictor(done.paths["tensor"]))
    assert 0 < np.abs(got - exact).max() < 0.1 * np.abs(exact).max()
