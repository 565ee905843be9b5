"""The command line: parse, import lazily, call one function. Nothing here imports torch."""

import json
import os
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mbconv.errors import UserError

if TYPE_CHECKING:
    from mbconv.arch.spec import Spec


class Commands(click.Group):
    """Turns a user's mistake into one sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            ctx.exit(130)


class Duration(click.ParamType[float]):
    """`90`, `90s`, `5m`, `1.5h`: seconds as a float."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value).strip())
        if not match or float(match[1]) == 0:
            self.fail(f"{value!r} is no time; write 90s, 5m or 1.5h.", param, ctx)
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mbconv")
def main() -> None:
    """MBConv networks that are efficient in milliseconds and megabytes.

    MODEL is a network's name (mbconv info lists them), timm:NAME, torchvision:NAME or
    hf-hub:OWNER/NAME, a spec.json, a model file (ours or Keras's), a run folder or a repository.
    """


def _go_offline(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        os.environ["HF_HUB_OFFLINE"] = "1"


offline = click.option(
    "--offline", is_flag=True, expose_value=False, callback=_go_offline,
    help="Download nothing; also HF_HUB_OFFLINE=1.",
)  # fmt: skip


@main.command()
@click.argument("model", required=False)
@click.option("--resolution", type=click.IntRange(min=1), help="Side of the picture, in pixels.")
@click.option("--phi", type=float, help="Scale up, or down where it is negative.")
@click.option(
    "--mode",
    type=click.Choice(["formula", "table"]),
    default="formula",
    show_default=True,
    help="What phi means: the paper's formula, or B0 to B8.",
)
@click.option("--width", type=float, help="Multiply the channels.")
@click.option("--depth", type=float, help="Multiply the blocks of each stage.")
@click.option("--divisor", type=click.IntRange(min=1), help="Round channels to multiples of it.")
@click.option("--output-stride", type=int, help="Dilate instead of reducing further: 8 or 16.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of the spec or of all blocks; repeatable.",
)
@click.option("--save", type=click.Path(path_type=Path), help="Write the spec, a MODEL, there.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
@click.option("--skips", is_flag=True, help="Which share of the blocks can skip, B0 to B7.")
@offline
def info(
    model: str | None,
    resolution: int | None,
    as_json: bool,
    skips: bool,
    save: Path | None,
    **shape: Any,
) -> None:
    """Show a network: its blocks and what each costs. Without MODEL: all networks.

    \b
    mbconv info efficientnet_b0 --phi -1.5
    mbconv info efficientnet_b0 --set gate=null --set activation=relu6 --save my.json
    """
    from mbconv.arch.zoo import get_spec, list_specs
    from mbconv.files import write_text
    from mbconv.report import network

    if skips:
        specs = [get_spec(f"efficientnet_b{i}") for i in range(8)]
        if as_json:
            click.echo(json.dumps(network.skip_rows(specs), indent=2))
        else:
            network.show(network.skip_table(specs))
    elif model is None:
        specs = [get_spec(name) for name in list_specs()]
        if as_json:
            click.echo(json.dumps(network.zoo_rows(specs), indent=2))
        else:
            network.show(network.zoo_table(specs))
    else:
        spec = _shaped(_spec(model), **shape)
        if save is not None:
            named = spec.replace(
                name=save.stem,
                source=f"made from {_spec(model).name}",
                resolution=resolution or spec.resolution,
            )
            write_text(save, named.to_json() + "\n")
            click.echo(f"wrote {save}; train it: mbconv train DIR --model {save}", err=True)
        if as_json:
            click.echo(json.dumps(network.info_dict(spec, resolution), indent=2))
        else:
            network.show(network.network_table(spec, resolution))


@main.command()
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option("--model", default="efficientnet_lite0", show_default=True, metavar="MODEL")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder. [default: runs/<DATA>]")
@click.option("--epochs", type=click.IntRange(min=1), help="Default: by the number of pictures.")
@click.option("--budget", type=Duration(), help="Finish within 90s, 5m, 1.5h.")
@click.option("--resolution", type=click.IntRange(min=32), help="Side of the picture, in pixels.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--flip/--no-flip", default=True, help="Mirror pictures; not for digits or text.")
@click.option("--config", type=click.Path(path_type=Path), help="Train as this config.json says.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with this run folder.")
@offline
def train(data: Path | None, resume: Path | None, **options: Any) -> None:
    """Train on a folder of pictures: DATA/<class>/*, or DATA/{train,val,test}/<class>/*.

    Audits the pictures, fine-tunes, scores on held-out pictures, writes a report.
    """
    if (data is None) == (resume is None):
        raise click.UsageError("Give a folder of pictures, or --resume and a run folder.")
    started = time.perf_counter()  # the budget counts from here, and importing torch takes a while
    from mbconv.training import run
    from mbconv.training.folder import read_config

    if resume is not None:
        _refuse_beside("--resume", "the run's own config decides")
        done = run.resume(resume)
    else:
        assert data is not None
        out, config, model = options.pop("out"), options.pop("config"), options.pop("model")
        if config is not None:
            _refuse_beside("--config", "the config decides", but=("data", "out"))
            model = read_config(config)["model"]
        done = run.train(
            model, data, out or _free_folder(data), config=config, started=started, **options
        )
    click.echo(f"predict: mbconv predict {done.path} PICTURE...")


@main.command(name="eval")
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--split", help="Which split of DATA. [default: test, else val, else all]")
@click.option("--json", "as_json", is_flag=True, help="The record as JSON.")
@offline
def evaluate(model: str, data: Path, split: str | None, as_json: bool) -> None:
    """Measure MODEL on labelled pictures: accuracy with its interval, per class, confusion."""
    from mbconv.measure.accuracy import evaluate
    from mbconv.report.evaluation import print_evaluation

    record = evaluate(model, data, split=split)
    if as_json:
        click.echo(json.dumps(record.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_evaluation(record)


@main.command()
@click.argument("model")
@click.argument("paths", nargs=-1, required=True)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="K")
@click.option(
    "--format", "form", type=click.Choice(["table", "jsonl", "csv"]), default="table",
    show_default=True,
)  # fmt: skip
@offline
def predict(
    model: str, paths: tuple[str, ...], top: int, form: Literal["table", "jsonl", "csv"]
) -> None:
    """Name what is in pictures: files, folders, globs, or - for paths on standard input."""
    from mbconv.report.predictions import write_predictions
    from mbconv.runtime.pictures import find_pictures
    from mbconv.runtime.predictor import Predictor
    from mbconv.weights.model import load

    pictures = find_pictures(paths, sys.stdin)
    width = max(len(str(path)) for path in pictures)
    predictions = Predictor(load(model)).predict(pictures, top_k=top)
    if write_predictions(predictions, sys.stdout, format=form, top_k=top, width=width):
        sys.exit(1)


@main.command()
@click.argument("source_file", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--from", "source", help="Whose weights IN holds: timm, torchvision, lukemelas, "
              "geffnet, efficientnet_lite_pytorch or keras.")  # fmt: skip
@click.option("--name", help="What they call the network.")
@click.option("--to", "target", help="Write for timm or torchvision. [default: our model file]")
def convert(
    source_file: Path, out: Path, source: str | None, name: str | None, target: str | None
) -> None:
    """Convert weights from other libraries (.pth, .pt, .safetensors, .h5, .keras) and back.

    IN is such a file, or with --to also a model file or run folder of ours. OUT is a .safetensors
    file. --from and --name can be left out where the tensors allow one answer.
    """
    from mbconv.weights.foreign import convert_file

    model, written_as = convert_file(source_file, out, source, name, target)
    count = sum(parameter.numel() for parameter in model.parameters())
    click.echo(f"{out}: {written_as}, {count:,} parameters, {model.spec.num_classes:,} classes")
    if target is None:
        seen = model.preprocessing
        click.echo(
            f"It will see pictures at {seen.resolution} of {seen.resize} pixels, normalised with "
            f"mean {seen.mean} and deviation {seen.std}."
        )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def doctor(as_json: bool) -> None:
    """Show what this machine computes with, why, and what is missing."""
    from mbconv import kernels
    from mbconv.record import environment
    from mbconv.report.doctor import doctor_lines

    found = {"environment": environment(), "kernels": kernels.status()}
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(doctor_lines(**found)))


@main.group()
def weights() -> None:
    """Look after published weights: pip's and the Hugging Face hub's."""


@weights.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
def list_(as_json: bool) -> None:
    """Show the weights on this machine with their licences, and those that pip can bring."""
    from mbconv.weights.store import list_weights

    found = list_weights()
    if as_json:
        click.echo(json.dumps([asdict(stored) for stored in found], indent=2))
        return
    for stored in found:
        size = "" if stored.bytes is None else f"{stored.bytes / 1e6:.1f} MB"
        licence = stored.license or "licence not stated"
        click.echo(f"{stored.model:40} {stored.state:13} {size:>9}  {licence}")


@weights.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@offline
def fetch(models: tuple[str, ...]) -> None:
    """Download or update weights and check them, for use without network."""
    from mbconv.weights import hub
    from mbconv.weights.model import load

    for model in models:
        if hub.is_hub(model):
            hub.fetch(model, update=True)
        about = load(model).provenance or {}
        click.echo(f"{model}\n  " + "\n  ".join(f"{k}: {v}" for k, v in about.items()))


@weights.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
def verify(models: tuple[str, ...]) -> None:
    """Load weights and hold them against their checksum. Without MODEL: all on this machine."""
    from mbconv.weights.store import verify

    os.environ["HF_HUB_OFFLINE"] = "1"
    broken = False
    for model, reason in verify(models):
        broken |= reason is not None
        click.echo(f"ok      {model}" if reason is None else f"broken  {model}: {reason}")
    sys.exit(1 if broken else 0)


@weights.command()
@click.argument("model")
@click.argument("name", metavar="OWNER/NAME")
@click.option("--license", help="Of the weights, as apache-2.0.")
@click.option("--private", is_flag=True, help="Show the repository to yourself only.")
def push(model: str, name: str, license: str | None, private: bool) -> None:
    """Upload MODEL to the Hugging Face hub; a run folder's score goes into the model card."""
    from mbconv.record import read_records
    from mbconv.weights.hub import push_to_hub
    from mbconv.weights.model import load

    scores = Path(model) / "evaluation.jsonl"
    score = read_records(scores)[-1] if scores.is_file() else None
    network = load(model)
    click.echo(push_to_hub(network, name, evaluation=score, license=license, private=private))


@main.group()
def data() -> None:
    """Look after folders of pictures."""


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--full", is_flag=True, help="Check all files, however many.")
@click.option("--json", "as_json", is_flag=True, help="The audit as JSON.")
def check(folder: Path, full: bool, as_json: bool) -> None:
    """Audit a folder: unreadable files, duplicates, label conflicts, sizes, imbalance."""
    from mbconv.data.audit import audit
    from mbconv.data.source import scan
    from mbconv.report.audit import print_audit

    found = audit(scan(folder, training=False), full=full).to_dict()
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_audit(found)


@main.group()
def cache() -> None:
    """The audit's memory of pictures it has seen."""


@cache.command()
def clear() -> None:
    """Delete it."""
    from mbconv.data.cache import cache_dir, clear

    click.echo(f"freed {clear() / 1e6:.1f} MB in {cache_dir()}")


def _spec(model: str) -> "Spec":
    """The spec of a name, a spec.json, a model file or a run folder; torch only if it must."""
    from mbconv.arch.spec import Spec
    from mbconv.arch.zoo import get_spec
    from mbconv.weights.libraries import is_library_model, library_spec

    path = Path(model)
    if path.suffix == ".json" and path.is_file():
        return Spec.from_json(path.read_text(encoding="utf-8"))
    if path.exists() or model.startswith("hf-hub:"):
        from mbconv.weights.model import load

        return load(path).spec
    return library_spec(model) if is_library_model(model) else get_spec(model)


def _shaped(
    spec: "Spec", changes: tuple[str, ...], output_stride: int | None, **scaling: Any
) -> "Spec":
    """`spec` scaled, then with its fields changed, then with an output stride."""
    from mbconv.arch.scale import scale, with_output_stride

    spec = scale(spec, **scaling)
    for change in changes:
        field, given, value = change.partition("=")
        if not given:
            raise click.UsageError(f"--set {change}: write FIELD=VALUE, as in activation=relu6.")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value  # a word
        spec = spec.replace(**{field.strip(): parsed})
    return with_output_stride(spec, output_stride) if output_stride is not None else spec


def _refuse_beside(flag: str, why: str, but: tuple[str, ...] = ()) -> None:
    """Flags that would be ignored are a mistake to tell."""
    context = click.get_current_context()
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        given = source is click.core.ParameterSource.COMMANDLINE and value is not None
        if given and name not in (flag.strip("-"), *but):
            raise click.UsageError(
                f"--{name.replace('_', '-')} has no effect beside {flag}: {why}."
            )


def _free_folder(data: Path) -> Path:
    """runs/<name of the data>, with a number behind it where that is taken."""
    name = data.resolve().name
    numbers = (f"runs/{name}" if n == 1 else f"runs/{name}-{n}" for n in range(1, 10_000))
    return next(path for path in map(Path, numbers) if not path.exists())
