"""The fastest build that keeps its accuracy: measured, held against the bound, or told why not."""

import copy
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from images import photo
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.export import build, fastest, onnx_graph
from mbconv.export.build import Build, Job
from mbconv.export.fastest import BATCH, Call, Candidate, Timings, export_fastest
from mbconv.export.run import export_model
from mbconv.kernels.native import processor_features
from mbconv.measure.speed import Timing, warm_up
from mbconv.nn import model as networks
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing
from mbconv.report.export import fastest_lines
from mbconv.runtime.artifact import Entry, Form, Runtime
from mbconv.runtime.predictor import Predictor
from mbconv.weights.file import save
from small import SMALL

for library in ("onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino"):
    pytest.importorskip(library)
PICTURES = [photo(i) for i in range(24)]
FLOATS = (("torch", "float32"), ("onnx", "float32"), ("openvino", "float32"))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MBConvNet:
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    network = networks.build(SMALL).eval()
    with torch.no_grad():
        network.head.classifier.weight.mul_(50)
    network.labels = tuple("abcd")
    return network


@pytest.fixture
def data(model: MBConvNet, tmp_path: Path) -> Path:
    """Pictures in the folders of the model's own answers, so that it is always right."""
    root = tmp_path / "data"
    for number, answer in enumerate(Predictor(model).predict(PICTURES)):
        for split in ("train", "test"):
            folder = root / split / answer.labels[0]
            folder.mkdir(parents=True, exist_ok=True)
            PICTURES[number].save(folder / f"{number}.png")
    return root


def as_if(speeds: dict[str, float]) -> object:
    """Timings that are known: seconds of a call by the beginning of a candidate's name."""

    def time_all(candidates: list[Candidate], *_: object) -> Timings:
        found: Timings = {}
        for c in candidates:
            usual = next((s for name, s in speeds.items() if c.name.startswith(name)), 9.0)
            for piece in c.backends:
                slower = {None: 1.0, 1: 0.5, 4: 0.7}[piece]
                call = Timing(rounds=((usual * slower,),) * 6, noise=1.0, first=1.0)
                found[(c, piece, BATCH)] = call
                if piece is None:
                    found[(c, None, 1)] = call
        return found

    return time_all


def briefly(tasks: Iterable[Call], *_: object, **__: object) -> dict[Call, Timing]:
    """Real times of real calls, without rounds in turn."""
    found = {}
    for task in tasks:
        first, usual = warm_up(task, limit=0.1)
        found[task] = Timing(rounds=((usual,),) * 6, noise=1.0, first=first)
    return found


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_pieces_are_put_together_in_order(
    model: MBConvNet, tmp_path: Path, runtime: Runtime
) -> None:
    form = Form(runtime=runtime, piece=2)
    done = export_model(model, tmp_path / "a", form=form)
    predictor = Predictor(done.paths["tensor"], batch_size=5)
    assert predictor.artifact is not None
    assert predictor.artifact.form.piece == 2
    exact = np.stack([o.logits for o in Predictor(model).logits(PICTURES) if o.logits is not None])
    got = np.stack([o.logits for o in predictor.logits(PICTURES) if o.logits is not None])
    np.testing.assert_allclose(got, exact, atol=1e-4 * np.abs(exact).max())
    whole = Predictor(done.paths["pictures"]).artifact
    assert whole is not None
    assert whole.form.piece is None


def test_the_fastest_is_kept(
    model: MBConvNet, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "_FORMS", FLOATS[1:])
    monkeypatch.setattr(fastest, "PIECES", (2,))
    monkeypatch.setattr(fastest, "measure", briefly)
    done = export_fastest(model, tmp_path / "f", data=data, goal="throughput", max_drop=5)
    speeds = {
        r.detail["candidate"]: r.value
        for r in done.records
        if r.name == "throughput" and "artifact" not in r.detail
    }
    (chosen,) = (r for r in done.records if r.name == "throughput" and r.detail["chosen"])
    assert len(speeds) == 2
    assert chosen.value == max(speeds.values()) > 0
    assert chosen.detail["drop"] == 0
    artifact = Predictor(done.exported.paths["tensor"]).artifact
    assert artifact is not None
    assert chosen.detail["candidate"] == Build(artifact.form, None).name
    assert artifact.form.piece == chosen.detail["piece"]
    starred = [line for line in fastest_lines(done.records) if line.startswith("*")]
    assert len(starred) == 1
    assert chosen.detail["candidate"] in starred[0]


