"""The command line as a user meets it: what it prints, and how it ends."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import mbconv
from mbconv import kernels
from mbconv.arch.spec import Spec
from mbconv.cli import main
from mbconv.kernels import native
from mbconv.weights.file import tensor_hash
from small import SMALL, write_classes, write_model


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "data")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = mbconv.build(SMALL.replace(num_classes=3))
    network.labels = ("class0", "class1", "class2")
    mbconv.save(network, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_info() -> None:
    figures = json.loads(run("info", "efficientnet_b0", "--json").output)
    assert figures["params"] == 5_288_548
    assert figures["resolution"] == 224
    assert (figures["blocks"], figures["skippable"]) == (16, 9)
    assert "5,288,548" in run("info", "efficientnet_b0").output
    small = json.loads(run("info", "efficientnet_b0", "--json", "--resolution", 112).output)
    assert small["macs"] < 0.3 * figures["macs"]
    skips = json.loads(run("info", "--skips", "--json").output)
    assert [row["skippable"] for row in skips] == [9, 16, 16, 19, 25, 32, 38, 48]
    assert "efficientnet_lite4" in run("info").output.split()
    rows = {row["name"]: row for row in json.loads(run("info", "--json").output)}
    assert list(rows) == list(mbconv.list_specs())
    assert rows["efficientnet_b0"]["macs"] == figures["macs"]


def test_info_reshapes_and_saves(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    shape = ("--width", 0.5, "--divisor", 16, "--set", "gate=null", "--set", "activation=relu6")
    figures = json.loads(
        run("info", "efficientnet_b0", *shape, "--resolution", 64, "--json", "--save", own).stdout
    )
    assert "last map is 2x2" in figures["warning"]
    spec = Spec.from_json(own.read_text())
    assert (spec.name, spec.resolution, spec.activation) == ("own", 64, "relu6")
    assert {block.gate for *_, block in spec.blocks()} == {None}
    assert {stage.channels % 16 for stage in spec.stages} == {0}
    assert json.loads(run("info", own, "--json").stdout)["hash"] == spec.hash
    smaller = json.loads(run("info", "efficientnet_b0", "--phi", -1, "--json").stdout)
    assert (smaller["params"], smaller["resolution"]) == (4_548_152, 192)
    table = json.loads(
        run("info", "efficientnet_b0", "--phi", 1, "--mode", "table", "--json").stdout
    )
    assert table["params"] == 7_794_184
    dilated = run("info", "efficientnet_b0", "--output-stride", 8, "--json").stdout
    assert json.loads(dilated)["macs"] > 4e8
    for mistake in (("--phi", 1, "--width", 2), ("--set", "gate"), ("--set", "gat=se")):
        assert run("info", "efficientnet_b0", *mistake).exit_code == 2


def test_info_of_files(tmp_path: Path, model: Path) -> None:
    (tmp_path / "spec.json").write_text(SMALL.to_json())
    for path in (tmp_path / "spec.json", model):
        assert json.loads(run("info", path, "--json").output)["blocks"] == 4


def test_train_eval_predict(data: Path, tmp_path: Path) -> None:
    start = write_model(tmp_path / "start.safetensors")
    out = tmp_path / "run"
    done = run("train", data, "--model", start, "--out", out, "--epochs", 1, "--resolution", 32)
    assert done.exit_code == 0, done.output
    assert "test accuracy" in done.output
    assert f"mbconv predict {out}" in done.output
    record = json.loads(run("eval", out, data, "--split", "all", "--json").output)
    assert record["n"] == 36
    learnt = len(json.loads((out / "data.json").read_text())["splits"]["train"])
    assert record["detail"]["trained_on"] == learnt > 0
    assert f"trained on {learnt} of these pictures" in run("eval", out, data).output
    elsewhere = write_model(tmp_path / "elsewhere.safetensors", SMALL.replace(num_classes=3))
    assert "not held out" not in run("eval", elsewhere, data).output
    assert record["low"] <= record["value"] <= record["high"]
    good, broken = data / "class0/0.png", tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    mixed = run("predict", out, good, broken, "--format", "jsonl")
    assert mixed.exit_code == 1
    first, second = (json.loads(line) for line in mixed.output.splitlines())
    assert first["source"] == str(good)
    assert second["error"]
    again = run("train", data, "--out", out)
    assert again.exit_code == 2
    assert "already holds a run" in again.output
    assert run("train", "--resume", out).exit_code == 0  # a finished run finishes again
    twin = run("train", data, "--config", out / "config.json", "--out", tmp_path / "twin")
    assert twin.exit_code == 0, twin.output
    hashes = [tensor_hash(mbconv.load(path).state_dict()) for path in (out, tmp_path / "twin")]
    assert hashes[0] == hashes[1]


def test_doctor_says_which_blocks_of_a_model_stay_plain() -> None:
    words = run("doctor", "efficientnetv2_b0").output
    assert "20 of 21 can be fused" in words
    assert "stages.0.0: a block of a single convolution is not fused" in words
    found = json.loads(run("doctor", "efficientnet_b0", "--json").output)["blocks"]
    assert len(found) == 16
    assert set(found.values()) == {None}


def test_recipes_are_listed_and_shown(data: Path, tmp_path: Path) -> None:
    texts = json.loads(run("recipe", "list", "--json").output)
    lines = run("recipe", "list").output.splitlines()
    assert [line.split()[0] for line in lines] == list(texts)
    assert {"finetune", "scratch_small", "efficientnet_tf"} <= set(texts)
    shown = run("recipe", "show", "scratch_small", "--epochs", 4, "--set", "optimizer.clip=3")
    fields = dict(line.split() for line in shown.output.partition("\n\nname ")[2].splitlines()[1:])
    assert (fields["optimizer.clip"], fields["phases.1.epochs"]) == ("3.0", "2")
    whole = json.loads(run("recipe", "show", "finetune", "--json").output)
    assert whole["transfer"]["frozen_stages"] == 4
    start, out = write_model(tmp_path / "start.safetensors"), tmp_path / "run"
    done = run("train", data, "--model", start, "--out", out, "--epochs", 1, "--resolution", 32,
               "--recipe", "scratch_small", "--set", "optimizer.clip=3")  # fmt: skip
    assert done.exit_code == 0, done.output
    recipe = json.loads((out / "config.json").read_text())["recipe"]
    assert (recipe["name"], recipe["optimizer"]["clip"]) == ("scratch_small", 3.0)


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(run("doctor", "--json").output)["kernels"]
    words = run("doctor").output
    if found["instruction_set"] is not None:
        assert f"native kernels ({found['instruction_set']})" in words or found["mode"] != "auto"
        assert found["instruction_set"] in found["compiled"]
    monkeypatch.setattr(native, "library", lambda: (None, "no compiler was found"))
    kernels.use("auto")
    words = run("doctor").output
    assert "plain modules" in words
    assert words.endswith("missing     no compiler was found\n")


def test_data_check_and_cache(data: Path) -> None:
    (data / "class0/broken.png").write_bytes(b"no picture")
    found = json.loads(run("data", "check", data, "--json").output)
    assert [item["path"] for item in found["unreadable"]] == ["class0/broken.png"]
    assert "class0/broken.png" in run("data", "check", data).output
    assert run("cache", "clear").output.startswith("freed ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("info", "efficientnet_bo"), "nearest names: efficientnet_b"),
        (("info", "efficientnet_b0", "--resolution", "0"), "0 is not in the range"),
        (("train",), "Give a folder of pictures"),
        (("train", "/nowhere"), "does not exist"),
        (("train", "/nowhere", "--budget", "soon"), "no time"),
        (("train", "/nowhere", "--epochs", "-1"), "-1 is not in the range"),
        (("train", "--resume", "/nowhere"), "no run to take it from"),
        (("train", "--resume", "/nowhere", "--epochs", "3"), "no effect beside --resume"),
        (("train", "/x", "--config", "/y", "--seed", "3"), "no effect beside --config"),
        (("train", "/x", "--config", "/y", "--set", "a=3"), "--set has no effect beside --config"),
        (("train", "/x", "--recipe", "scratch_smal"), "did you mean scratch_small"),
        (("recipe", "show", "finetun"), "did you mean finetune"),
        (("recipe", "show", "finetune", "--set", "clip=1"), "did you mean optimizer.clip"),
        (("replay", "/nowhere"), "no run to take it from"),
        (("lr-find", "/nowhere"), "does not exist"),
        (("eval", "efficientnet_b0", "/nowhere"), "without weights"),
        (("predict", "no_such_net", __file__), "no_such_net"),
        (("predict", "efficientnet_lite0"), "Missing argument"),
        (("data", "check", "/nowhere"), "does not exist"),
    ],
)
def test_a_mistake_gets_a_sentence_and_exit_code_2(args: tuple[str, ...], words: str) -> None:
    done = run(*args)
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output


def test_a_file_that_is_no_model(tmp_path: Path, data: Path) -> None:
    wrong = tmp_path / "model.safetensors"
    wrong.write_text("hello")
    for args in (("eval", wrong, data), ("predict", wrong, data), ("info", wrong)):
        done = run(*args)
        assert done.exit_code == 2, done.output
        assert done.output.startswith("error: ")
        assert done.output.count("\n") == 1
