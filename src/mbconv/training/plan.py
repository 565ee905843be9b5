"""What a run is going to do, decided before anything of it is written."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mbconv.data.audit import Audit
from mbconv.data.source import Dataset
from mbconv.nn.model import MBConvNet
from mbconv.training import determinism, setup
from mbconv.training.budget import fit_budget, pixel_rate
from mbconv.training.console import Reporter
from mbconv.training.distributed import World
from mbconv.training.growth import grown
from mbconv.training.machine import Machine, find_device, plain_machine
from mbconv.training.networks import begin, check_growth
from mbconv.training.recipe import Recipe
from mbconv.training.teacher import load_teacher


@dataclass(frozen=True)
class Plan:
    """Data, network, recipe and machine of a run."""

    dataset: Dataset
    found: Audit
    network: MBConvNet
    pretrained: bool
    recipe: Recipe
    machine: Machine
    config: dict[str, Any]  # what a run's config says beside these
    teacher: MBConvNet | None = None

    @classmethod
    def make(
        cls,
        model: MBConvNet | str | Path,
        data: str | Path,
        settings: setup.Settings,
        earlier: dict[str, Any] | None,
        world: World,
        reporter: Reporter,
        started: float,
    ) -> "Plan":
        """Audit the data, make the network, measure what is fastest.

        `earlier` is the config of a run whose seed, recipe and machine are used again. The budget
        counts from `started`, on `time.perf_counter`.
        """
        seed = earlier["seed"] if earlier else settings.seed
        dataset, found = setup.open_data(data, seed, reporter)
        torch.manual_seed(seed)  # of fresh weights, if only the classifier's
        origin = settings.grow_from
        if origin is not None:
            model = grown(origin, model, seed)
        teacher = None
        if settings.teacher is not None:
            teacher = load_teacher(settings.teacher, dataset.classes)
        sizes = {name: len(samples) for name, samples in dataset.splits.items()}
        if earlier:
            asked = Recipe.from_dict(earlier["recipe"])
        else:
            asked = setup.asked_recipe(settings, model, sizes["train"])
        start = begin(asked, model, dataset.classes, earlier, seed)
        network = start.network
        resolution = setup.choose_resolution(start.whole, found, settings.resolution)

        def usual(resolution: int, epochs: int | None) -> Recipe:
            pictures = sizes["train"]
            recipe = setup.choose_recipe(settings, resolution, pictures, start.pretrained, epochs)
            return start.resolved(recipe)

        recipe = start.resolved(asked) if earlier else usual(resolution, settings.epochs)
        check_growth(recipe, origin)
        name = network.spec.name if recipe.grows else setup.name_of(model)
        wanted = settings.recipe is not None and asked.transfer.fresh
        setup.announce(network, start.pretrained, name, reporter, wanted)
        if earlier:
            machine, cache = machine_of(earlier, world), earlier.get("cache")
        else:
            machine = _fastest(network, recipe, settings, world, reporter, teacher)
            if settings.budget is not None:
                left = settings.budget - (time.perf_counter() - started)
                rate = pixel_rate(recipe, machine, world.size)
                recipe = fit_budget(usual, recipe, rate, left, sizes)
                check_growth(recipe, origin)
            cache = setup.choose_cache(settings.cache, recipe, sizes["train"])
        for line in start.describe(recipe):
            reporter.say(line)
        config = {
            "model": setup.name_of(model),
            "data": dataset.source,
            "seed": seed,
            "budget_seconds": settings.budget,
            "trackers": list(settings.trackers),
            "cache": cache,
            "processes": world.size,
            "grown_from": None if origin is None else str(origin),
            "starts_from": start.source,
            "teacher": None if settings.teacher is None else setup.name_of(settings.teacher),
        }
        return cls(dataset, found, network, start.pretrained, recipe, machine, config, teacher)


def _fastest(
    network: MBConvNet,
    recipe: Recipe,
    settings: setup.Settings,
    world: World,
    reporter: Reporter,
    teacher: MBConvNet | None,
) -> Machine:
    machine = plain_machine(find_device(settings.device), world.local_size)
    machine = setup.choose_machine(network, recipe, machine, teacher)
    if settings.deterministic:
        machine = replace(machine, deterministic=True)
        with setup.step_timer(network, recipe, teacher) as seconds_per_step:
            reporter.say(determinism.describe_cost(machine, seconds_per_step))
    return machine


def machine_of(config: dict[str, Any], world: World) -> Machine:
    """The machine of a run's config, its cores shared out among as many processes as there are."""
    machine = Machine.from_dict(config["machine"])
    if config.get("processes", 1) == world.size:
        return machine
    usual = plain_machine(machine.device, world.local_size)
    return replace(machine, threads=usual.threads, workers=usual.workers)
