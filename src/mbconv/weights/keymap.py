"""The engine behind all key maps: other people's tensor names -> ours.

A map is a list of (pattern, template) pairs. A pattern is a regular expression that must match
a whole foreign name; the template is our name, with \\1, \\2 for the pattern's groups.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from mbconv.errors import UserError
from mbconv.weights.assemble import some

Rules = Iterable[tuple[str, str]]


def translate(foreign: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """The same tensors under our names.

    Strict: every foreign name is matched by exactly one rule and gives a name of its own. Raises
    UserError with the names where that is not so. That every tensor of ours gets one is checked
    by `assemble`, which knows the network.
    """
    compiled = [(re.compile(pattern), template) for pattern, template in rules]
    unknown: list[str] = []
    ambiguous: list[str] = []
    twice: list[str] = []
    own: dict[str, Tensor] = {}
    for name, tensor in foreign.items():
        matches = [(m, t) for pattern, t in compiled if (m := pattern.fullmatch(name))]
        if len(matches) != 1:
            (ambiguous if matches else unknown).append(name)
            continue
        match, template = matches[0]
        target = match.expand(template)
        if target in own:
            twice.append(f"{name} -> {target}")
        own[target] = tensor
    for names, what in (
        (unknown, "holds tensors that the key map does not know"),
        (ambiguous, "holds tensors that more than one rule of the key map matches"),
        (twice, "holds several tensors for one place"),
    ):
        if names:
            raise UserError(f"This checkpoint {what}: {some(names)}. It belongs to another model.")
    return own
