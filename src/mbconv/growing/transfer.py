"""Plans carried out: tensors of a smaller network become those of a larger one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.arch.spec import Spec
from mbconv.growing.plan import Axis, Mode, Move, Plan, plan
from mbconv.growing.target import target_spec
from mbconv.nn.model import MBConvNet, build
from mbconv.weights.assemble import check_fit
from mbconv.weights.file import tensor_hash
from mbconv.weights.model import load

_NOISE = 0.1  # of repeated blocks, as a share of each weight

State = Mapping[str, Tensor]


def grow(
    model: MBConvNet | str | Path,
    target: Spec | str | Path,
    *,
    mode: Mode = "exact",
    resolution: int | None = None,
    seed: int = 0,
) -> MBConvNet:
    """A larger network that computes what `model` does, in the same mode and number format.

    `model` is a network or whatever `load` takes; it stays as it is. `target` is a Spec, a spec
    file, a model whose shape is taken, or a name. A name stands for widths, depths and kernels;
    classes, input channels, pooling and numerics (padding, batch norm) are then those of `model`.
    With `mode="exact"` all logits stay equal in evaluation mode, up to rounding; for `nearest`,
    `transplant` and `convolutions` see `mbconv.growing.plan.plan`. Labels and preprocessing come
    along; `resolution` (pixels) changes what the network is shown, and so its answers. Classes
    that `model` lacks start with logits of zero and are called `added 1` and so on. `seed` draws
    how weights are shared out among copies, and what starts afresh.

    Raises UserError where there is no such plan, and names what the target would have to have.
    """
    source = model if isinstance(model, MBConvNet) else load(model)
    state = source.state_dict()
    check_fit(source.spec, state)
    wanted = plan(source.spec, target_spec(target, source.spec), mode)
    grown = _fresh(wanted.target, seed)
    like = source.head.classifier.weight
    grown = grown.to(device=like.device, dtype=like.dtype)
    grown.load_state_dict(transfer(wanted, state, grown.state_dict(), seed=seed))
    grown.labels = _labels(source, wanted.target.num_classes)
    grown.preprocessing = source.preprocessing
    if resolution is not None:
        grown.preprocessing = source.preprocessing.at(resolution)
    grown.provenance = provenance(source, state, grown_from=source.spec.name, mode=wanted.mode)
    return grown.train(source.training)


@torch.no_grad()
def difference(source: MBConvNet, grown: MBConvNet) -> float:
    """Largest difference of the logits on noise, over their largest magnitude, in evaluation mode.

    Four pictures at the source's resolution; logits of classes that the source lacks do not count.
    """
    side = source.preprocessing.resolution
    like = source.head.classifier.weight
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, source.spec.in_channels, side, side, generator=draw).to(like)
    logits = []
    for network in (source, grown):
        training = network.training
        logits.append(network.eval()(x)[:, : source.spec.num_classes])
        network.train(training)
    old, new = logits
    return float((new - old).abs().max() / old.abs().max())


@torch.no_grad()
def transfer(wanted: Plan, source: State, fresh: State, *, seed: int = 0) -> dict[str, Tensor]:
    """The target's state dict: from `source`'s tensors, and for what starts afresh from `fresh`'s.

    Equal seeds share weights out equally, so that a moving average grows as its network does.
    """
    draw = torch.Generator().manual_seed(seed)
    made = {move.name: _carried_out(move, source, fresh, draw) for move in wanted.moves}
    if wanted.source.bn_eps != wanted.target.bn_eps:
        moved = {move.name for move in wanted.moves if move.start == "source"}
        old = {name: tensor for name, tensor in made.items() if name in moved}
        change_eps(old, wanted.source.bn_eps, wanted.target.bn_eps)
        made |= old
    return made


def _carried_out(move: Move, source: State, fresh: State, draw: torch.Generator) -> Tensor:
    like = fresh[move.name]
    if move.start == "fresh":
        return like
    if move.start == "constant":
        return torch.full_like(like, move.value)
    if move.start == "drawn":
        return _noise(like, draw) * move.value
    if move.start == "identity":
        tensor = _identity(move, like)
    else:
        assert move.source is not None
        tensor = source[move.source]
    tensor = _spread(tensor, move, draw)
    if move.factor != 1:
        tensor = tensor * move.factor
    return (
        tensor * (1 + _NOISE * _noise(like, draw)) if move.repeated and tensor.ndim > 1 else tensor
    )


def _noise(like: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draw, dtype=torch.float64).to(like)


def _identity(move: Move, like: Tensor) -> Tensor:
    """[C, C, 1, 1] or, for a depthwise convolution, [C, 1, 1, 1]."""
    rows, columns = move.source_shape[:2]
    matrix = torch.eye(rows) if rows == columns else torch.ones(rows, columns)
    return matrix[:, :, None, None].to(like)


def _spread(tensor: Tensor, move: Move, draw: torch.Generator) -> Tensor:
    """[O, I, k, k] -> the move's shape: rows copied, columns shared out, the kernel padded."""
    if move.source_shape[2:] != move.shape[2:]:  # the centre stays the centre
        margin = (move.shape[-1] - move.source_shape[-1]) // 2
        tensor = F.pad(tensor, (margin,) * (2 * len(move.shape[2:])))
    if _widens(move.rows):
        origins, live = origins_of(move.rows, tensor.device)
        shape = (-1, *[1] * (tensor.ndim - 1))
        tensor = tensor[origins] * live.view(shape).to(tensor)
    if _widens(move.columns):
        origins, live = origins_of(move.columns, tensor.device)
        tensor = tensor[:, origins] * _shares(tensor, origins, live, draw)
    return tensor


