"""One run in its folder, step by step: prepare, or reopen; fit the head, learn."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mbconv.data.loader import Pictures
from mbconv.data.source import Dataset
from mbconv.errors import UserError
from mbconv.files import check_writable, locked
from mbconv.measure.memory import keep_freed_memory
from mbconv.nn.model import MBConvNet
from mbconv.report.runs import LOCK
from mbconv.training import compilation, determinism, folder, setup
from mbconv.training.budget import fits_another
from mbconv.training.console import Reporter
from mbconv.training.diagnosis import Diverged, save_failed_step
from mbconv.training.distributed import World
from mbconv.training.failing import lost_pictures, tell_left_out
from mbconv.training.growth import carry_over
from mbconv.training.kept import is_kept, keep, score
from mbconv.training.loop import EpochStats, Trainer, epochs
from mbconv.training.machine import DTYPES, Machine
from mbconv.training.plan import Plan, machine_of
from mbconv.training.recipe import Recipe
from mbconv.training.schedule import Step, total_steps
from mbconv.training.stages import grow_if_due, stage
from mbconv.training.start import start_weights
from mbconv.training.state import load_state, save_state
from mbconv.training.teacher import find_teacher, keep_teacher
from mbconv.training.tracking import Trackers, open_trackers

# Called after the head's fit and after each epoch with the averaged network and the metrics.
OnEpoch = Callable[[MBConvNet, dict[str, Any]], None]

SAVE_EVERY = 300.0  # seconds; and after each epoch


class Session:
    """A run in progress. The folder's files are always those of a run that can be resumed."""

    dataset: Dataset
    config: dict[str, Any]
    recipe: Recipe
    trainer: Trainer

    def __init__(
        self, path: Path, world: World, reporter: Reporter, on_epoch: OnEpoch | None = None
    ) -> None:
        self.path = path
        self.world = world
        self.reporter = reporter
        self.on_epoch = on_epoch
        self.started = self.saved = time.perf_counter()
        self.next_step = 0
        self.saved_step: int | None = None
        self.closing = ExitStack()
        self.trackers = Trackers([], reporter.say)  # until the run is there to be watched
        self.stepping = False  # an interrupt waits for the end of the step
        self.best = 0.0  # validation accuracy

    # -- start ---------------------------------------------------------------------------------

    def prepare(
        self,
        model: MBConvNet | str | Path,
        data: str | Path,
        settings: setup.Settings,
        config: str | Path | None,
    ) -> None:
        """Audit the data, make the network, choose recipe and machine, write both down."""
        if (self.path / "config.json").exists():
            raise UserError(
                f"{self.path} already holds a run. Go on with it (mbconv train --resume "
                f"{self.path}) or give another --out."
            )
        check_writable(self.path)
        keep_freed_memory()
        earlier = folder.read_config(config) if config is not None else None
        if config is not None and earlier:
            teacher = settings.teacher or find_teacher(Path(config).parent, earlier)
            origin = settings.grow_from or earlier.get("grown_from")
            settings = replace(settings, grow_from=origin, teacher=teacher)
        plan = Plan.make(model, data, settings, earlier, self.world, self.reporter, self.started)
        self.dataset, self.recipe, network = plan.dataset, plan.recipe, plan.network
        self.config = plan.config | folder.made_with()
        self._hold()
        folder.write_data(self.path, self.dataset, plan.found)
        if plan.teacher is not None:
            keep_teacher(self.path, plan.teacher)
        self._make_trainer(network, plan.machine)
        origin, seed = settings.grow_from, self.config["seed"]
        told = None if origin is None else carry_over(self.trainer, origin, seed)
        if told:
            self.reporter.say(told)
        if settings.compile != "off" and not earlier:
            share = -(-self.recipe.batch_size // self.world.size)
            batch = setup.random_batch(network, self.recipe, share)
            self.reporter.say(compilation.settle(self.trainer, batch, settings.compile))
        self.config |= folder.describe(network, self.recipe, self.trainer.machine)
        for line in setup.describe(network, self.recipe, plan.machine):
            self.reporter.say(line)
        if self.world.launched:
            self.reporter.say(f"  {self.world.describe(self.recipe, plan.machine)}")
        if settings.resolution is not None or not plan.pretrained:  # else the recipe knows
            setup.warn_of_small_maps(network, self.recipe, self.reporter)
        self._open_trackers()
        self.save()
        folder.write_config(self.path, self.config)  # with it this is a run, which can be resumed

    def reopen(self) -> None:
        """Load what `prepare` and the steps so far have written."""
        self.config = folder.read_config(self.path / "config.json")
        self._hold()
        keep_freed_memory()
        self.dataset = folder.read_data(self.path)
        self.recipe = Recipe.from_dict(self.config["recipe"])
        machine = machine_of(self.config, self.world)
        if self.config.get("processes", 1) != self.world.size:
            self.reporter.say(f"  now {self.world.describe(self.recipe, machine)}")

        def trainer_of(spec: dict[str, Any] | None) -> Trainer:
            network = folder.network_of(self.config, spec)
            network.labels = self.dataset.classes
            self._make_trainer(network, machine)
            return self.trainer

        past, damaged = load_state(self.path, machine.device, trainer_of)
        if damaged:
            self.reporter.say(
                f"the last state of {self.path} is damaged; going on from the one before it",
                style="yellow",
            )
        self.next_step, self.best = past["step"], past["best"]
        self.saved_step = self.next_step
        self.started -= past["seconds"]
        # Before the first step the head is fitted again, and its line written again.
        epochs_done = self.next_step * self.recipe.epochs // self.trainer.total
        if self.world.first:
            folder.keep_metrics(self.path, through=epochs_done if self.next_step else -1)
        done = self.next_step == self.trainer.total
        where = "behind its last step" if done else f"at step {self.next_step + 1}"
        self.reporter.say(f"resuming {self.path} {where}")
        self._open_trackers()

    def agree(self) -> None:
        """Raise UserError unless all processes are at the same step."""
        if len(set(self.world.gather(self.next_step))) > 1:
            raise UserError(
                f"The processes find different states in {self.path}: it must lie on storage that "
                "all machines share."
            )

    def _hold(self) -> None:
        """Keep other runs out of the folder until this one ends."""
        if not self.world.first:
            return
        busy = f"{self.path} is being trained by another process; wait for it, or stop it."
        self.closing.enter_context(locked(self.path / LOCK, busy))

    def _open_trackers(self) -> None:
        if not self.world.first:
            return
        say = self.reporter.say
        self.trackers = open_trackers(self.path, self.config, self.next_step, say)
        self.closing.callback(self.trackers.close)

    def _make_trainer(self, network: MBConvNet, machine: Machine) -> None:
        self.world.check(self.recipe, machine)
        torch.set_num_threads(machine.threads)
        self.closing.enter_context(determinism.deterministic(machine))
        samples = self.dataset.splits["train"]
        total = total_steps(self.recipe, len(samples))
        counted = Counter(sample.label for sample in samples)
        counts = [counted[label] for label in range(len(self.dataset.classes))]
        self.trainer = Trainer(
            network,
            self.recipe,
            machine,
            total,
            counts,
            self.world,
            find_teacher(self.path, self.config),
        )

    # -- learn ---------------------------------------------------------------------------------

    @contextmanager
    def open_pictures(self) -> Iterator[Pictures]:
        """The pictures to learn from, decoded ones kept for as long as this lasts."""
        samples, chosen = self.dataset.splits["train"], self.config.get("cache")
        cache = self.world.on_each_machine(
            lambda: setup.open_cache(chosen, len(samples), self.reporter)
        )
        with cache or nullcontext():
            yield Pictures(samples, self.recipe.augmentation, cache)

    def start_weights(self, pictures: Pictures) -> None:
        """Start stem and classifier as the recipe says; fitting the latter counts as epoch 0."""
        network, resolution = self.trainer.model, self.recipe.transfer.head_resolution
        begun, dtype = time.perf_counter(), DTYPES[self.trainer.machine.frozen_dtype]
        if not start_weights(network, pictures, self.recipe, self.reporter, dtype, self.world):
            return  # the average may be older than this run
        self.trainer.ema.load_state_dict(network.state_dict())
        if resolution is None:
            return
        seconds = time.perf_counter() - begun
        self._log(
            {"epoch": 0, "phase": "head", "resolution": resolution,
             "img_per_s": len(pictures.samples) / seconds, **stage(self.trainer)}
        )  # fmt: skip

    def learn(self, pictures: Pictures) -> None:
        """All epochs that are left; a line of metrics and a state to resume from after each."""
        per_epoch = self.trainer.total // self.recipe.epochs
        with self.reporter.bar(self.trainer.total, "training") as bar:

            def on_step(index: int, stats: EpochStats) -> None:
                self.next_step = index + 1
                pictures = self.world.size * stats.pictures
                self.trackers.step(index + 1, self.trainer.figures, pictures, stats.seconds)
                within = (index + 1) % per_epoch > 0  # else the epoch is scored first
                if self.world.stops and within:
                    raise KeyboardInterrupt
                loss = stats.loss_sum / max(1, stats.pictures)
                rate = pictures / max(1e-9, stats.seconds)
                note = f"epoch {index // per_epoch + 1}  loss {loss:.3f}  {rate:.0f} img/s"
                bar.update(index + 1, self.trainer.total, note)
                if within and time.perf_counter() - self.saved > SAVE_EVERY:
                    self.save()

            seed = self.config["seed"]
            self.stepping = True
            try:
                self._grow()
                for step, stats in epochs(
                    self.trainer, pictures, seed, start=self.next_step, on_step=on_step,
                    on_batch=lost_pictures(),
                ):  # fmt: skip
                    self._end_epoch(step, stats)
                    if self.world.stops:
                        raise KeyboardInterrupt
                    if self.world.decide(self._out_of_time, step, stats):
                        break
                    self._grow()
            except Diverged as error:
                kept = self.world.decide(save_failed_step, self.path, error)
                raise UserError(
                    f"{error} The step is kept in {kept}; see it layer by layer: mbconv replay "
                    f"{self.path}"
                ) from error
            finally:
                self.stepping = False

    def _grow(self) -> None:
        """What is ahead may be for a larger network; a state is saved behind its first steps."""
        grow_if_due(self.path, self.trainer, self.next_step, self.config["seed"], self.reporter)

    def _out_of_time(self, step: Step, stats: EpochStats) -> bool:
        """Whether another epoch like this one, and the end of the run, would break the budget."""
        budget: float | None = self.config["budget_seconds"]
        if budget is None or self.next_step == self.trainer.total:
            return False
        phase, left = self.recipe.phase(step.epoch), budget - (time.perf_counter() - self.started)
        if fits_another(self.recipe, phase, stats.seconds, left):
            return False
        self.reporter.say("  stopping here: another epoch would not fit into the budget")
        return True

    def _end_epoch(self, step: Step, stats: EpochStats) -> None:
        tell_left_out(stats.failures, self.reporter.say)
        self._log(
            {"epoch": step.epoch, "phase": "full", "resolution": step.resolution,
             "train_loss": stats.loss_sum / max(1, stats.pictures),
             "lr": self.trainer.rate(step.index),
             "img_per_s": stats.pictures / stats.seconds,
             "data_wait": stats.waited / stats.seconds, **stage(self.trainer)}
        )  # fmt: skip
        self.save()

    def save(self) -> None:
        """Write the state that `reopen` goes on from."""
        self.saved = time.perf_counter()
        if self.world.first:
            step, seconds = self.next_step, self.saved - self.started
            save_state(self.path, self.trainer, step=step, best=self.best, seconds=seconds)
            self.trackers.saved()
        self.saved_step = self.next_step

    def _log(self, line: dict[str, Any]) -> None:
        """Score raw and averaged weights, keep the network unless it is worse, write the line."""
        raw, n = averaged, n = self._score(self.trainer.model, line)
        if line["phase"] != "head":  # after the head's fit the average is a copy
            averaged, n = self._score(self.trainer.ema, line)
        line = {**line, "seconds": time.perf_counter() - self.started,
                "val_raw": raw, "val_ema": averaged, "val_n": n}  # fmt: skip
        line["kept"] = is_kept(averaged, self.best, n)
        if line["kept"] and self.world.first:
            keep(self.path, self.trainer.ema, self.config, line)
        self.best = max(self.best, averaged)
        if not self.world.first:
            return
        folder.add_metrics(self.path, line)
        self.trackers.epoch(self.next_step, line)
        self.reporter.metrics(line, self.recipe.epochs)
        if self.on_epoch is not None:
            self.on_epoch(self.trainer.ema, line)

    def _score(self, network: MBConvNet, line: dict[str, Any]) -> tuple[float, int]:
        say = self.reporter.say
        return score(self.trainer, network, self.dataset, line["resolution"], say)
