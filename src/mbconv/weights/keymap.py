"""The engine behind all key maps: other libraries' tensors <-> ours.

A library's layout names its module for each of ours; parameters (`weight`, `running_mean`) are
called the same on both sides. So one map serves both directions.
"""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from mbconv.arch.spec import Spec
from mbconv.nn.model import MBConvNet
from mbconv.weights.assemble import assemble, misfit, outline
from mbconv.weights.libraries.network import Library, Network

COUNTER = "num_batches_tracked"  # of batch norms; older files lack it, and nothing depends on it


class KeyMap:
    """Between the tensors of a network in `library` and those of `spec`, a spec of that network."""

    def __init__(self, library: Library, network: Network, spec: Spec) -> None:
        self.spec = spec
        self.pointwise = library.pointwise
        self.names = network.layout(spec)
        self.own = _shapes(spec)
        self.theirs = {key: self._rename(key) for key in self.own}

    def misfit(self, foreign: Mapping[str, Tensor]) -> str | None:
        """What keeps `foreign` from being this network's state dict, in its own names, or None."""
        return misfit(self._expected(), self._complete(foreign))

    def agreement(self, foreign: Mapping[str, Tensor]) -> float:
        """Share of all tensors, there and here, whose name and shape are on both sides."""
        expected = self._expected()
        agree = sum(k in foreign and foreign[k].shape == t.shape for k, t in expected.items())
        return agree / len(expected.keys() | foreign.keys())

    def to_own(self, foreign: Mapping[str, Tensor]) -> MBConvNet:
        """The network, in evaluation mode; `foreign` must fit."""
        foreign = self._complete(foreign)
        tensors = {k: foreign[self.theirs[k]].reshape(own.shape) for k, own in self.own.items()}
        return assemble(self.spec, tensors)

    def to_foreign(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under their names, in their shapes, on the CPU."""
        return {
            self.theirs[key]: tensor.detach().cpu().reshape(self._shape(key)).clone()
            for key, tensor in own.items()
        }

    def _rename(self, key: str) -> str:
        module, _, parameter = key.rpartition(".")
        return f"{self.names[module]}.{parameter}"

    def _shape(self, key: str) -> list[int]:
        module, _, parameter = key.rpartition(".")
        widen = module in self.pointwise and parameter == "weight"
        return [*self.own[key].shape, *((1, 1) if widen else ())]

    def _expected(self) -> dict[str, Tensor]:
        return {self.theirs[k]: own.reshape(self._shape(k)) for k, own in self.own.items()}

    def _complete(self, foreign: Mapping[str, Tensor]) -> dict[str, Tensor]:
        counters = [name for name in self.theirs.values() if name.endswith(COUNTER)]
        return {**{name: torch.tensor(0) for name in counters}, **foreign}


@lru_cache(maxsize=16)
def _shapes(spec: Spec) -> dict[str, Tensor]:
    """Tensors without memory, in the shapes of the network's: asked for twice in a conversion."""
    return outline(spec).state_dict()
