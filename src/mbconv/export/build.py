"""A network built for a runtime: its graph, its file, and what the guard says of it."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mbconv.errors import UserError
from mbconv.export import executorch_program, network, onnx_graph, openvino_graph, quantize
from mbconv.export.distil import distil
from mbconv.export.guard import Guard
from mbconv.export.preprocessing_graph import preprocessing_graph
from mbconv.export.sensitive import LARGEST_SHARE, fewest, most_sensitive
from mbconv.kernels.native import processor_features
from mbconv.measure.paired import Paired
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing
from mbconv.runtime.artifact import SUFFIXES, Artifact, Entry, Form
from mbconv.runtime.predictor import Logits, Predictor

NAMES = {
    "torch": "torch", "onnx": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch"
}  # fmt: skip
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
_VNNI = ("avx512_vnni", "avx_vnni", "asimddp")


class Refused(UserError):
    """What the guard did not let pass; `comparison` says by how much."""

    def __init__(self, sentence: str, comparison: Paired) -> None:
        super().__init__(sentence)
        self.comparison = comparison


@dataclass(frozen=True)
class Job:
    """What is to be shipped; without a guard nothing is measured."""

    source: MBConvNet
    preprocessing: Preprocessing
    provenance: dict[str, Any]
    guard: Guard | None = None

    def reader(self) -> Predictor:
        """The network itself, as the reference and to prepare pictures."""
        return Predictor(self.source, preprocessing=self.preprocessing)


@dataclass(frozen=True)
class Build:
    """What the format's own module writes: a program of torch, an ONNX or an OpenVINO model.

    `in_float` names the layers that INT8 would have harmed too much; `distilled`: the weights have
    learnt to bear it. `comparisons` is what the guard found for the entries that it was asked
    about before.
    """

    form: Form
    graph: Any
    in_float: tuple[str, ...] = ()
    distilled: bool = False
    comparisons: Mapping[Entry, Paired] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{NAMES[self.form.runtime]}, {self.form.precision}"


def check(form: Form) -> None:
    """Raise UserError for forms that no runtime here computes."""
    if form.batch is not None and form.batch < 1:
        raise UserError(f"The batch is {form.batch}; give 1 or more, or dynamic.")
    if form.precision == "int8" and form.runtime == "torch":
        raise UserError("INT8 is for onnx, openvino and executorch; choose one of these.")
    if form.precision == "bfloat16" and form.runtime in ("onnx", "executorch"):
        name = NAMES[form.runtime]
        raise UserError(f"{name} computes no bfloat16 on CPUs; choose torch or openvino.")
    if form.precision == "bfloat16" and form.runtime == "openvino":
        check_bfloat16()


def check_bfloat16() -> None:
    """Raise UserError where the processor is known to have no instructions for bfloat16."""
    features = processor_features()
    if features and not features & set(_BFLOAT16):
        raise UserError("This processor has no bfloat16 instructions; export in float32.")


def make(job: Job, form: Form, entries: Sequence[Entry] = ("tensor",)) -> Build:
    """Build `form`; INT8 with as few layers in floating point as the guard's bound asks for, in
    all of the `entries` that are to be written.

    Raises UserError for INT8 that does not keep the bound, and where a library is missing.
    """
    if form.precision == "int8":
        return _quantised(job, form, entries)
    return Build(form, _graph(job, form))


def _graph(job: Job, form: Form) -> Any:
    """The network in the format of the runtime, INT8's before anything is rounded."""
    side = job.preprocessing.resolution
    if form.runtime == "torch":
        return network.trace(job.source, side, batch=form.batch, precision=form.precision)
    program = network.trace(job.source, side, batch=form.batch)
    if form.runtime == "executorch":
        return executorch_program.convert(program, form.batch)
    graph = onnx_graph.convert(program)
    return openvino_graph.convert(graph) if form.runtime == "openvino" else graph


def write(job: Job, build: Build, path: Path) -> Paired | None:
    """Write the build to `path` and hold it against the network, where there is a guard.

    Raises Refused for what the guard refuses.
    """
    found = _measured(job, build, path)
    if found is None or job.guard is None:
        return found
    if not job.guard.accepts(found):
        raise Refused(_refusal(job.guard, build, found), found)
    _write(job, build, path, _accuracy(found, job.guard))
    return found


def _quantised(job: Job, form: Form, entries: Sequence[Entry]) -> Build:
    assert job.guard is not None, "INT8 is calibrated on the guard's pictures"
    batches = quantize.calibration_batches(job.reader(), job.guard.calibration, form.batch)
    plain = _Search(job, form, batches, entries)
    found = plain.best()
    if found is not None:
        return found
    learnt = replace(job, source=distil(job.source, batches))
    again = _Search(learnt, form, batches, entries)
    found = again.best()
    if found is None:
        raise UserError(
            f"{plain.refusal} {plain.rest}, and with weights that were taught to bear it "
            f"{again.rest[0].lower()}{again.rest[1:]}."
        )
    return replace(found, distilled=True)


