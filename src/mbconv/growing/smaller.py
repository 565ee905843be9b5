"""A smaller relative of a network, which can grow into it: where a run that grows begins."""

import math
from collections.abc import Iterator
from functools import cache

from mbconv.arch.cost import cost
from mbconv.arch.scale import scale
from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec, list_specs
from mbconv.errors import UserError
from mbconv.growing.obstacles import obstacles
from mbconv.growing.target import following

SHARE = 0.5  # of the multiply-adds, that is looked for
_BOUNDS = (0.2, 0.8)  # of the named ones; below there is too much to grow, above too little to save
# Width and depth of those made by scaling, until one has a way to grow.
_SCALES = ((1 / 1.4, 0.5), (1 / 1.4, 1.0), (1.0, 0.5), (0.5, 1.0))


@cache
def smaller(spec: Spec) -> Spec:
    """Of its family, the named network nearest to half its multiply-adds that grows into it.

    Its ends and numerics are those of `spec`; its name stands for its shape. Where there is none:
    half the depth and 1/1.4 of the width, or what comes near. Raises UserError where
    nothing smaller grows into it.
    """
    whole = cost(spec).macs
    named = {}
    for relative in _named(spec):
        share = cost(relative, spec.resolution).macs / whole
        if _BOUNDS[0] <= share <= _BOUNDS[1] and not obstacles(relative, spec):
            named[relative] = abs(math.log(share / SHARE))
    if named:
        return min(named, key=named.__getitem__)
    for width, depth in _SCALES:
        made = scale(spec, width=round(width, 3), depth=depth)
        if cost(made).macs < whole and not obstacles(made, spec):
            return made
    raise UserError(
        f"No smaller relative of {spec.name} is known that grows into it: name one with --set "
        "phases.0.network=NAME (or a spec.json), or train by a recipe without growth."
    )


def _named(spec: Spec) -> Iterator[Spec]:
    """The others of efficientnet, mobilenetv2 and so on, with the ends and numerics of `spec`."""
    family = spec.name.partition("_")[0]
    for name in list_specs():
        if name != spec.name and name.partition("_")[0] == family:
            yield following(get_spec(name), spec)
