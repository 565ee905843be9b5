"""One run in its folder, step by step: prepare, fit the head, learn, finish; or reopen."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mbconv.data.audit import Audit
from mbconv.data.loader import Pictures
from mbconv.data.source import Dataset
from mbconv.errors import UserError
from mbconv.measure.accuracy import collect, evaluate, summarize
from mbconv.measure.gradcam import explain_mistakes
from mbconv.nn.model import MBConvNet
from mbconv.record import Record, write_records
from mbconv.report.run import write_report
from mbconv.runtime.predictor import Predictor
from mbconv.training import folder, setup
from mbconv.training.console import Reporter
from mbconv.training.diagnosis import Diverged, save_failed_step
from mbconv.training.distributed import World
from mbconv.training.head import start_head
from mbconv.training.interrupt import interrupts_held
from mbconv.training.loop import EpochStats, Trainer, epochs
from mbconv.training.machine import DTYPES, Machine, find_device, keep_freed_memory, plain_machine
from mbconv.training.recipe import Recipe
from mbconv.training.schedule import Step, total_steps
from mbconv.training.state import load_state, save_state
from mbconv.weights import file as model_file
from mbconv.weights.model import MODEL_FILE, load

# Called after the head's fit and after each epoch with the averaged network and the metrics.
OnEpoch = Callable[[MBConvNet, dict[str, Any]], None]

SAVE_EVERY = 300.0  # seconds; and after each epoch
FINISH = 8.0  # seconds for the final score, the explained mistakes and the report


class Session:
    """A run in progress. The folder's files are always those of a run that can be resumed."""

    dataset: Dataset
    config: dict[str, Any]
    recipe: Recipe
    trainer: Trainer

    def __init__(
        self,
        path: Path,
        world: World,
        quiet: bool = False,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self.path = path
        self.world = world
        self.reporter = Reporter(quiet or not world.first)
        self.on_epoch = on_epoch
        self.started = self.saved = time.perf_counter()
        self.next_step = 0
        self.stepping = False  # an interrupt waits for the end of the step
        self.best = 0.0  # validation accuracy

    @property
    def stop_asked(self) -> bool:
        return self.world.asked

    @stop_asked.setter
    def stop_asked(self, asked: bool) -> None:
        self.world.asked = asked

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
        keep_freed_memory()
        earlier = folder.read_config(config) if config is not None else None
        seed = earlier["seed"] if earlier else settings.seed
        self.dataset, found = setup.open_data(data, seed, self.reporter)
        torch.manual_seed(seed)  # of fresh weights, if only the classifier's
        network, pretrained = setup.make_model(model, self.dataset.classes)
        setup.announce(network, pretrained, str(model), self.reporter)
        if earlier:
            self.recipe = Recipe.from_dict(earlier["recipe"])
            machine = Machine.from_dict(earlier["machine"])
        else:
            self.recipe, machine = self._choose(network, found, pretrained, settings)
        self.config = {
            "model": str(model) if not isinstance(model, MBConvNet) else network.spec.name,
            "data": self.dataset.source,
            "seed": seed,
            "budget_seconds": settings.budget,
            "processes": self.world.size,
        } | folder.describe(network, self.recipe, machine)
        folder.write_data(self.path, self.dataset, found)
        self._make_trainer(network, machine)
        for line in setup.describe(network, self.recipe, machine):
            self.reporter.say(line)
        if self.world.launched:
            self.reporter.say(f"  {self.world.describe(self.recipe, machine)}")
        if settings.resolution is not None or not pretrained:  # else the recipe knows what it does
            setup.warn_of_small_maps(network, self.recipe, self.reporter)
        self.save()
        folder.write_config(self.path, self.config)  # with it this is a run, which can be resumed

    def reopen(self) -> None:
        """Load what `prepare` and the steps so far have written."""
        self.config = folder.read_config(self.path / "config.json")
        keep_freed_memory()
        self.dataset = folder.read_data(self.path)
        self.recipe = Recipe.from_dict(self.config["recipe"])
        network = folder.network_of(self.config)
        network.labels = self.dataset.classes
        machine = Machine.from_dict(self.config["machine"])
        if self.config.get("processes", 1) != self.world.size:
            usual = plain_machine(machine.device, self.world.local_size)
            machine = replace(machine, threads=usual.threads, workers=usual.workers)
            self.reporter.say(f"  now {self.world.describe(self.recipe, machine)}")
        self._make_trainer(network, machine)
        past, damaged = load_state(self.path, self.trainer)
        if damaged:
            self.reporter.say(
                f"the last state of {self.path} is damaged; going on from the one before it",
                style="yellow",
            )
        self.next_step, self.best = past["step"], past["best"]
        self.started -= past["seconds"]
        # Before the first step the head is fitted again, and its line written again.
        epochs_done = self.next_step * self.recipe.epochs // self.trainer.total
        if self.world.first:
            folder.keep_metrics(self.path, through=epochs_done if self.next_step else -1)
        done = self.next_step == self.trainer.total
        where = "behind its last step" if done else f"at step {self.next_step + 1}"
        self.reporter.say(f"resuming {self.path} {where}")

    def agree(self) -> None:
        """Raise UserError unless all processes are at the same step."""
        if len(set(self.world.gather(self.next_step))) > 1:
            raise UserError(
                f"The processes find different states in {self.path}: it must lie on storage that "
                "all machines share."
            )

    def _choose(
        self, network: MBConvNet, found: Audit, pretrained: bool, settings: setup.Settings
    ) -> tuple[Recipe, Machine]:
        resolution = setup.choose_resolution(network, found, settings.resolution)
        sizes = {name: len(samples) for name, samples in self.dataset.splits.items()}

        def make(resolution: int, epochs: int | None) -> Recipe:
            return setup.choose_recipe(settings, resolution, sizes["train"], pretrained, epochs)

        recipe = make(resolution, settings.epochs)
        machine = plain_machine(find_device(settings.device), self.world.local_size)
        machine = setup.choose_machine(network, recipe, machine)
        if settings.budget is not None:
            left = settings.budget - (time.perf_counter() - self.started)
            rate = setup.pixel_rate(recipe, machine, self.world.size)
            recipe = setup.fit_budget(make, recipe, rate, left, sizes)
        return recipe, machine

    def _make_trainer(self, network: MBConvNet, machine: Machine) -> None:
        self.world.check(self.recipe, machine)
        torch.set_num_threads(machine.threads)
        samples = self.dataset.splits["train"]
        total = total_steps(self.recipe, len(samples))
        counted = Counter(sample.label for sample in samples)
        counts = [counted[label] for label in range(len(self.dataset.classes))]
        self.trainer = Trainer(network, self.recipe, machine, total, counts, self.world)

    # -- learn ---------------------------------------------------------------------------------

    def fit_head(self) -> None:
        """Start the classifier as the recipe says; fitting it counts as epoch 0."""
        network, resolution = self.trainer.model, self.recipe.transfer.head_resolution
        begun, samples = time.perf_counter(), list(self.dataset.splits["train"])
        dtype = DTYPES[self.trainer.machine.frozen_dtype]
        start_head(network, samples, self.recipe, self.reporter, dtype, self.world)
        self.trainer.ema.load_state_dict(network.state_dict())
        if resolution is None:
            return
        seconds = time.perf_counter() - begun
        self._log(
            {"epoch": 0, "phase": "head", "resolution": resolution,
             "img_per_s": len(samples) / seconds}
        )  # fmt: skip

    def learn(self) -> None:
        """All epochs that are left; a line of metrics and a state to resume from after each."""
        pictures = Pictures(self.dataset.splits["train"], self.recipe.augmentation)
        per_epoch = self.trainer.total // self.recipe.epochs
        with self.reporter.bar(self.trainer.total, "training") as bar:

            def on_step(index: int, stats: EpochStats) -> None:
                self.next_step = index + 1
                within = (index + 1) % per_epoch > 0  # else the epoch is scored first
                if self.world.stops and within:
                    raise KeyboardInterrupt
                loss = stats.loss_sum / max(1, stats.pictures)
                rate = self.world.size * stats.pictures / max(1e-9, stats.seconds)
                note = f"epoch {index // per_epoch + 1}  loss {loss:.3f}  {rate:.0f} img/s"
                bar.update(index + 1, self.trainer.total, note)
                if within and time.perf_counter() - self.saved > SAVE_EVERY:
                    self.save()

            seed = self.config["seed"]
            self.stepping = True
            try:
                for step, stats in epochs(
                    self.trainer, pictures, seed, start=self.next_step, on_step=on_step
                ):
                    self._end_epoch(step, stats)
                    if self.world.stops:
                        raise KeyboardInterrupt
                    if self.world.decide(self._out_of_time, step, stats):
                        break
            except Diverged as error:
                kept = self.world.decide(save_failed_step, self.path, error)
                raise UserError(
                    f"{error} The step is kept in {kept}; see it layer by layer: mbconv replay "
                    f"{self.path}"
                ) from error
            finally:
                self.stepping = False

    def _out_of_time(self, step: Step, stats: EpochStats) -> bool:
        """Whether another epoch like this one, and the end of the run, would break the budget."""
        budget: float | None = self.config["budget_seconds"]
        if budget is None or self.next_step == self.trainer.total:
            return False
        later = max(phase.resolution for phase in self.recipe.phases)
        epoch = stats.seconds * (later / step.resolution) ** 2
        over = time.perf_counter() - self.started + 1.15 * epoch + FINISH > budget
        if over:
            self.reporter.say("  stopping here: another epoch would not fit into the budget")
        return over

    def _end_epoch(self, step: Step, stats: EpochStats) -> None:
        for path, reason in stats.failures:
            self.reporter.say(f"  left out: {path}: {reason}", style="yellow")
        self._log(
            {"epoch": step.epoch, "phase": "full", "resolution": step.resolution,
             "train_loss": stats.loss_sum / max(1, stats.pictures),
             "lr": self.trainer.rate(step.index),
             "img_per_s": stats.pictures / stats.seconds,
             "data_wait": stats.waited / stats.seconds}
        )  # fmt: skip
        self.save()

    def save(self) -> None:
        """Write the state that `reopen` goes on from."""
        self.saved = time.perf_counter()
        if not self.world.first:
            return
        seconds = self.saved - self.started
        save_state(self.path, self.trainer, step=self.next_step, best=self.best, seconds=seconds)

    def _log(self, line: dict[str, Any]) -> None:
        """Score raw and averaged weights, keep the network unless it is worse, write the line."""
        raw = averaged = self._score(self.trainer.model, line["resolution"])
        if line["phase"] != "head":  # after the head's fit the average is a copy
            averaged = self._score(self.trainer.ema, line["resolution"])
        line = {**line, "seconds": time.perf_counter() - self.started,
                "val_raw": raw, "val_ema": averaged}  # fmt: skip
        line["kept"] = is_kept(averaged, self.best, len(self.dataset.splits["val"]))
        self.best = max(self.best, averaged)
        if not self.world.first:
            return
        if line["kept"]:
            self._keep(line)
        folder.add_metrics(self.path, line)
        self.reporter.metrics(line, self.recipe.epochs)
        if self.on_epoch is not None:
            self.on_epoch(self.trainer.ema, line)

    def _score(self, network: MBConvNet, resolution: int) -> float:
        """Validation accuracy."""
        collected = collect(self._predictor(network, resolution), self.dataset.splits["val"])
        detail = summarize(collected.logits, collected.targets, self.dataset.classes)
        return float(detail["top1"]["value"])

    def _predictor(self, network: MBConvNet, resolution: int) -> Predictor:
        machine = self.trainer.machine
        dtype = DTYPES[machine.frozen_dtype]
        preprocessing = network.preprocessing.at(resolution)
        return self.world.predictor(network, dtype=dtype, preprocessing=preprocessing)

    def _keep(self, line: dict[str, Any]) -> None:
        network = self.trainer.ema
        own = network.preprocessing
        network.preprocessing = own.at(line["resolution"])
        provenance = {
            "trained_on": Path(self.dataset.source).name, "epoch": line["epoch"],
            "val_top1": line["val_ema"], "recipe": self.recipe.name,
            "pretrained": self.config["model"], "base": self.config.get("base"),
        }  # fmt: skip
        try:
            model_file.save(network, self.path / MODEL_FILE, provenance)
        finally:
            network.preprocessing = own

    # -- end -----------------------------------------------------------------------------------

    def finish(self) -> tuple[MBConvNet, Record]:
        """Score the best network on the test split (else on val), write records and report."""
        network = load(self.path)
        split = "test" if "test" in self.dataset.splits else "val"
        record = evaluate(self.world.predictor(network), self.dataset, split=split)
        if self.world.first:
            self._write_score(network, record, split)
        self.world.wait()
        return network, record

    def _write_score(self, network: MBConvNet, record: Record, split: str) -> None:
        explain_mistakes(network, record, self.dataset)
        write_records(self.path / "evaluation.jsonl", [record])
        write_report(self.path)
        seconds = time.perf_counter() - self.started
        self.reporter.say(
            f"{split} accuracy {100 * record.value:.1f}% "
            f"[{100 * (record.low or 0):.1f}, {100 * (record.high or 0):.1f}], n = {record.n}; "
            f"{seconds:.0f} s in all"
        )
        self.reporter.say(f"model:  {self.path / MODEL_FILE}")
        self.reporter.say(f"report: {self.path / 'report.html'}")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C saves what there is and says how to go on."""
        try:
            with interrupts_held(self):
                yield
        except KeyboardInterrupt:
            if hasattr(self, "trainer"):
                self.save()
                self.reporter.say(
                    f"stopped after step {self.next_step} of {self.trainer.total}. Go on with:\n"
                    f"  mbconv train --resume {self.path}"
                )
                if self.world.stops:  # all of them, so the first may take its time to write
                    self.world.wait()
            raise


def is_kept(score: float, best: float, n: int) -> bool:
    """Whether a newer network with this accuracy on n pictures replaces the one that is kept.

    It does unless it is more than one standard error below the best so far (Breiman et al. 1984
    choose trees so): with a few hundred pictures the best of several epochs is mostly luck, and
    the last ones, whose learning rate has come down, are the better bet.
    """
    return score >= best - math.sqrt(best * (1 - best) / n)
