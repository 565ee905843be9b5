"""The model file: what is written comes back, and everything broken gets a sentence."""

import hashlib
import json
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from golden.make import pictures
from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet, build
from mbconv.preprocessing import Preprocessing
from mbconv.weights import file
from strategies import specs

GOLDEN = Path(__file__).parent / "golden"
TINY = Spec(
    name="tiny",
    stages=(Stage(blocks=(Block(channels=4, expand=2, gate="se"), Block(channels=4, expand=1))),),
    resolution=16,
    num_classes=3,
    stem_channels=4,
    head_channels=8,
)


def tiny(seed: int = 0) -> MBConvNet:
    torch.manual_seed(seed)
    model = build(TINY)
    for _ in range(2):
        model(torch.randn(4, 3, 16, 16))  # moves the running statistics away from 0 and 1
    model.labels = ("ant", "bee", "çigale")
    model.preprocessing = Preprocessing(resolution=16, resize=20, mean=(0.1, 0.2, 0.3))
    return model.eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    file.save(tiny(), path, {"run": "x"})
    return path


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes, read by the format's definition, without the library."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewrite(
    path: Path,
    about: Callable[[dict[str, Any]], object] | None = None,
    tensors: Callable[[dict[str, torch.Tensor]], object] | None = None,
) -> None:
    """Change the description or the tensors in place; the checksum follows the tensors."""
    with safe_open(path, framework="pt") as opened:
        content = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        data = json.loads(opened.metadata()["mbconv"])
    if tensors:
        tensors(content)
        data["sha256"] = file.tensor_hash(content)
    if about:
        about(data)
    save_file(content, path, {"mbconv": json.dumps(data)})


def test_everything_comes_back(path: Path) -> None:
    model, loaded = tiny(), file.load(path)
    assert loaded.spec == TINY
    assert loaded.labels == ("ant", "bee", "çigale")
    assert loaded.preprocessing == model.preprocessing
    assert loaded.provenance == {"run": "x"}
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(x), model(x))


def test_loaded_tensors_are_the_models_own(path: Path) -> None:
    loaded = file.load(path)
    path.write_bytes(bytes(path.stat().st_size))  # a map onto the file would show it
    assert torch.equal(loaded.stem.conv.weight, tiny().stem.conv.weight)


