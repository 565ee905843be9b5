"""Artifacts for phones: the same answers in ExecuTorch, all of them XNNPACK's."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from images import photo
from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.export.run import export_model
from mbconv.nn.model import MBConvNet
from mbconv.runtime.artifact import Form
from mbconv.runtime.executorch_runtime import library
from mbconv.runtime.predictor import MAX_BATCH, Predictor
from mbconv.weights.file import save
from small import lively

try:
    library("executorch.runtime", "This test")
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

BLOCKS = {
    "separable, relu6": Block(channels=12, expand=1, activation="relu6"),
    "mbconv, se, silu": Block(channels=12, expand=2, gate="se", kernel=5),
    "mbconv, resnet_d": Block(channels=16, stride=2, expand=2, shortcut="resnet_d"),
    "mbconv, sse": Block(channels=12, expand=2, gate="sse", activation="relu"),
    "mbconv, scse": Block(channels=12, expand=2, gate="scse", gate_sigmoid="hard_sigmoid"),
    "mbconv, eca": Block(channels=12, expand=2, gate="eca", activation="hard_swish"),
    "mbconv, dilated": Block(channels=12, expand=2, dilation=2),
    "fused": Block(channels=12, stride=2, kind="fused", expand=2, activation="gelu"),
    "fused, one convolution": Block(channels=12, kind="fused", expand=1),
    "uib": Block(channels=12, kind="uib", start_kernel=3, kernel=5, stride=2, expand=2),
    "uib without depthwise": Block(channels=12, kind="uib", kernel=0, expand=2),
}


def spec_of(*blocks: Block) -> Spec:
    """A network of these blocks, with SAME padding and a hidden layer in its head."""
    return Spec(
        name="blocks", resolution=40, num_classes=4, stem_channels=8, head_channels=16,
        head_hidden=12, padding="same", stages=tuple(Stage(blocks=(b,)) for b in blocks),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> MBConvNet:
    return lively(spec_of(*BLOCKS.values()))


@pytest.fixture(scope="module")
def artifact(model: MBConvNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For any number of pictures."""
    path = tmp_path_factory.mktemp("artifact") / "a.pte"
    assert export_model(model, path, form=Form(runtime="executorch")).paths == {"tensor": path}
    return path


def check_agreement(model: MBConvNet, path: Path, count: int) -> None:
    x = torch.randn(count, 3, 40, 40)
    with torch.no_grad():
        exact: torch.Tensor = model(x)
    got = Predictor(path).backend.logits(x)
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("count", [1, 5, MAX_BATCH + 3])
def test_it_answers_as_the_network(model: MBConvNet, artifact: Path, count: int) -> None:
    check_agreement(model, artifact, count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(BLOCKS))
def test_each_kind_of_block_by_itself(kind: str, tmp_path: Path) -> None:
    model = lively(spec_of(BLOCKS[kind]))
    done = export_model(model, tmp_path / "a", form=Form(runtime="executorch", batch=2))
    check_agreement(model, done.paths["tensor"], 3)


def test_it_says_what_it_is(model: MBConvNet, artifact: Path) -> None:
    predictor = Predictor(artifact)
    assert predictor.labels == model.labels
    assert predictor.spec == model.spec
    assert predictor.preprocessing == model.preprocessing
    assert predictor.artifact is not None
    assert predictor.artifact.provenance["exported"]["spec_hash"] == model.spec.hash


def test_there_is_room_for_the_largest_batch(artifact: Path) -> None:
    program = library("executorch.runtime", "This test").Runtime.get().load_program(artifact)
    assert program.method_names == {"forward", "mbconv"}
    assert program.metadata("forward").input_tensor_meta(0).sizes() == (MAX_BATCH, 3, 40, 40)


def test_no_folder_of_this_machine_and_no_custom_operator(artifact: Path) -> None:
    content = artifact.read_bytes()
    assert b"mbconv::" not in content
    assert str(Path(__file__).parent.parent).encode() not in content


def test_what_was_changed_or_is_foreign_is_refused(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pte"
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="was changed after it was exported"):
        Predictor(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"was changed after|not written by mbconv export"):
        Predictor(path)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="not written by mbconv export"):
        Predictor(path)


def test_the_preprocessing_stays_outside(model: MBConvNet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="onnx and openvino artifacts only"):
        export_model(model, tmp_path / "a", form=Form(runtime="executorch"), pictures=True)
    assert not list(tmp_path.iterdir())


def test_the_command_measures_it(tmp_path: Path) -> None:
    network = lively(spec_of(BLOCKS["separable, relu6"]))
    save(network, tmp_path / "m.safetensors")
    data = tmp_path / "data"
    for number, answer in enumerate(Predictor(network).predict([photo(i) for i in range(12)])):
        (data / answer.labels[0]).mkdir(parents=True, exist_ok=True)  # so that it is always right
        photo(number).save(data / answer.labels[0] / f"{number}.png")
    wishes = ["--format", "executorch", "--batch", "1", "--data", str(data)]
    done = CliRunner().invoke(main, ["export", str(tmp_path / "m.safetensors"), *wishes])
    assert done.exit_code == 0, done.output
    assert "m.pte: " in done.output
    assert "accuracy 100.0%, the network's 100.0% on the same 12 pictures" in done.output
    assert b"aten::" not in (tmp_path / "m.pte").read_bytes()  # all of it is XNNPACK's
    scored = CliRunner().invoke(main, ["eval", str(tmp_path / "m.pte"), str(data)])
    assert "of 12 pictures" in scored.output
