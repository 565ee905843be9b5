"""A whole training run: what `mbconv train` does, from a folder of pictures to a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.record import Record
from mbconv.training import folder
from mbconv.training.compilation import Mode
from mbconv.training.console import Reporter
from mbconv.training.distributed import World, joined
from mbconv.training.ending import finish
from mbconv.training.failing import survivable
from mbconv.training.recipe import Recipe
from mbconv.training.session import OnEpoch, Session
from mbconv.training.setup import Settings


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its best network, and that network's score."""

    path: Path
    model: MBConvNet
    record: Record


def train(
    model: MBConvNet | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    epochs: int | None = None,
    budget: float | None = None,
    resolution: int | None = None,
    seed: int = 0,
    device: str = "auto",
    flip: bool = True,
    recipe: str | Recipe | None = None,
    changes: Sequence[str] = (),
    cache: Literal["auto", "off", "memory"] = "auto",
    deterministic: bool = False,
    compile: Mode = "off",
    trackers: Sequence[str] = (),
    teacher: MBConvNet | str | Path | None = None,
    grow_from: str | Path | None = None,
    config: str | Path | None = None,
    on_epoch: OnEpoch | None = None,
    quiet: bool = False,
    started: float | None = None,
) -> Run:
    """Fine-tune (or, without pretrained weights, train) `model` on the pictures in `data`.

    `model` is a network or whatever `create_model` takes; `data` whatever `scan` takes, such as a
    folder of class folders or of splits, a list, shards; `out` the run folder, which must not
    hold a run yet. What is None is chosen by the recipe: `epochs` by the number of pictures,
    `resolution` (pixels) by their size. `budget` (seconds) plans both so that the run ends in
    that time. `device` is auto, cpu, cuda or mps; `flip` mirrors half of the pictures. `recipe`
    is a name that `mbconv recipe list` shows or a whole `Recipe`; by default finetune, or scratch
    for fresh weights; with grow, or any whose phases name networks, a smaller network begins and
    becomes `model` on the way; `changes` set single fields of it ("optimizer.clip=1"). `cache`
    keeps decoded pictures in memory: where all have room, never, or as many as have.
    `deterministic` keeps to operators that repeat exactly. `compile` is off, on, or auto:
    torch.compile where the time it takes is won back within the run. `trackers` names where the
    run is shown beside its own metrics.jsonl: tensorboard (the default where it is installed),
    wandb, none. `teacher` is a network of the same classes, or whatever `load` takes, whose answers
    are learnt beside the labels (the recipe's loss.teacher). `grow_from` is a run folder or model
    that is grown to `model` and trained on, by default with the recipe further: the classifier,
    of a run also the moving average and the optimizer's moments, come along. `config` is an
    earlier run's config.json, whose recipe, seed and machine are used again instead.
    `on_epoch(network, metrics)` is called with the averaged network after the head's fit and
    after each epoch, in the first of several processes. `started` is the time on
    `time.perf_counter` that the budget counts from, by default now.

    Under torchrun its processes train together, and a run that the same command
    has begun goes on. Raises UserError for everything that the user can mend. Ctrl-C leaves a run
    that `resume` continues.
    """
    if recipe is None and grow_from is not None:
        recipe = "further"
    settings = Settings(
        epochs=epochs, budget=budget, resolution=resolution, seed=seed, device=device, flip=flip,
        recipe=recipe, changes=tuple(changes), cache=cache, deterministic=deterministic,
        compile=compile, trackers=tuple(trackers), teacher=teacher, grow_from=grow_from,
    )  # fmt: skip
    with joined() as world:
        session = Session(Path(out), world, _reporter(world, quiet), on_epoch)
        session.started = started or session.started
        with survivable(session):
            _begin(session, model, data, settings, config)
            return _finish(session)


def resume(run: str | Path, *, on_epoch: OnEpoch | None = None, quiet: bool = False) -> Run:
    """Go on with an interrupted run: the result is that of the uninterrupted one.

    Raises UserError where `run` holds nothing to resume or its pictures have gone.
    """
    with joined() as world:
        session = Session(Path(run), world, _reporter(world, quiet), on_epoch)
        with survivable(session):
            session.reopen()
            return _finish(session)


def _reporter(world: World, quiet: bool) -> Reporter:
    return Reporter(quiet or not world.first)


def _begin(
    session: Session,
    model: MBConvNet | str | Path,
    data: str | Path,
    settings: Settings,
    config: str | Path | None,
) -> None:
    """Prepare the run in the first process, open what it has written in the others.

    Where a launcher has started the same command again, all open the run that it has begun.
    """
    world, path = session.world, session.path
    if world.decide(lambda: world.launched and folder.was_begun(path)):
        session.reopen()
        return
    if world.first:
        session.prepare(model, data, settings, config)
    world.wait()
    if not world.first:
        if not (path / "config.json").is_file():
            raise UserError(
                f"{path} is not where the first process has made it: --out must lie on storage "
                "that all machines share."
            )
        session.reopen()


def _finish(session: Session) -> Run:
    session.agree()
    with session.open_pictures() as pictures:
        if session.next_step == 0:
            session.start_weights(pictures)
        session.learn(pictures)
    model, record = finish(session)
    return Run(session.path, model, record)
