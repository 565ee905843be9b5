"""`mbconv train`, `eval` and `predict`: from a folder of pictures to answers."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any, Literal

import click

from mbconv.cli.base import Duration, data_root, find_data, main, offline, trust


@main.command()
@click.argument("data", required=False)
@click.option("--model", default="efficientnet_lite0", show_default=True, metavar="MODEL")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder. [default: runs/<DATA>]")
@click.option("--epochs", type=click.IntRange(min=1), help="Default: by the number of pictures.")
@click.option("--budget", type=Duration(), help="Finish within 90s, 5m, 1.5h.")
@click.option("--resolution", type=click.IntRange(min=32), help="Side of the picture, in pixels.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--flip/--no-flip", default=True, help="Mirror pictures; not for digits or text.")
@click.option("--recipe", metavar="NAME",
              help="How to train (grow: from a smaller network); mbconv recipe list.")  # fmt: skip
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change a field of the recipe, as in optimizer.clip=1; repeatable.",
)
@click.option("--deterministic", is_flag=True,
              help="Only operators that repeat exactly; says what it costs.")  # fmt: skip
@click.option(
    "--compile", type=click.Choice(["off", "auto", "on"]), default="off", show_default=True,
    help="torch.compile; auto: where the run wins its time back.",
)  # fmt: skip
@click.option(
    "--tracker", "trackers", type=click.Choice(["tensorboard", "wandb", "none"]), multiple=True,
    help="Show the run there. [default: tensorboard if installed]",
)  # fmt: skip
@click.option(
    "--cache",
    type=click.Choice(["auto", "off", "memory"]),
    default="auto",
    show_default=True,
    help="Keep decoded pictures in memory; auto: if all have room.",
)
@click.option("--grow-from", metavar="RUN|MODEL", help="Start from this network, grown to MODEL.")
@click.option("--teacher", metavar="MODEL", help="Learn its answers too; of the same classes.")
@click.option("--config", type=click.Path(path_type=Path), help="Train as this config.json says.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with this run folder.")
@data_root
@offline
def train(data: str | None, resume: Path | None, data_root: Path | None, **options: Any) -> None:
    """Train on pictures: DATA/<class>/*, DATA/{train,val,test}/<class>/*, lists, shards, sets.

    Audits the pictures, fine-tunes, scores on held-out pictures, writes a report.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m mbconv train ...; started again,
    the same command goes on with the run that it has begun.
    """
    if (data is None) == (resume is None):
        raise click.UsageError("Give a folder of pictures or other DATA, or --resume and a run.")
    started = time.perf_counter()  # the budget counts from here, and importing torch takes a while
    from mbconv.training import run
    from mbconv.training.distributed import joined
    from mbconv.training.folder import read_config

    with joined() as world:
        if resume is not None:
            _refuse_beside("--resume", "the run's own config decides")
            done = run.resume(resume)
        else:
            assert data is not None
            out, config, model = options.pop("out"), options.pop("config"), options.pop("model")
            if config is not None:
                _refuse_beside("--config", "the config decides", but=("data", "data_root", "out"))
                model = read_config(config)["model"]
            done = run.train(
                model,
                find_data(data, data_root, quiet=not world.first),
                out or _free_folder(data, again=world.launched),
                config=config,
                started=started,
                **options,
            )
        if world.first:
            click.echo(f"predict: mbconv predict {done.path} PICTURE...")


@main.command(name="eval")
@click.argument("model")
@click.argument("data")
@click.option("--split", help="Which split of DATA. [default: test, else val, else all]")
@click.option("--json", "as_json", is_flag=True, help="The record as JSON.")
@data_root
@trust
@offline
def evaluate(
    model: str, data: str, split: str | None, as_json: bool, data_root: Path | None, trust: bool
) -> None:
    """Measure MODEL on labelled pictures: accuracy with its interval, per class, confusion.

    MODEL may also be an artifact of mbconv export: .onnx, .xml, .pte or .pt2.
    """
    from mbconv.measure.accuracy import evaluate
    from mbconv.report.evaluation import print_evaluation
    from mbconv.training.console import Reporter

    data = find_data(data, data_root)
    with Reporter().bar(1, "eval") as bar:
        record = evaluate(
            model, data, split=split, progress=bar.update, notify=bar.notify, trust=trust
        )
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
@click.option("--timing", is_flag=True, help="Say where the time went, on standard error.")
@trust
@offline
def predict(
    model: str,
    paths: tuple[str, ...],
    top: int,
    form: Literal["table", "jsonl", "csv"],
    timing: bool,
    trust: bool,
) -> None:
    """Name what is in pictures: files, folders, globs, or - for paths on standard input.

    MODEL may also be an artifact of mbconv export: .onnx, .xml, .pte or .pt2.
    """
    from mbconv.report.predictions import timing_lines, write_predictions
    from mbconv.runtime.pictures import find_pictures
    from mbconv.runtime.predictor import Predictor

    started = time.perf_counter()
    pictures = find_pictures(paths, sys.stdin)
    width = max(len(str(path)) for path in pictures)
    predictor = Predictor(model, trust=trust)
    predictions = predictor.predict(pictures, top_k=top)
    opened = time.perf_counter() - started
    errors = write_predictions(predictions, sys.stdout, format=form, top_k=top, width=width)
    if timing:
        seconds = time.perf_counter() - started - opened
        lines = timing_lines(vars(predictor.timing), opened, seconds, predictor.threads)
        click.echo("\n".join(lines), err=True)
    if errors:
        sys.exit(1)


def _refuse_beside(flag: str, why: str, but: tuple[str, ...] = ()) -> None:
    """Flags that would be ignored are a mistake to tell."""
    context = click.get_current_context()
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        given = source is click.core.ParameterSource.COMMANDLINE and value is not None
        if given and name not in (flag.strip("-"), *but):
            shown = {"changes": "set", "trackers": "tracker"}.get(name, name)
            raise click.UsageError(f"--{shown} has no effect beside {flag}: {why}.")


def _free_folder(data: str, again: bool = False) -> Path:
    """runs/<name of the data>, with a number behind it where that is taken.

    `again`: processes may be started again, and are to find the run that they have begun.
    """
    path = Path(data.removeprefix("hf:"))
    name = path.resolve().name if path.is_dir() else re.split(r"[{.:]", path.name)[0].strip("-_")
    name = name or path.parent.name or "data"  # of a pattern that begins with braces
    numbers = (f"runs/{name}" if n == 1 else f"runs/{name}-{n}" for n in range(1, 10_000))
    return next(path for path in map(Path, numbers) if again or not path.exists())
