"""Removals carried out on tensors: what stays, fitted again to do what went."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mbconv.nn.block import MBConvBlock
from mbconv.nn.model import MBConvNet
from mbconv.shrinking.change import HEAD, Change, module_after, place, smaller
from mbconv.shrinking.refit import Moments, elimination, refitted
from mbconv.shrinking.statistics import Statistics
from mbconv.weights.assemble import assemble

State = dict[str, Tensor]


class Surgeon:
    """Cuts modules of one network; `statistics` are that network's own."""

    def __init__(self, model: MBConvNet, statistics: Statistics) -> None:
        self.model = model
        self.statistics = statistics
        self._orders: dict[str, list[int]] = {}

    @torch.no_grad()
    def cut(self, change: Change) -> State:
        """The tensors of the changed module, under its own names; of a block that goes, none."""
        if change.kind == "block":
            return {}
        state = dict(self.model.get_submodule(change.module).state_dict())
        if change.kind == "kernel":
            return self._smaller_kernel(state, change)
        return self._narrower(state, change)

    def block(self, change: Change) -> MBConvBlock:
        """The changed block as a module, in evaluation mode."""
        spec = smaller(self.model.spec, change)
        wanted = place(change.module)
        x, block = next((x, block) for s, b, x, block in spec.blocks() if (s, b) == wanted)
        made = MBConvBlock(spec, block, x)
        made.load_state_dict(self.cut(change))
        return made.eval()

    def apply(self, changes: Sequence[Change]) -> MBConvNet:
        """The network after several changes, of different modules."""
        state = dict(self.model.state_dict())
        for change in changes:
            inside = f"{change.module}."
            state = {name: t for name, t in state.items() if not name.startswith(inside)}
            state |= {inside + name: tensor for name, tensor in self.cut(change).items()}
        spec, left = self.model.spec, list(changes)
        while left:
            change = left.pop(0)
            spec = smaller(spec, change)
            left = [replace(c, module=module_after(c.module, change)) for c in left]
            state = {_renamed(name, change): tensor for name, tensor in state.items()}
        made = assemble(spec, state)
        made.labels, made.preprocessing = self.model.labels, self.model.preprocessing
        return made

    def _narrower(self, state: State, change: Change) -> State:
        head = change.module == HEAD
        reader, norm = ("project.conv", "project.norm") if not head else ("classifier", None)
        if head and self.model.spec.head_hidden is not None:
            reader = "hidden.linear"
            norm = "hidden.norm" if self.model.spec.head_hidden_norm else None
        weight = state[f"{reader}.weight"]
        matrix = weight.flatten(1)
        moments = self.statistics.read[change.module]
        gone = self._order(change, matrix, _scale(state, norm, self.model.spec.bn_eps))
        width = matrix.shape[1]
        dropped = torch.tensor(gone[: width - change.after], device=weight.device)
        stays = torch.ones(width, dtype=torch.bool, device=weight.device)
        stays[dropped] = False
        kept = stays.nonzero().flatten()
        made = {
            name: _part(name, tensor, kept, ("conv.",) if head else ("expand.", "depthwise."))
            for name, tensor in state.items()
        }
        if change.module in self.statistics.gated:
            _refit_gate(made, state, self.statistics.gated[change.module], kept)
        fitted, fall = refitted(matrix, moments, kept)
        made[f"{reader}.weight"] = fitted.reshape(len(weight), len(kept), *weight.shape[2:])
        if norm is None:
            made[f"{reader}.bias"] = state[f"{reader}.bias"] + fall
        else:
            made[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] - fall
        return made

    def _order(self, change: Change, matrix: Tensor, scale: Tensor | float) -> list[int]:
        """The order of elimination, as far as half of the channels; worked out once a module."""
        if change.module not in self._orders:
            covariance = self.statistics.read[change.module].covariance
            scaled = matrix * scale
            count = matrix.shape[1] - matrix.shape[1] // 3
            self._orders[change.module] = elimination(scaled, covariance, count)
        return self._orders[change.module]

    def _smaller_kernel(self, state: State, change: Change) -> State:
        weight, moments = state["depthwise.conv.weight"], self.statistics.patches[change.module]
        margin = (change.before - change.after) // 2
        numbers = torch.arange(change.before**2, device=weight.device)
        square = numbers.view(change.before, change.before)
        kept = square[margin:-margin, margin:-margin].flatten()
        fitted, fall = refitted(weight.flatten(2), moments, kept)
        state["depthwise.conv.weight"] = fitted.view(-1, 1, change.after, change.after)
        mean = state["depthwise.norm.running_mean"]
        state["depthwise.norm.running_mean"] = mean - fall.flatten()
        return state


def _part(name: str, tensor: Tensor, kept: Tensor, rows: tuple[str, ...]) -> Tensor:
    """A tensor of the module without the channels that go; what reads them is fitted apart."""
    if name.startswith(rows) or (name.startswith("gate") and "expand." in name):
        return tensor[kept] if tensor.ndim else tensor
    return tensor


def _refit_gate(made: State, state: State, moments: Moments, kept: Tensor) -> None:
    """What a gate reads of the map, fitted at every place; its means then fit as well."""
    for name, weight in state.items():
        if name.startswith("gate") and name.endswith((".reduce.weight", ".conv.weight")):
            fitted, fall = refitted(weight.flatten(1), moments, kept)
            made[name] = fitted[:, :, None, None]
            bias = name.replace("weight", "bias")
            if bias in state:  # spatial gates have none
                made[bias] = state[bias] + fall


def _scale(state: State, norm: str | None, eps: float) -> Tensor | float:
    """What a batch norm multiplies its rows by, [O, 1]."""
    if norm is None:
        return 1.0
    return (state[f"{norm}.weight"] * (state[f"{norm}.running_var"] + eps).rsqrt())[:, None]


def _renamed(name: str, removed: Change) -> str:
    if removed.kind != "block" or not name.startswith("stages."):
        return name
    module = ".".join(name.split(".")[:3])
    return module_after(module, removed) + name.removeprefix(module)
