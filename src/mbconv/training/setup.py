"""From the user's words to what a run needs: pictures in splits, a network, a recipe, a machine."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mbconv.arch.scale import small_map
from mbconv.data.audit import Audit, audit, drop_unreadable
from mbconv.data.loader import Batch
from mbconv.data.source import Dataset, scan, split
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.training import transfer
from mbconv.training.console import Reporter
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine, measured, timed
from mbconv.training.override import changed
from mbconv.training.recipe import Recipe
from mbconv.training.recipes import SMALLEST, find_recipe, plan_epochs, usual_recipe
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

    def __post_init__(self) -> None:
        for name in ("epochs", "budget", "resolution"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; it must be above zero.")
        if self.epochs is not None and self.budget is not None:
            raise UserError("Give either epochs or a budget: each decides how long to train.")
        if self.resolution is not None and self.resolution < 32:
            raise UserError(f"resolution is {self.resolution}; it must be at least 32 pixels.")
        if isinstance(self.recipe, str):
            find_recipe(self.recipe)
        elif self.recipe and (self.epochs or self.budget or self.resolution):
            raise UserError("A whole Recipe says its epochs and resolution itself; give only that.")


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


def make_model(model: "MBConvNet | str | Path", classes: tuple[str, ...]) -> tuple[MBConvNet, bool]:
    """The network with one output a class, and whether its weights are pretrained."""
    if isinstance(model, MBConvNet):
        network, pretrained = model, getattr(model, "provenance", None) is not None
        if network.labels != classes:
            network.reset_classifier(len(classes))
    else:
        pretrained = has_weights(model)
        network = create_model(model, pretrained=pretrained, num_classes=len(classes))
    network.labels = classes
    return network, pretrained


def announce(network: MBConvNet, pretrained: bool, name: str, reporter: Reporter) -> None:
    """Say what learns, and that starting from nothing is slow."""
    params = sum(p.numel() for p in network.parameters())
    origin = "pretrained weights" if pretrained else "fresh weights"
    reporter.say(f"model: {network.spec.name}, {params / 1e6:.2f}M parameters, {origin}")
    if not pretrained:
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
        make = find_recipe(recipe) if recipe else usual_recipe(pretrained)
        recipe = make(pictures, resolution, epochs=epochs)
    recipe = replace(recipe, batch_size=min(recipe.batch_size, pictures))
    if not settings.flip:
        recipe = replace(recipe, augmentation=replace(recipe.augmentation, flip=False))
    return changed(recipe, settings.changes)


def choose_machine(network: MBConvNet, recipe: Recipe, machine: Machine) -> Machine:
    """Measure training steps on random pictures at the first phase's resolution."""
    size, side = min(16, recipe.batch_size), recipe.phases[0].resolution
    pixels = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8)
    labels = torch.arange(size) % network.spec.num_classes
    batch = Batch(pixels, labels, ())
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def seconds_per_step(candidate: Machine) -> float:
        trainer = Trainer(network, recipe, candidate, total=1)
        return timed(lambda: trainer.backward(batch))

    chosen = measured(machine, seconds_per_step)
    network.load_state_dict(before)  # batch norms that learn have seen noise
    network.zero_grad(set_to_none=True)
    return chosen


# A step takes this much longer while pictures are read beside it (measured on two cores).
LOADED = 1.35


def pixel_rate(recipe: Recipe, machine: Machine, processes: int = 1) -> float:
    """Training pixels a second of all processes, from the trials of `choose_machine` in one."""
    seconds: float = min(trial["ms_per_step"] for trial in machine.trials) / 1000
    pixels = min(16, recipe.batch_size) * recipe.phases[0].resolution ** 2
    return float(processes * pixels / seconds / LOADED)


def fit_budget(
    make: Callable[[int, int], Recipe],
    recipe: Recipe,
    rate: float,
    seconds: float,
    sizes: dict[str, int],
) -> Recipe:
    """Epochs, and if need be a smaller resolution, so that the run takes `seconds` from here.

    `make(resolution, epochs)` gives recipes like `recipe`; `rate` is training pixels a second,
    `sizes` the pictures in each split. A fourth of a training step is a forward pass; an eighth of
    the time is kept in reserve.
    """
    at_epoch = sizes["train"] + 0.5 * sizes.get("val", 0)  # raw and averaged weights
    once = sizes.get("test", sizes.get("val", 0))
    once += sizes["train"] if recipe.transfer.head_resolution else 0

    def left(side: int) -> float:
        return seconds * 7 / 8 - 0.25 * once * side**2 / rate

    sides = list(range(recipe.resolution, SMALLEST - 1, -32)) or [recipe.resolution]
    enough = (side for side in sides if 3 * at_epoch * side**2 / rate <= left(side))
    side = next(enough, sides[-1])  # with fewer than three epochs, smaller pictures teach more
    return plan_epochs(lambda epochs: make(side, epochs), round(at_epoch), left(side), rate)


def warn_of_small_maps(network: MBConvNet, recipe: Recipe, reporter: Reporter) -> None:
    warning = small_map(network.spec, recipe.resolution)
    if warning is not None:
        reporter.say(f"  {warning}", style="yellow")


def describe(network: MBConvNet, recipe: Recipe, machine: Machine) -> list[str]:
    """Lines on what will happen, once the trainer is made."""
    phases = " then ".join(f"{p.epochs} epochs at {p.resolution} px" for p in recipe.phases)
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