def test_int8_is_timed_though_its_accuracy_is_known(
    model: MBConvNet, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers were chosen by the guard; what is opened to be timed is not asked again."""
    pytest.importorskip("nncf")
    monkeypatch.setattr(fastest, "_FORMS", (("openvino", "int8"),))
    monkeypatch.setattr(fastest, "time_all", as_if({"OpenVINO, int8": 0.001}))
    done = export_fastest(model, tmp_path / "f", data=data, max_drop=50, pictures=False)
    assert done.exported.form == Form(runtime="openvino", precision="int8")
    assert not [r for r in done.records if r.name == "build"]


@pytest.mark.slow
def test_every_runtime_and_number_format_is_measured(
    model: MBConvNet, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setattr(fastest, "time_all", as_if({"ONNX Runtime, int8": 0.001}))
    done = export_fastest(model, tmp_path / "f", data=data, max_drop=50)
    assert done.exported.form == Form(runtime="onnx", precision="int8")
    failures = [r.detail["error"] for r in done.records if r.name == "build"]
    assert all("bfloat16 instructions" in error for error in failures)
    fewer = 0 if {"avx512_bf16", "amx_bf16", "bf16"} & processor_features() else 1
    assert len({r.detail["candidate"] for r in done.records}) == 9 - fewer, "torch eager, bfloat16"


def test_what_loses_too_much_is_passed_over(
    model: MBConvNet, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = build.make

    def wrong(job: Job, form: Form, entries: Sequence[Entry]) -> Build:
        """ONNX answers what the network does not."""
        if form.runtime == "onnx":
            network = copy.deepcopy(job.source)
            with torch.no_grad():
                network.head.classifier.weight.neg_()
            job = Job(network, job.preprocessing, job.provenance)
        return right(job, form, entries)

    monkeypatch.setattr(build, "make", wrong)
    monkeypatch.setattr(fastest, "_FORMS", FLOATS)
    speeds = {"torch eager": 0.001, "ONNX": 0.002, "OpenVINO": 0.003, "torch": 0.004}
    monkeypatch.setattr(fastest, "time_all", as_if(speeds))
    done = export_fastest(model, tmp_path / "f", data=data, goal="throughput", max_drop=5)
    assert done.exported.form == Form(runtime="openvino", piece=1)
    drops = {r.detail["candidate"]: r.detail.get("drop") for r in done.records}
    assert drops["ONNX Runtime, float32"] > 0.5
    assert drops["OpenVINO, float32"] == 0
    assert drops["torch, float32"] is None  # slower: nobody asked
    lines = list(fastest_lines(done.records))
    assert lines[1].startswith("  torch eager")
    assert "no artifact" in lines[1]
    alone = export_fastest(model, tmp_path / "l", data=data, max_drop=5)
    assert alone.exported.form == Form(runtime="openvino")
    monkeypatch.setattr(fastest, "_FORMS", FLOATS[1:2])
    with pytest.raises(UserError, match="No build keeps its accuracy"):
        export_fastest(model, tmp_path / "n", data=data, max_drop=5)
    assert not list(tmp_path.glob("n*"))


def test_preprocessing_inside_that_loses_too_much_is_passed_over(
    model: MBConvNet, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = onnx_graph.with_pictures

    def blind(graph: Any, preprocessing: Preprocessing, batch: int | None) -> Any:
        return right(graph, replace(preprocessing, std=(1e4, 1e4, 1e4)), batch)

    monkeypatch.setattr(onnx_graph, "with_pictures", blind)
    monkeypatch.setattr(fastest, "_FORMS", FLOATS)
    monkeypatch.setattr(fastest, "time_all", as_if({"ONNX": 0.001, "OpenVINO": 0.002}))
    done = export_fastest(model, tmp_path / "f", data=data, max_drop=5)
    assert done.exported.form == Form(runtime="openvino")
    assert sorted(done.exported.paths) == ["pictures", "tensor"]
    about = {r.detail["candidate"]: r.detail for r in done.records}
    assert about["ONNX Runtime, float32"]["drop"] > 0.05, "that of pictures"
    assert not about["ONNX Runtime, float32"]["chosen"]
    assert about["OpenVINO, float32"]["chosen"]
    assert not list(tmp_path.glob("*.onnx"))
    plain = export_fastest(model, tmp_path / "t", data=data, max_drop=5, pictures=False)
    assert plain.exported.form == Form(runtime="onnx")
    with pytest.raises(UserError, match="in ONNX Runtime, float32 and preprocessing inside"):
        export_model(model, tmp_path / "n", data=data, max_drop=5)


def test_the_command_says_what_is_missing(
    model: MBConvNet, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(fastest, "_FORMS", FLOATS)
    monkeypatch.setattr(fastest, "time_all", as_if({}))
    file = tmp_path / "m.safetensors"
    save(model, file)
    done = CliRunner().invoke(main, ["export", str(file), "--fastest", "--data", str(data)])
    assert done.exit_code == 0, done.output
    assert "ONNX Runtime, float32: " in done.output
    assert done.output.count("pip install") == 2
    assert (tmp_path / "m.pt2").is_file()


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (["--fastest"], "needs --data"),
        (["--for", "latency"], "belongs to --fastest"),
        (["--fastest", "--int8", "--data", "x"], "chooses --format"),
    ],
)
def test_wishes_that_contradict(wishes: list[str], words: str) -> None:
    done = CliRunner().invoke(main, ["export", "efficientnet_lite0", *wishes])
    assert done.exit_code == 2
    assert words in done.output


def test_a_format_is_not_asked_for(model: MBConvNet, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="what is chosen here; leave out"):
        export_fastest(model, tmp_path / "f.xml", data=data)
    assert not (tmp_path / "f.xml").exists()
