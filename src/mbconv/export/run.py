"""The public door: a network becomes an artifact, once the guard has let it pass."""

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mbconv.errors import UserError
from mbconv.export import network, onnx_graph, openvino_graph, quantize
from mbconv.export.guard import Guard, make_guard
from mbconv.export.preprocessing_graph import preprocessing_graph
from mbconv.files import atomic_path
from mbconv.kernels.native import processor_features
from mbconv.measure.paired import Paired
from mbconv.nn.model import MBConvNet
from mbconv.record import environment
from mbconv.runtime import program
from mbconv.runtime.artifact import SUFFIXES, Artifact, Entry, Form, files_of
from mbconv.runtime.predictor import Predictor
from mbconv.weights.file import tensor_hash
from mbconv.weights.model import load

_VNNI = ("avx512_vnni", "avx_vnni", "asimddp")
_NAMES = {"torch": "torch", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Exported:
    """The artifacts by their entry, how they compute, and what the guard found for each."""

    paths: dict[str, Path]
    form: Form
    comparisons: dict[str, Paired]
    warnings: tuple[str, ...] = ()


def export_model(
    model: MBConvNet | str | Path,
    out: str | Path | None = None,
    *,
    form: Form | None = None,
    data: str | Path | None = None,
    max_drop: float = 0.5,
    resolution: int | None = None,
    pictures: bool | None = None,
) -> Exported:
    """Write `model` (a network, or what `mbconv.load` takes) as an artifact.

    `form` says runtime, precision and pictures a call; by default ONNX in float32 for any number.
    With `data` the guard measures the artifact in its runtime and refuses a drop of more than
    `max_drop` percentage points. `resolution` overrides the preprocessing's. `pictures` writes a
    second artifact beside the first that takes pictures of any size; by default for onnx and
    openvino. `out` is the file, with or without its suffix; by default the name lies in the run
    folder, beside the model file, or here. Raises UserError for all that cannot be had, with
    nothing written.
    """
    form = form or Form(runtime="onnx")
    source = model if isinstance(model, MBConvNet) else load(model)
    path = _path(model, out, form)
    entries: list[Entry] = ["tensor"]
    if pictures is None:
        pictures = form.runtime != "torch" and source.spec.in_channels == 3
    if pictures:
        entries.append("pictures")
    _check(form, entries, source, data)
    preprocessing = source.preprocessing.at(resolution or source.preprocessing.resolution)
    guard = None
    if data is not None:
        reference = Predictor(source, preprocessing=preprocessing)
        calibrate = form.precision == "int8"
        guard = make_guard(reference, data, max_drop / 100, calibrate=calibrate)
    graph = _graph(source, preprocessing, form, guard)
    artifact = Artifact(
        form=form,
        spec=source.spec,
        labels=source.labels,
        preprocessing=preprocessing,
        provenance=_provenance(model, source),
        needs=_needs(form),
    )
    with tempfile.TemporaryDirectory() as folder:
        built = {entry: Path(folder) / _named(path, entry).name for entry in entries}
        found: dict[str, Paired] = {}
        for entry, file in built.items():
            own = replace(artifact, form=replace(form, entry=entry))
            _write(graph, own, file)
            if guard is not None:
                found[entry] = _guarded(guard, file, own, path)
                _write(graph, replace(own, accuracy=_accuracy(found[entry], guard)), file)
        _place(built, path.parent)
    paths: dict[str, Path] = {entry: _named(path, entry) for entry in entries}
    if form.runtime == "torch":
        program.remember(path)
    told = [guard.warning(comparison) for comparison in found.values()] if guard else []
    return Exported(paths, form, found, tuple(dict.fromkeys(t for t in told if t)))


def _check(form: Form, entries: list[Entry], source: MBConvNet, data: object) -> None:
    if form.batch is not None and form.batch < 1:
        raise UserError(f"The batch is {form.batch}; give 1 or more, or dynamic.")
    if form.runtime == "torch" and "pictures" in entries:
        raise UserError("Preprocessing goes into onnx and openvino artifacts only; leave it out.")
    if "pictures" in entries and source.spec.in_channels != 3:
        raise UserError(
            f"This network takes {source.spec.in_channels} channels and pictures have three; "
            "export it with --no-embed-preprocessing."
        )
    if form.precision == "int8" and form.runtime == "torch":
        raise UserError("INT8 is for onnx and openvino; choose one of these formats.")
    if form.precision == "int8" and data is None:
        raise UserError("INT8 is calibrated on training pictures; name them with --data.")
    if form.precision == "bfloat16" and form.runtime == "onnx":
        raise UserError("ONNX Runtime computes no bfloat16 on CPUs; choose torch or openvino.")
    features = processor_features()
    halves = form.precision == "bfloat16" and form.runtime == "openvino"
    if halves and features and not features & set(_needs(form)):
        raise UserError("This processor has no bfloat16 instructions; export in float32.")


def _graph(source: MBConvNet, preprocessing: Any, form: Form, guard: Guard | None) -> Any:
    """What the format's own module writes: a program, an ONNX or an OpenVINO model."""
    if form.runtime == "torch":
        return network.trace(
            source, preprocessing.resolution, batch=form.batch, precision=form.precision
        )
    graph = onnx_graph.convert(network.trace(source, preprocessing.resolution, batch=form.batch))
    if form.runtime == "openvino":
        graph = openvino_graph.convert(graph)
    if form.precision == "int8":
        assert guard is not None
        reader = Predictor(source, preprocessing=preprocessing)
        batches = quantize.calibration_batches(reader, guard.calibration, form.batch)
        graph = quantize.quantize(graph, form.runtime, batches)
    return graph


def _write(graph: Any, artifact: Artifact, path: Path) -> None:
    form, text = artifact.form, artifact.to_json()
    if form.runtime == "torch":
        network.write(graph, path, text)
    elif form.runtime == "onnx":
        if form.entry == "pictures":
            graph = onnx_graph.with_pictures(graph, artifact.preprocessing, form.batch)
        onnx_graph.write(graph, path, text)
    else:
        if form.entry == "pictures":
            first = preprocessing_graph(artifact.preprocessing, form.batch, ir=10, opset=20)
            graph = openvino_graph.with_pictures(graph, openvino_graph.convert(first))
        openvino_graph.write(graph, path, text)


def _guarded(guard: Guard, file: Path, artifact: Artifact, path: Path) -> Paired:
    comparison = guard.compare(Predictor(file, trust=True))
    if guard.accepts(comparison):
        return comparison
    low, high = comparison.interval
    form = artifact.form
    raise UserError(
        f"{_named(path, form.entry)} was not written: in {_NAMES[form.runtime]}, {form.precision}, "
        f"it names {comparison.second:.1%} of {comparison.n:,} pictures correctly and the network "
        f"{comparison.first:.1%}, a drop of {100 * comparison.drop:.1f} points (95% interval "
        f"{100 * low:.1f} to {100 * high:.1f}) where {100 * guard.max_drop:g} are allowed."
    )


def _accuracy(comparison: Paired, guard: Guard) -> dict[str, Any]:
    low, high = comparison.interval
    return {
        **asdict(comparison), "drop": comparison.drop, "low": low, "high": high,
        "data": guard.task.source, "split": guard.task.split,
    }  # fmt: skip


def _provenance(model: object, source: MBConvNet) -> dict[str, Any]:
    made = {
        "weights_sha256": tensor_hash(source.state_dict()),
        "spec_hash": source.spec.hash,
        "environment": environment(),
    }
    if isinstance(model, str | Path):
        made["from"] = Path(model).name
    return {**(source.provenance or {}), "exported": made}


def _needs(form: Form) -> tuple[str, ...]:
    """Features of this processor that speed and measured answers depend on."""
    if form.precision == "bfloat16" and form.runtime == "openvino":
        return ("avx512_bf16", "amx_bf16", "bf16")
    # Without these, some processors add INT8 products in 16 bits, which can overflow.
    has_vnni = bool(set(_VNNI) & processor_features())
    return _VNNI if form.precision == "int8" and has_vnni else ()


def _path(model: object, out: str | Path | None, form: Form) -> Path:
    suffix = next(s for s, runtime in SUFFIXES.items() if runtime == form.runtime)
    if out is not None:
        path = Path(out)
        if path.suffix.lower() in SUFFIXES and path.suffix.lower() != suffix:
            raise UserError(f"{path}: what is made for {form.runtime} ends in {suffix}.")
        return path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)
    tag = "" if form.precision == "float32" else f"-{form.precision}"
    if not isinstance(model, str | Path):
        raise UserError("Say where the artifact is to be written: out=PATH.")
    path = Path(model)
    if path.is_dir():
        return path / f"model{tag}{suffix}"
    stem = path.stem if path.is_file() else str(model).replace(":", "_").replace("/", "_")
    return (path.parent if path.is_file() else Path()) / f"{stem}{tag}{suffix}"


def _named(path: Path, entry: Entry) -> Path:
    return path if entry == "tensor" else path.with_suffix(f".pictures{path.suffix}")


def _place(built: dict[Entry, Path], folder: Path) -> None:
    """All files of all entries, or none."""
    with ExitStack() as stack:
        for file in (part for path in built.values() for part in files_of(path)):
            shutil.copyfile(file, stack.enter_context(atomic_path(folder / file.name)))
