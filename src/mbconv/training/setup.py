"""From the user's words to what a run needs: pictures in splits, a network, a recipe, a machine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from mbconv.arch.scale import small_map
from mbconv.arch.spec import Spec
from mbconv.data.audit import Audit, audit, drop_unreadable
from mbconv.data.loader import Batch
from mbconv.data.memory import OVERSAMPLE, PictureCache, place_bytes, room
from mbconv.data.source import Dataset, scan, split
from mbconv.errors import UserError
from mbconv.measure.memory import available_memory
from mbconv.nn.model import MBConvNet
from mbconv.training import compilation, tracking, transfer
from mbconv.training.console import Reporter
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine, measured, timed, unchanged
from mbconv.training.override import changed
from mbconv.training.recipe import Recipe
from mbconv.training.recipes import SMALLEST, find_recipe, usual_recipe
from mbconv.weights.model import create_model, has_weights


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user may ask of a run; None leaves the choice to the recipe."""

    epochs: int | None = None
    budget: float | None = None  # seconds, from the start of the command to its end
    resolution: int | None = None
    seed: int = 0
    device: str = "auto"
    flip: bool = True
    recipe: str | Recipe | None = None  # a name, or a whole one that is used as it is
    changes: tuple[str, ...] = ()  # path=value, single fields of the recipe
    deterministic: bool = False
    compile: compilation.Mode = "off"
    trackers: tuple[str, ...] = ()  # beside metrics.jsonl; none named: TensorBoard if it is there
    cache: Literal["auto", "off", "memory"] = "auto"  # of decoded pictures
    teacher: MBConvNet | str | Path | None = None  # whose answers are learnt beside the labels
    grow_from: str | Path | None = None  # a run or model that the network is grown from

    def __post_init__(self) -> None:
        for name in ("epochs", "budget", "resolution"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; it must be above zero.")
        if self.epochs is not None and self.budget is not None:
            raise UserError("Give either epochs or a budget: each decides how long to train.")
        if self.resolution is not None and self.resolution < 32:
            raise UserError(f"resolution is {self.resolution}; it must be at least 32 pixels.")
        self._check("compile", self.compile, compilation.MODES)
        for tracker in self.trackers:
            self._check("tracker", tracker, tracking.NAMES)
            tracking.require(tracker)
        if isinstance(self.recipe, str):
            find_recipe(self.recipe)
        elif self.recipe and (self.epochs or self.budget or self.resolution):
            raise UserError("A whole Recipe says its epochs and resolution itself; give only that.")

    def _check(self, name: str, value: str, known: Sequence[str]) -> None:
        if value not in known:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")


def open_data(data: str | Path, seed: int, reporter: Reporter) -> tuple[Dataset, Audit]:
    """Scan, audit, leave out what cannot be read, and make the splits that are missing."""
    with reporter.bar(1, "data") as bar:
        dataset = scan(data, progress=bar.notify)
    with reporter.bar(len(dataset), "audit") as bar:
        found = audit(dataset, progress=bar.update, seed=seed)
    dataset = split(drop_unreadable(dataset, found), seed=seed, groups=found.groups())
    found = found.recount(dataset)
    counts = ", ".join(f"{len(s):,} {name}" for name, s in dataset.splits.items())
    reporter.say(
        f"data: {len(dataset.classes)} classes, {counts}; audited {found.checked:,} files in "
        f"{found.seconds:.1f} s"
    )
    for finding in found.findings():
        reporter.say(f"  audit: {finding}", style="yellow")
    return dataset, found


def make_model(
    model: "MBConvNet | str | Path", classes: tuple[str, ...], fresh: bool = False
) -> tuple[MBConvNet, bool]:
    """The network with one output a class, and whether there are pretrained weights for it.

    `fresh`: published ones are not taken, and need not be installed.
    """
    if isinstance(model, MBConvNet):
        network, pretrained = model, getattr(model, "provenance", None) is not None
        if network.labels != classes:
            network.reset_classifier(len(classes))
    else:
        pretrained = has_weights(model)
        taken = pretrained and not fresh
        network = create_model(model, pretrained=taken, num_classes=len(classes))
    network.labels = classes
    return network, pretrained


def name_of(model: MBConvNet | str | Path) -> str:
    """What a run's config calls a network."""
    return model.spec.name if isinstance(model, MBConvNet) else str(model)


def announce(
    network: MBConvNet, pretrained: bool, name: str, reporter: Reporter, wanted: bool = False
) -> None:
    """Say which network it is and what it starts from; `wanted`: fresh weights were asked for."""
    params = sum(p.numel() for p in network.parameters())
    origin = "pretrained weights" if pretrained else "fresh weights"
    reporter.say(f"model: {network.spec.name}, {params / 1e6:.2f}M parameters, {origin}")
    if not pretrained and not wanted:
        reporter.say(
            f"  {name} has no published weights here, so it learns from nothing: that takes "
            "far more pictures and time than fine-tuning efficientnet_lite0.",
            style="yellow",
        )


def choose_resolution(network: MBConvNet, found: Audit, wanted: int | None) -> int:
    """The network's own, or for smaller pictures theirs, to a multiple of 32, at least 96."""
    if wanted is not None:
        return wanted
    native = network.preprocessing.resolution
    short = min(found.sizes["width"]["median"], found.sizes["height"]["median"])
    return min(native, max(SMALLEST, -(-short // 32) * 32))


def choose_recipe(
    settings: Settings,
    resolution: int,
    pictures: int,
    pretrained: bool,
    epochs: int | None = None,
) -> Recipe:
    """The recipe that the settings name, or the one for these weights, with their changes."""
    recipe = settings.recipe
    if not isinstance(recipe, Recipe):
        make = find_recipe(recipe, pretrained) if recipe else usual_recipe(pretrained)
        recipe = make(pictures, resolution, epochs=epochs)
        if pretrained:  # whoever names weights wants their stem too
            recipe = replace(recipe, transfer=replace(recipe.transfer, whiten_stem=False))
    recipe = replace(recipe, batch_size=min(recipe.batch_size, pictures))
    if not settings.flip:
        recipe = replace(recipe, augmentation=replace(recipe.augmentation, flip=False))
    return changed(recipe, settings.changes)


def asked_recipe(settings: Settings, model: MBConvNet | str | Path, pictures: int) -> Recipe:
    """The same before the network is made, to see what it asks for; its resolutions are made up."""
    pretrained = isinstance(model, MBConvNet) or has_weights(model)
    resolution = settings.resolution or SMALLEST
    return choose_recipe(settings, resolution, pictures, pretrained, settings.epochs)


def random_batch(network: MBConvNet, recipe: Recipe, most: int = 16) -> Batch:
    """Noise at the first phase's resolution, to measure steps with."""
    size, side = min(most, recipe.batch_size), recipe.phases[0].resolution
    pixels = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8)
    return Batch(pixels, torch.arange(size) % network.spec.num_classes, ())


def choose_machine(
    network: MBConvNet, recipe: Recipe, machine: Machine, teacher: MBConvNet | None = None
) -> Machine:
    """Measure training steps on random pictures at the first phase's resolution.

    The `teacher`, if there is one, answers in each step too.
    """
    with step_timer(network, recipe, teacher) as seconds_per_step:
        return measured(machine, seconds_per_step)


@contextmanager
def step_timer(
    network: MBConvNet, recipe: Recipe, teacher: MBConvNet | None = None
) -> Iterator[Callable[[Machine], float]]:
    """What measures a training step on a machine; the network is left as it was."""
    batch = random_batch(network, recipe)

    def seconds_per_step(candidate: Machine) -> float:
        trainer = Trainer(network, recipe, candidate, total=1, teacher=teacher)
        return timed(lambda: trainer.move(batch, 0, 0, rate=0.0))  # with the optimizer's share

    with unchanged(network):
        yield seconds_per_step


def choose_cache(wanted: str, recipe: Recipe, pictures: int) -> dict[str, int] | None:
    """What a run's config says of the cache: the side that decoded pictures are kept at, or None.

    `auto` uses it where several epochs come and all training pictures have room; `memory` keeps
    as many as have room. Raises UserError where that is asked for and there is none.
    """
    if wanted == "off" or (wanted == "auto" and recipe.epochs == 1):
        return None
    sides = [recipe.transfer.head_resolution or 0, *(p.resolution for p in recipe.phases)]
    side = round(OVERSAMPLE * max(sides))
    if not Path("/proc/meminfo").is_file():
        if wanted == "auto":
            return None
        raise UserError("--cache memory asks Linux how much memory is free; leave it out here.")
    places = room(side, available_memory())
    if wanted == "auto":
        return {"side": side} if places >= pictures else None
    if not places:
        raise UserError("There is no room to cache a single picture; train with --cache off.")
    return {"side": side}


def open_cache(
    chosen: dict[str, int] | None, pictures: int, reporter: Reporter
) -> PictureCache | None:
    """The cache that a config asks for, with room for as many pictures as memory has now."""
    if chosen is None:
        return None
    side = chosen["side"]
    places = min(pictures, room(side, available_memory()))
    reporter.say(
        f"cache: {places:,} of {pictures:,} training pictures, decoded, short side up to {side} "
        f"px; at most {places * place_bytes(side) / 1e9:.2f} GB of memory"
    )
    return PictureCache(side, places)


def warn_of_small_maps(network: MBConvNet, recipe: Recipe, reporter: Reporter) -> None:
    warning = small_map(network.spec, recipe.resolution)
    if warning is not None:
        reporter.say(f"  {warning}", style="yellow")


def describe(network: MBConvNet, recipe: Recipe, machine: Machine) -> list[str]:
    """Lines on what will happen, once the trainer is made."""
    phases = " then ".join(
        f"{p.epochs} epochs at {p.resolution} px"
        + (f" of {p.network.name}" if isinstance(p.network, Spec) else "")
        for p in recipe.phases
    )
    layout = "channels_last" if machine.channels_last else "contiguous"
    formats = machine.dtype
    if recipe.transfer.frozen_stages and machine.frozen_dtype != machine.dtype:
        formats += f" ({machine.frozen_dtype} in frozen stages)"
    lines = [
        f"recipe {recipe.name}: {phases}, batch {recipe.batch_size}; {machine.device}, "
        f"{machine.threads} threads, {layout}, {formats}"
    ]
    stays = transfer.describe(network, recipe.transfer)
    return lines if stays is None else [*lines, f"  {stays}"]
