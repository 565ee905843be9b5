"""The networks of a run that grows, decided before it begins: what learns first, what next."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec, list_specs
from mbconv.errors import UserError
from mbconv.growing.nearest import nearest
from mbconv.growing.obstacles import obstacles
from mbconv.growing.smaller import smaller
from mbconv.growing.target import following, target_spec
from mbconv.nn.model import MBConvNet, build
from mbconv.training import setup
from mbconv.training.recipe import SMALLER, Recipe
from mbconv.training.recipes import grow, grow_pretrained
from mbconv.weights.model import create_model, has_weights, is_name


@dataclass
class Networks:
    """The networks of a run's phases: `last`, and what the recipe says grows into it.

    `first` is the spec of the one that learns first where it is there already.
    """

    last: Spec
    first: Spec | None = None
    _found: dict[str, Spec] = field(default_factory=dict)  # by what the user calls them
    _checked: dict[tuple[Any, ...], list[Spec]] = field(default_factory=dict)

    def resolved(self, recipe: Recipe) -> Recipe:
        """The recipe with a Spec in every phase; as it is where its network does not grow.

        Raises UserError where a network cannot grow into the next phase's, or learn in part only.
        """
        if not recipe.grows:
            return recipe
        asked = tuple(phase.network for phase in recipe.phases)
        if asked not in self._checked:  # a budget tries many lengths of one recipe
            self._checked[asked] = self.specs(recipe)
            _check(self._checked[asked])
        frozen = recipe.transfer.frozen_stages
        if frozen:
            raise UserError(
                f"transfer.frozen_stages is {frozen}, and what is new in frozen stages would never "
                "learn: give --set transfer.frozen_stages=0 where the network grows."
            )
        phases = zip(recipe.phases, self._checked[asked], strict=True)
        return replace(recipe, phases=tuple(replace(p, network=spec) for p, spec in phases))

    def specs(self, recipe: Recipe) -> list[Spec]:
        """The network of each phase."""
        specs: list[Spec] = []
        for phase in reversed(recipe.phases):
            after = specs[-1] if specs else self.last
            wanted = phase.network
            if wanted == SMALLER:
                specs.append(smaller(after))
            else:
                specs.append(after if wanted is None else self._find(wanted))
        specs.reverse()
        if specs[-1].hash != self.last.hash:
            raise UserError(
                f"The last phase trains {specs[-1].name}, but the run is to end with "
                f"{self.last.name}: leave the last phase's network away, or give it as --model."
            )
        for number in range(len(specs) if self.first else 0):
            assert self.first is not None
            specs[number] = self.first
            if recipe.phases[number].network is not None:
                break
        return specs

    def _find(self, wanted: str | Spec) -> Spec:
        if isinstance(wanted, Spec):
            return wanted.replace(num_classes=self.last.num_classes)
        if wanted not in self._found:
            found = target_spec(wanted, self.last)
            self._found[wanted] = found.replace(num_classes=self.last.num_classes)
        return self._found[wanted]


def _check(specs: Sequence[Spec]) -> None:
    """UserError unless each phase's network can become the next one's."""
    for number, (spec, after) in enumerate(pairwise(specs), start=1):
        _check_step(number, spec, after, ends=number + 1 == len(specs))


def _check_step(number: int, spec: Spec, after: Spec, ends: bool) -> None:
    """The same for the phase of that number, from 1; `ends`: the next one is the last."""
    place = "--model" if ends else f"phases.{number}.network"
    if cost(after).params < cost(spec).params:
        raise UserError(
            f"Networks of a run only grow, but phase {number + 1} trains {after.name} "
            f"({_size(after)} parameters) after {spec.name} ({_size(spec)}): give {place} "
            f"a larger one, or phases.{number - 1}.network a smaller one."
        )
    found = obstacles(spec, after)
    if found:
        near = nearest(spec, after)
        raise UserError(
            f"{spec.name} of phase {number} cannot grow into {after.name} of phase {number + 1} "
            f"without changing its answers: {'; '.join(found[:3])}. The nearest that it can become "
            f"has {_size(near)} parameters: mbconv grow SOURCE --to {after.name} --mode nearest "
            "makes it, and --model takes that file."
        )


@dataclass(frozen=True)
class Start:
    """The network that learns first, and those that it becomes, if any."""

    network: MBConvNet
    pretrained: bool
    whole: MBConvNet  # the last
    unused: bool = False  # whether there are weights for the last that growth has no use for
    networks: Networks | None = None
    source: str | None = None  # whose weights the first of several networks has

    def resolved(self, recipe: Recipe) -> Recipe:
        """As `Networks.resolved`."""
        return self.networks.resolved(recipe) if self.networks else recipe

    def describe(self, recipe: Recipe) -> list[str]:
        """What the network grows into and when."""
        told, lines = self.network.spec.hash, []
        for epoch in range(1, recipe.epochs + 1):
            spec = recipe.phase(epoch).network
            if isinstance(spec, Spec) and spec.hash != told:
                told = spec.hash
                lines.append(
                    f"  grows into {spec.name}, {_size(spec)} parameters, before epoch {epoch}"
                )
        if lines and self.unused and not self.pretrained:
            lines.append(
                "  The weights that it has then are not used: growth begins with fresh ones. "
                "--recipe finetune starts from them."
            )
        return lines


def begin(
    recipe: Recipe,
    model: MBConvNet | str | Path,
    labels: tuple[str, ...],
    earlier: dict[str, Any] | None,
    seed: int,
) -> Start:
    """What a run by this recipe starts with, if it is to end with `model`.

    `earlier` is the config that the recipe is from. A named first network has its published
    weights, where there are some, a file or run its own; names then stand for shapes with the
    numerics of these weights. What grows into `model` needs no weights of it.
    """
    fresh = recipe.transfer.fresh and isinstance(model, str) and is_name(model)
    network, pretrained = setup.make_model(model, labels, fresh=recipe.grows or fresh)
    if not recipe.grows:
        return Start(network, pretrained and not fresh, network)
    classes = len(labels)
    last = recipe.phases[-1].network
    decided = earlier is not None and isinstance(last, Spec)  # by a run that had resolved it
    ends = last if decided and isinstance(last, Spec) else network.spec
    networks = Networks(ends.replace(num_classes=classes))
    first = networks.specs(recipe)[0]
    if earlier and "starts_from" in earlier:
        source = earlier["starts_from"]
    else:
        source = _source(recipe, first)
    torch.manual_seed(seed)
    if source is None:
        made = build(first)
        made.preprocessing = network.preprocessing
    else:
        made = create_model(source, pretrained=True, num_classes=classes)
        if not isinstance(model, MBConvNet) and not decided:
            ends = target_spec(model, made.spec)
        networks = Networks(ends.replace(num_classes=classes), first=made.spec)
    made.labels = labels
    return Start(made, source is not None, network, pretrained, networks, source)


def _source(recipe: Recipe, first: Spec) -> str | None:
    """The name or path that the weights of the first network come from, if there are any."""
    given = next(phase.network for phase in recipe.phases if phase.network is not None)
    fresh = recipe.transfer.fresh
    if isinstance(given, str) and given != SMALLER:
        return given if has_weights(given) and not (fresh and is_name(given)) else None
    return None if fresh else _published(first)


def _published(spec: Spec) -> str | None:
    """The name under which there are weights for just this network."""
    if spec.name not in list_specs() or not has_weights(spec.name):
        return None
    return spec.name if following(get_spec(spec.name), spec).hash == spec.hash else None


def check_growth(recipe: Recipe, grow_from: object) -> None:
    """UserError where the recipe is one for growing but does not, or starts in two ways."""
    if recipe.grows and grow_from is not None:
        raise UserError(
            "--grow-from starts with the whole network, and this recipe with a smaller one: give "
            f"the network to start from as the first phase's (--set phases.0.network={grow_from}), "
            "or leave --recipe away."
        )
    if recipe.name in (grow.__name__, grow_pretrained.__name__) and not recipe.grows:
        raise UserError(
            f"{recipe.epochs} epoch leaves no room to grow: take at least two (--epochs, or a "
            "longer --budget), or another recipe."
            if recipe.epochs == 1
            else f"No phase of this {recipe.name} names a network to start with: set "
            "phases.0.network, or take another recipe."
        )


def _size(spec: Spec) -> str:
    return f"{cost(spec).params / 1e6:.2f}M"
