"""One run in its folder, step by step: prepare, fit the head, learn, finish; or reopen."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mbconv.data.audit import Audit
from mbconv.data.loader import Pictures
from mbconv.data.source import Dataset
from mbconv.errors import UserError
from mbconv.files import check_writable, locked
from mbconv.measure.accuracy import collect, evaluate, summarize
from mbconv.measure.gradcam import explain_mistakes
from mbconv.measure.memory import keep_freed_memory
from mbconv.nn.model import MBConvNet
from mbconv.record import Record, write_records
from mbconv.report.run import write_report
from mbconv.report.runs import LOCK
from mbconv.runtime.predictor import Predictor
from mbconv.training import compilation, determinism, folder, setup
from mbconv.training.console import Reporter
from mbconv.training.diagnosis import Diverged, save_failed_step
from mbconv.training.failing import lost_pictures, tell_left_out
from mbconv.training.growth import carry_over, grown
from mbconv.training.head import start_head
from mbconv.training.kept import is_kept, keep
from mbconv.training.loop import EpochStats, Trainer, epochs
from mbconv.training.machine import DTYPES, Machine, find_device, plain_machine
from mbconv.training.recipe import Recipe
from mbconv.training.schedule import Step, total_steps
from mbconv.training.state import load_state, save_state
from mbconv.training.teacher import find_teacher, keep_teacher
from mbconv.training.tracking import Trackers, open_trackers
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

    def __init__(self, path: Path, reporter: Reporter, on_epoch: OnEpoch | None = None) -> None:
        self.path = path
        self.reporter = reporter
        self.on_epoch = on_epoch
        self.started = self.saved = time.perf_counter()
        self.next_step = 0
        self.saved_step: int | None = None
        self.closing = ExitStack()
        self.trackers = Trackers([], reporter.say)  # until the run is there to be watched
        self.stepping = False  # an interrupt waits for the end of the step
        self.stop_asked = False
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
        seed = earlier["seed"] if earlier else settings.seed
        self.dataset, found = setup.open_data(data, seed, self.reporter)
        torch.manual_seed(seed)  # of fresh weights, if only the classifier's
        origin = settings.grow_from
        if origin is not None:
            model = grown(origin, model, seed)
        network, pretrained = setup.make_model(model, self.dataset.classes)
        setup.announce(network, pretrained, str(model), self.reporter)
        if earlier:
            self.recipe = Recipe.from_dict(earlier["recipe"])
            machine = Machine.from_dict(earlier["machine"])
            cache = earlier.get("cache")
        else:
            self.recipe, machine = self._choose(network, found, pretrained, settings)
            pictures = len(self.dataset.splits["train"])
            cache = setup.choose_cache(settings.cache, self.recipe, pictures)
        self.config = {
            "model": str(model) if not isinstance(model, MBConvNet) else network.spec.name,
            "data": self.dataset.source,
            "seed": seed,
            "budget_seconds": settings.budget,
            "trackers": list(settings.trackers),
            "cache": cache,
            "grown_from": None if origin is None else str(origin),
            "teacher": None if settings.teacher is None else setup.name_of(settings.teacher),
        } | folder.made_with()
        self._hold()
        folder.write_data(self.path, self.dataset, found)
        if settings.teacher is not None:
            keep_teacher(self.path, settings.teacher, self.dataset.classes)
        self._make_trainer(network, machine)
        told = None if origin is None else carry_over(self.trainer, origin, seed)
        if told:
            self.reporter.say(told)
        if settings.compile != "off" and not earlier:
            batch = setup.random_batch(network, self.recipe, self.recipe.batch_size)
            self.reporter.say(compilation.settle(self.trainer, batch, settings.compile))
        self.config |= folder.describe(network, self.recipe, self.trainer.machine)
        for line in setup.describe(network, self.recipe, machine):
            self.reporter.say(line)
        if settings.resolution is not None or not pretrained:  # else the recipe knows what it does
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
        network = folder.network_of(self.config)
        network.labels = self.dataset.classes
        self._make_trainer(network, Machine.from_dict(self.config["machine"]))
        past, damaged = load_state(self.path, self.trainer)
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
        folder.keep_metrics(self.path, through=epochs_done if self.next_step else -1)
        self.reporter.say(f"resuming {self.path} at step {self.next_step + 1}")
        self._open_trackers()

    def _hold(self) -> None:
        """Keep other processes out of the folder until this run ends."""
        busy = f"{self.path} is being trained by another process; wait for it, or stop it."
        self.closing.enter_context(locked(self.path / LOCK, busy))

    def _open_trackers(self) -> None:
        say = self.reporter.say
        self.trackers = open_trackers(self.path, self.config, self.next_step, say)
        self.closing.callback(self.trackers.close)

    def _choose(
        self, network: MBConvNet, found: Audit, pretrained: bool, settings: setup.Settings
    ) -> tuple[Recipe, Machine]:
        resolution = setup.choose_resolution(network, found, settings.resolution)
        sizes = {name: len(samples) for name, samples in self.dataset.splits.items()}

        def make(resolution: int, epochs: int | None) -> Recipe:
            return setup.choose_recipe(settings, resolution, sizes["train"], pretrained, epochs)

        recipe = make(resolution, settings.epochs)
        machine = plain_machine(find_device(settings.device))
        machine = setup.choose_machine(network, recipe, machine)
        if settings.budget is not None:
            left = settings.budget - (time.perf_counter() - self.started)
            rate = setup.pixel_rate(recipe, machine)
            recipe = setup.fit_budget(make, recipe, rate, left, sizes)
        if settings.deterministic:
            machine = replace(machine, deterministic=True)
            with setup.step_timer(network, recipe) as seconds_per_step:
                self.reporter.say(determinism.describe_cost(machine, seconds_per_step))
        return recipe, machine

    def _make_trainer(self, network: MBConvNet, machine: Machine) -> None:
        torch.set_num_threads(machine.threads)
        self.closing.enter_context(determinism.deterministic(machine))
        samples = self.dataset.splits["train"]
        total = total_steps(self.recipe, len(samples))
        counted = Counter(sample.label for sample in samples)
        counts = [counted[label] for label in range(len(self.dataset.classes))]
        teacher = find_teacher(self.path)
        self.trainer = Trainer(network, self.recipe, machine, total, counts, teacher)

    # -- learn ---------------------------------------------------------------------------------

    def fit_head(self) -> None:
        """Start the classifier as the recipe says; fitting it counts as epoch 0."""
        network, resolution = self.trainer.model, self.recipe.transfer.head_resolution
        if resolution is None and not self.recipe.transfer.zero_head:
            return  # the average may be older than this run
        begun, samples = time.perf_counter(), list(self.dataset.splits["train"])
        dtype = DTYPES[self.trainer.machine.frozen_dtype]
        start_head(network, samples, self.recipe, self.reporter, dtype)
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
        samples = self.dataset.splits["train"]
        cache = setup.open_cache(self.config.get("cache"), len(samples), self.reporter)
        with cache or nullcontext():
            self._learn(Pictures(samples, self.recipe.augmentation, cache))

    def _learn(self, pictures: Pictures) -> None:
        per_epoch = self.trainer.total // self.recipe.epochs
        with self.reporter.bar(self.trainer.total, "training") as bar:

            def on_step(index: int, stats: EpochStats) -> None:
                self.next_step = index + 1
                self.trackers.step(index + 1, self.trainer.figures, stats.pictures, stats.seconds)
                within = (index + 1) % per_epoch > 0  # else the epoch is scored first
                if self.stop_asked and within:
                    raise KeyboardInterrupt
                loss = stats.loss_sum / max(1, stats.pictures)
                rate = stats.pictures / max(1e-9, stats.seconds)
                note = f"epoch {index // per_epoch + 1}  loss {loss:.3f}  {rate:.0f} img/s"
                bar.update(index + 1, self.trainer.total, note)
                if within and time.perf_counter() - self.saved > SAVE_EVERY:
                    self.save()

            seed = self.config["seed"]
            self.stepping = True
            try:
                for step, stats in epochs(
                    self.trainer, pictures, seed, start=self.next_step, on_step=on_step,
                    on_batch=lost_pictures(),
                ):  # fmt: skip
                    self._end_epoch(step, stats)
                    if self.stop_asked:
                        raise KeyboardInterrupt
                    if self._out_of_time(step, stats):
                        break
            except Diverged as error:
                kept = save_failed_step(self.path, error)
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
        tell_left_out(stats.failures, self.reporter.say)
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
        seconds = self.saved - self.started
        save_state(self.path, self.trainer, step=self.next_step, best=self.best, seconds=seconds)
        self.saved_step = self.next_step
        self.trackers.saved()

    def _log(self, line: dict[str, Any]) -> None:
        """Score raw and averaged weights, keep the network unless it is worse, write the line."""
        raw, n = averaged, n = self._score(self.trainer.model, line["resolution"])
        if line["phase"] != "head":  # after the head's fit the average is a copy
            averaged, n = self._score(self.trainer.ema, line["resolution"])
        line = {**line, "seconds": time.perf_counter() - self.started,
                "val_raw": raw, "val_ema": averaged, "val_n": n}  # fmt: skip
        line["kept"] = is_kept(averaged, self.best, n)
        if line["kept"]:
            keep(self.path, self.trainer.ema, self.config, line)
        self.best = max(self.best, averaged)
        folder.add_metrics(self.path, line)
        self.trackers.epoch(self.next_step, line)
        self.reporter.metrics(line, self.recipe.epochs)
        if self.on_epoch is not None:
            self.on_epoch(self.trainer.ema, line)

    def _score(self, network: MBConvNet, resolution: int) -> tuple[float, int]:
        """Validation accuracy, and on how many pictures."""
        dtype = DTYPES[self.trainer.machine.frozen_dtype]
        preprocessing = network.preprocessing.at(resolution)
        predictor = Predictor(network, dtype=dtype, preprocessing=preprocessing)
        collected = collect(predictor, self.dataset.splits["val"])
        if network is self.trainer.model:  # the average is scored on the same pictures
            tell_left_out(collected.unreadable, self.reporter.say, " of validation")
        detail = summarize(collected.logits, collected.targets, self.dataset.classes)
        return float(detail["top1"]["value"]), len(collected.targets)

    # -- end -----------------------------------------------------------------------------------

    def finish(self) -> tuple[MBConvNet, Record]:
        """Score the best network on the test split (else on val), write records and report."""
        network = load(self.path)
        split = "test" if "test" in self.dataset.splits else "val"
        record = evaluate(network, self.dataset, split=split)
        explain_mistakes(network, record, self.dataset)
        self.trackers.log(self.next_step, {f"{split}/final_top1": record.value})
        self.trackers.saved()
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
        return network, record
