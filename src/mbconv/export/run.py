"""The public door: a network becomes an artifact, once the guard has let it pass."""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mbconv.errors import UserError
from mbconv.export import build
from mbconv.export.build import Build, Job
from mbconv.export.guard import make_guard
from mbconv.files import atomic_path
from mbconv.measure.paired import Paired
from mbconv.nn.model import MBConvNet
from mbconv.record import environment
from mbconv.runtime import program
from mbconv.runtime.artifact import SUFFIXES, Entry, Form, files_of
from mbconv.weights.file import tensor_hash
from mbconv.weights.model import load

_EMBEDDING = ("onnx", "openvino")  # whose graphs can hold the preprocessing


@dataclass(frozen=True)
class Exported:
    """The artifacts by their entry, how they compute, and what the guard found for each.

    `in_float` names the layers that INT8 leaves in floating point; `distilled`: its weights have
    learnt the network's answers anew.
    """

    paths: dict[str, Path]
    form: Form
    comparisons: dict[str, Paired]
    warnings: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    distilled: bool = False


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
    `max_drop` percentage points; INT8 leaves as few layers in floating point as that takes.
    `resolution` overrides the preprocessing's. `pictures` writes a
    second artifact beside the first that takes pictures of any size; by default for onnx and
    openvino. `out` is the file, with or without its suffix; by default the name lies in the run
    folder, beside the model file, or here. Raises UserError for all that cannot be had, with
    nothing written.
    """
    form = form or Form(runtime="onnx")
    source = model if isinstance(model, MBConvNet) else load(model)
    path = path_of(model, out, form)
    chosen = entries(form, source, pictures)
    build.check(form)
    if form.precision == "int8" and data is None:
        raise UserError("INT8 is calibrated on training pictures; name them with --data.")
    job = make_job(model, source, resolution, data, max_drop, calibrate=form.precision == "int8")
    return ship(job, build.make(job, form, chosen), path, chosen)


def make_job(
    model: object,
    source: MBConvNet,
    resolution: int | None,
    data: str | Path | None,
    max_drop: float,
    *,
    calibrate: bool,
) -> Job:
    """`source`, which `model` was loaded as, with its guard where there are pictures."""
    preprocessing = source.preprocessing.at(resolution or source.preprocessing.resolution)
    job = Job(source, preprocessing, _provenance(model, source))
    if data is None:
        return job
    guard = make_guard(job.reader(), data, max_drop / 100, calibrate=calibrate)
    return replace(job, guard=guard)


def entries(form: Form, source: MBConvNet, pictures: bool | None) -> tuple[Entry, ...]:
    """What the artifacts are to take. UserError for pictures where they cannot go in."""
    if pictures is None:
        pictures = form.runtime in _EMBEDDING and source.spec.in_channels == 3
    if pictures and form.runtime not in _EMBEDDING:
        raise UserError("Preprocessing goes into onnx and openvino artifacts only; leave it out.")
    if pictures and source.spec.in_channels != 3:
        raise UserError(
            f"This network takes {source.spec.in_channels} channels and pictures have three; "
            "export it with --no-embed-preprocessing."
        )
    return ("tensor", "pictures") if pictures else ("tensor",)


def ship(job: Job, made: Build, path: Path, chosen: Sequence[Entry]) -> Exported:
    """Write the build's files, all of them or none, once the guard has let each pass."""
    found: dict[str, Paired] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {entry: Path(folder) / _named(path, entry).name for entry in chosen}
        for entry, file in files.items():
            comparison = build.write(job, build.of_entry(made, entry), file)
            if comparison is not None:
                found[entry] = comparison
        _place(files, path.parent)
    paths: dict[str, Path] = {entry: _named(path, entry) for entry in chosen}
    if made.form.runtime == "torch":
        program.remember(path)
    told = [job.guard.warning(comparison) for comparison in found.values()] if job.guard else []
    warnings = tuple(dict.fromkeys(t for t in told if t))
    return Exported(paths, made.form, found, warnings, made.in_float, made.distilled)


def _provenance(model: object, source: MBConvNet) -> dict[str, Any]:
    made = {
        "weights_sha256": tensor_hash(source.state_dict()),
        "spec_hash": source.spec.hash,
        "environment": environment(),
    }
    if isinstance(model, str | Path):
        made["from"] = Path(model).name
    return {**(source.provenance or {}), "exported": made}


def path_of(model: object, out: str | Path | None, form: Form) -> Path:
    """Where the artifact goes. UserError for another format's suffix, or no place at all."""
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