def _widens(axis: Axis) -> bool:
    return any(span.old != span.new for span in axis)


def origins_of(axis: Axis, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each new channel the old one that it comes from, and whether it comes from any."""
    origins, live, start = [], [], 0
    for span in axis:
        origins += [start + number % span.old if span.old else 0 for number in range(span.new)]
        live += [span.old > 0] * span.new
        start += span.old
    return torch.tensor(origins, device=device), torch.tensor(live, device=device)


def _shares(tensor: Tensor, origins: Tensor, live: Tensor, draw: torch.Generator) -> Tensor:
    """[O, I', k, k]: over the copies of a column of `tensor` [O, I, k, k] they add up to one.

    Drawn for each weight apart: with equal shares, or one share for a whole column, all copies
    would learn the same and stay copies.
    """
    rows, kernel = len(tensor), tensor.shape[2:]
    drawn = torch.rand(rows, len(origins), *kernel, generator=draw, dtype=torch.float64)
    shares = (0.5 + drawn).to(tensor.device) * live.view(-1, *[1] * len(kernel))
    sums = shares.new_zeros(tensor.shape).index_add_(1, origins, shares)
    return (shares / sums[:, origins]).to(tensor)


def change_eps(made: dict[str, Tensor], old: float, new: float) -> None:
    """Scales that make good for another epsilon of the batch norms."""
    for name in made:
        if name.endswith(".norm.weight"):
            variance = made[name.removesuffix("weight") + "running_var"]
            made[name] = made[name] * ((variance + new) / (variance + old)).sqrt()


def _fresh(spec: Spec, seed: int) -> MBConvNet:
    """`build` without touching torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(spec)


def _labels(source: MBConvNet, classes: int) -> tuple[str, ...] | None:
    if source.labels is None or classes < len(source.labels):
        return None
    added = classes - len(source.labels)
    return (*source.labels, *(f"added {number + 1}" for number in range(added)))


def provenance(source: MBConvNet, state: State, **about: Any) -> dict[str, Any]:
    """Where a network made from `source` comes from: `about` how, its hashes, licences, origin."""
    base = source.provenance or {}
    older = base.get("base") or {}
    licences = {
        key: base.get(key) or older.get(key)
        for key in ("license", "data_license")
        if base.get(key) or older.get(key)
    }
    return {
        **about,
        "spec": source.spec.hash,
        "sha256": tensor_hash(state),
        **licences,
        "base": base,
    }