def test_loading_leaves_the_random_generator_alone(path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    file.load(path)
    assert torch.equal(torch.rand(4), expected)


@settings(max_examples=20)
@given(spec=specs())
def test_any_spec_comes_back(tmp_path_factory: pytest.TempPathFactory, spec: Spec) -> None:
    path = str(tmp_path_factory.mktemp("any") / "model.safetensors")
    model = build(spec)
    file.save(model, path)
    loaded = file.load(path)
    assert loaded.spec == spec
    assert loaded.labels is None
    own, back = model.state_dict(), loaded.state_dict()
    assert own.keys() == back.keys()
    assert all(torch.equal(own[name], back[name]) for name in own)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_in_the_file_and_widened_on_loading(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model = tiny().to(dtype)
    file.save(model, tmp_path / "half.safetensors")
    kinds = {v["dtype"] for k, v in header(tmp_path / "half.safetensors")[0].items() if "." in k}
    assert kinds == {"BF16" if dtype == torch.bfloat16 else "F16", "I64"}
    loaded = file.load(tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(x), model.float()(x))


def test_hash_is_the_documented_one(path: Path) -> None:
    entries, data = header(path)
    about = json.loads(entries.pop("__metadata__")["mbconv"])
    dtypes = {"F32": "float32", "I64": "int64"}
    digest = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        start, end = entry["data_offsets"]
        digest.update(f"{name} {dtypes[entry['dtype']]} {entry['shape']}\n".encode())
        digest.update(data[start:end])
    assert about["sha256"] == digest.hexdigest() == file.save(tiny(), path)
    assert set(about) == {"format", "spec", "labels", "preprocessing", "provenance", "sha256"}
    assert about["format"] == 1


def test_hash_belongs_to_the_tensors_alone(tmp_path: Path) -> None:
    digest = file.save(tiny(), tmp_path / "a.safetensors", {"run": 1})
    model = tiny().to(memory_format=torch.channels_last)
    model.labels = None
    assert file.save(model, tmp_path / "b.safetensors", {"run": 2}) == digest
    with torch.no_grad():
        model.stem.conv.weight[0, 0, 0, 0] += 1e-3
    assert file.save(model, tmp_path / "c.safetensors") != digest


def test_provenance_travels_unless_replaced(path: Path, tmp_path: Path) -> None:
    model = file.load(path)
    file.save(model, tmp_path / "again.safetensors")
    assert file.load(tmp_path / "again.safetensors").provenance == {"run": "x"}
    file.save(model, tmp_path / "other.safetensors", {})
    assert file.load(tmp_path / "other.safetensors").provenance == {}


def test_files_of_format_1_load_for_ever() -> None:
    expected = json.loads((GOLDEN / "format1.json").read_text(encoding="utf-8"))
    model = file.load(GOLDEN / "format1.safetensors")
    with torch.inference_mode():
        logits = model(pictures())
    wanted = torch.tensor(expected["logits"])
    assert (logits - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert file.tensor_hash(model.state_dict()) == expected["sha256"]
    assert model.spec.hash == expected["spec_hash"]
    assert model.labels == ("a", "zèbre", "猫")
    assert model.preprocessing == Preprocessing(
        resolution=32,
        resize=40,
        interpolation="bilinear",
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )
    assert model.provenance == {"made_by": "tests/golden/make.py"}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        file.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def flip_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: p.unlink(), "does not exist"),
        (lambda p: (p.unlink(), p.mkdir()), "is a folder"),
        (lambda p: p.write_bytes(b""), "no model file"),
        (lambda p: p.write_text("epoch,loss\n1,0.5\n" * 50), "no model file"),
        (lambda p: p.write_bytes(pickle.dumps({"a": [1.0] * 99})), "no model file"),
        (lambda p: torch.save({"a": torch.ones(9)}, p), "no model file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "cut off"),
        (lambda p: p.write_bytes(p.read_bytes()[:-2000]), "cut off"),
        (lambda p: p.write_bytes(p.read_bytes()[:500]), "cut off"),
        (flip_a_weight, "damaged.*checksum"),
        (lambda p: save_file({"a": torch.ones(2)}, p), "mbconv did not write"),
        (lambda p: save_file({"a": torch.ones(2)}, p, {"mbconv": "{oh"}), "broken"),
        (lambda p: save_file({"a": torch.ones(2)}, p, {"mbconv": "[]"}), "no format number"),
        (lambda p: save_file({"a": torch.ones(2)}, p, {"mbconv": "[" * 10**5}), "broken"),
    ],
)
def test_what_is_no_model_file(path: Path, change: Callable[[Path], object], expected: str) -> None:
    change(path)
    with pytest.raises(UserError, match=expected):
        file.load(path)
    refusal(path)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"format": 2}, "newer mbconv.*Upgrade"),
        ({"format": None}, "no format number"),
        ({"format": 0}, "no format number"),
        ({"sha256": None}, "damaged"),
        ({"spec": None}, "spec"),
        ({"spec": {"stages": [[{"channels": -1}]]}}, "channels"),
        ({"spec": {"stages": [[{"channels": 2**31 - 1}] * 2], "num_classes": 3}}, "too large"),
        ({"spec": {**TINY.to_dict(), "head_channels": 10**9}}, "shape"),
        ({"labels": ["ant", "bee"]}, "2 labels for 3 classes"),
        ({"labels": "ant"}, "list of class names"),
        ({"labels": [1, 2, 3]}, "list of class names"),
        ({"preprocessing": {"resolution": 0}}, "resolution"),
        ({"preprocessing": {"resolution": "large"}}, "broken"),
        ({"preprocessing": {"size": 3}}, "fields"),
        ({"preprocessing": []}, "fields"),
        ({"provenance": 3}, "provenance"),
    ],
)
def test_descriptions_that_make_no_sense(path: Path, about: dict[str, Any], expected: str) -> None:
    rewrite(path, about=lambda data: data.update(about))
    with pytest.raises(UserError, match=expected):
        file.load(path)
    refusal(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("stem.conv.weight"), "missing stem.conv.weight"),
        (lambda t: [t.pop(k) for k in list(t) if "gate" in k], "gate.*and 1 more"),
        (lambda t: t.update(extra=torch.ones(1)), "no place for extra"),
        (
            lambda t: t.update({"head.classifier.bias": torch.ones(4)}),
            r"head.classifier.bias has the shape \[4\] instead of \[3\]",
        ),
        (
            lambda t: t.update({"head.classifier.bias": torch.ones(3, dtype=torch.int32)}),
            "head.classifier.bias is torch.int32",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_spec(
    path: Path, change: Callable[[dict[str, torch.Tensor]], object], expected: str
) -> None:
    rewrite(path, tensors=change)
    with pytest.raises(UserError, match=expected):
        file.load(path)
    refusal(path)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_never_crashes_or_changes_weights(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = GOLDEN / "format1.safetensors"
    whole, content = file.load(path).state_dict(), bytearray(path.read_bytes())
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    try:
        loaded = file.load(path).state_dict()
    except UserError:
        return
    # What still loads had a letter of a label changed, or the like.
    assert all(torch.equal(whole[name], loaded[name]) for name in whole)


@pytest.mark.parametrize(
    "message",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No ..." })',
    ],
)
def test_a_full_disk_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise SafetensorError(message)

    monkeypatch.setattr(file, "save_file", full)
    with pytest.raises(UserError, match="disk is full"):
        file.save(tiny(1), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_the_system_stops_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"Cannot write .*File too large"):
            file.save(tiny(1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_written_that_could_not_be_loaded(tmp_path: Path) -> None:
    model = tiny()
    model.labels = ("ant",)
    with pytest.raises(UserError, match="1 labels for 3 classes"):
        file.save(model, tmp_path / "model.safetensors")
    model = tiny()
    model.head.classifier = torch.nn.Linear(8, 4)
    with pytest.raises(UserError, match=r"head\.classifier\.weight has the shape"):
        file.save(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