class _Search:
    """INT8 of one network with as few layers in floating point as the guard's bound asks for."""

    def __init__(
        self, job: Job, form: Form, batches: Sequence[Logits], entries: Sequence[Entry]
    ) -> None:
        assert job.guard is not None
        self.job, self.guard, self.form = job, job.guard, form
        self.batches, self.entries = batches, entries
        self.graph = _graph(job, form)
        self.ranked: list[str] = []
        self.tried: dict[int, Build] = {}

    def best(self) -> Build | None:
        """None where half of the layers are not enough."""
        if self._enough(0):
            return self.tried[0]
        self.ranked = most_sensitive(self.job.source, self.batches)
        count = fewest(int(LARGEST_SHARE * len(self.ranked)), self._enough)
        return None if count is None else self.tried[count]

    @property
    def refusal(self) -> str:
        """What INT8 throughout would lose."""
        entry, comparison = list(self.tried[0].comparisons.items())[-1]
        return _refusal(self.guard, of_entry(self.tried[0], entry), comparison)

    @property
    def rest(self) -> str:
        """What it loses with the most layers in floating point."""
        most = max(self.tried)
        drop = list(self.tried[most].comparisons.values())[-1].drop
        return (
            f"With {most} of {len(self.ranked)} layers in floating point it still loses "
            f"{100 * drop:.1f} points"
        )

    def _enough(self, count: int) -> bool:
        chosen = tuple(self.ranked[:count])
        build = Build(self.form, _rounded(self.graph, self.form, self.batches, chosen), chosen)
        found: dict[Entry, Paired] = {}
        self.tried[count] = replace(build, comparisons=found)
        with tempfile.TemporaryDirectory() as folder:
            suffix = next(s for s, runtime in SUFFIXES.items() if runtime == self.form.runtime)
            for entry in self.entries:
                path = Path(folder) / f"{entry}{suffix}"
                comparison = _measured(self.job, of_entry(build, entry), path)
                assert comparison is not None
                found[entry] = comparison
                if not self.guard.accepts(comparison):
                    return False
        return True


def _rounded(graph: Any, form: Form, batches: Sequence[Logits], in_float: Sequence[str]) -> Any:
    if form.runtime == "executorch":
        return executorch_program.quantize(graph, form.batch, batches, in_float)
    return quantize.quantize(graph, form.runtime, batches, in_float)


def _measured(job: Job, build: Build, path: Path) -> Paired | None:
    """Write the build and run it over the guard's pictures, unless that was done before."""
    _write(job, build, path, None)
    known = build.comparisons.get(build.form.entry)
    if job.guard is None or known is not None:
        return known
    return job.guard.compare(Predictor(path, trust=True))


def _write(job: Job, build: Build, path: Path, accuracy: dict[str, Any] | None) -> None:
    form, graph, preprocessing = build.form, build.graph, job.preprocessing
    exported = {
        **job.provenance["exported"],
        "in_float": list(build.in_float),
        "distilled": build.distilled,
    }
    text = Artifact(
        form=form, spec=job.source.spec, labels=job.source.labels, preprocessing=preprocessing,
        provenance={**job.provenance, "exported": exported}, accuracy=accuracy, needs=_needs(form),
    ).to_json()  # fmt: skip
    if form.runtime == "torch":
        network.write(graph, path, text)
    elif form.runtime == "executorch":
        executorch_program.write(graph, path, text)
    elif form.runtime == "onnx":
        if form.entry == "pictures":
            graph = onnx_graph.with_pictures(graph, preprocessing, form.batch)
        onnx_graph.write(graph, path, text)
    else:
        if form.entry == "pictures":
            first = preprocessing_graph(preprocessing, form.batch, ir=10, opset=20)
            graph = openvino_graph.with_pictures(graph, openvino_graph.convert(first))
        openvino_graph.write(graph, path, text)


def of_entry(build: Build, entry: Entry) -> Build:
    """The same for another entry. Pictures may differ in size, so each call takes them whole."""
    if entry == "tensor":
        return build
    return replace(build, form=replace(build.form, entry=entry, piece=None))


def _refusal(guard: Guard, build: Build, comparison: Paired) -> str:
    low, high = comparison.interval
    inside = " and preprocessing inside" if build.form.entry == "pictures" else ""
    return (
        f"Nothing was written: in {build.name}{inside}, it names {comparison.second:.1%} of "
        f"{comparison.n:,} pictures correctly and the network {comparison.first:.1%}, a drop of "
        f"{100 * comparison.drop:.1f} points (95% interval {100 * low:.1f} to {100 * high:.1f}) "
        f"where {100 * guard.max_drop:g} are allowed."
    )


def _accuracy(comparison: Paired, guard: Guard) -> dict[str, Any]:
    low, high = comparison.interval
    return {
        **asdict(comparison), "drop": comparison.drop, "low": low, "high": high,
        "data": guard.task.source, "split": guard.task.split,
    }  # fmt: skip


def _needs(form: Form) -> tuple[str, ...]:
    """Features of this processor that speed and measured answers depend on."""
    if form.precision == "bfloat16" and form.runtime == "openvino":
        return _BFLOAT16
    # Without these, some processors add INT8 products in 16 bits, which can overflow; XNNPACK
    # never does.
    adds_less = form.precision == "int8" and form.runtime != "executorch"
    return _VNNI if adds_less and set(_VNNI) & processor_features() else ()
