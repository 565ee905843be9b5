"""Growing undone: copies become one channel again, what was silent goes."""

import torch
from torch import Tensor

from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.growing.layout import is_parameter, tensor_shapes
from mbconv.growing.plan import Move, Plan, plan
from mbconv.growing.transfer import State, change_eps, origins_of, provenance
from mbconv.nn.model import MBConvNet
from mbconv.weights.assemble import assemble


def ungrow(model: MBConvNet, target: Spec) -> MBConvNet:
    """The network of `target` that `model` would have grown from.

    Right after growing it computes what its source did. After further training copies differ; the
    first of them stays, and whoever reads it gets what was shared out among them. Labels, as far
    as `target` has classes, and preprocessing come along. Raises UserError where `target` cannot
    grow into the network, and names what it would have to have.
    """
    try:
        wanted = plan(target, model.spec, "exact")
    except UserError as error:
        raise UserError(f"{model.spec.name} does not shrink into {target.name}: {error}") from error
    state = model.state_dict()
    made = _undone(wanted, state)
    shrunk = assemble(target, made).to(model.head.classifier.weight)
    shrunk.load_state_dict(made)
    if model.labels is not None:
        shrunk.labels = model.labels[: target.num_classes]
    shrunk.preprocessing = model.preprocessing
    shrunk.provenance = provenance(model, state, shrunk_from=model.spec.name)
    return shrunk.train(model.training)


@torch.no_grad()
def _undone(wanted: Plan, state: State) -> dict[str, Tensor]:
    """The smaller network's tensors, each from the larger one's first tensor that came from it."""
    shapes, made = tensor_shapes(wanted.source), {}
    for move in wanted.moves:
        if move.start == "source" and not move.repeated and move.source in shapes:
            made[move.source] = _gathered(state[move.name], move)
    if wanted.source.bn_eps != wanted.target.bn_eps:
        change_eps(made, wanted.target.bn_eps, wanted.source.bn_eps)
    return {name: made[name] for name in shapes}


def _gathered(tensor: Tensor, move: Move) -> Tensor:
    """`tensor` in the move's source shape: first rows, sums of shared columns, inner kernel."""
    if move.source_shape[2:] != move.shape[2:]:
        margin = (move.shape[-1] - move.source_shape[-1]) // 2
        inner = slice(margin, margin + move.source_shape[-1])
        tensor = tensor[..., inner] if tensor.ndim == 3 else tensor[..., inner, inner]
    if move.rows:
        origins, live = origins_of(move.rows, tensor.device)
        first = torch.full((sum(span.old for span in move.rows),), len(origins))
        first = first.to(origins).scatter_reduce(
            0, origins[live], torch.arange(len(origins), device=origins.device)[live], "amin"
        )
        tensor = tensor[first]
    if move.columns:
        origins, live = origins_of(move.columns, tensor.device)
        width = sum(span.old for span in move.columns)
        shares = tensor[:, live]
        tensor = shares.new_zeros(len(tensor), width, *tensor.shape[2:])
        tensor = tensor.index_add(1, origins[live], shares)
    tensor = tensor / move.factor if move.factor != 1 else tensor
    return tensor if is_parameter(move.name) else tensor.clone()
