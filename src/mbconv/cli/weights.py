"""`mbconv convert` and `mbconv weights`: other people's weights, and the hub."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from mbconv.cli.base import main, offline


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
