"""A network from a spec and a dict of tensors, or a sentence that says what does not fit."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet


def assemble(spec: Spec, tensors: Mapping[str, Tensor]) -> MBConvNet:
    """The network of `spec` with copies of `tensors` as its parameters and buffers.

    Floating tensors of any width become float32. Nothing is drawn at random, so the random
    generators stay as they are. The network is in evaluation mode. Raises UserError that names
    the first tensors that are missing, too many or of another shape.
    """
    model = outline(spec)
    reason = misfit(model.state_dict(), tensors)
    if reason:
        raise UserError(f"The weights do not fit the spec {spec.name!r}: {reason}.")
    copies = {name: _own_copy(tensor) for name, tensor in tensors.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def check_fit(spec: Spec, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError unless `tensors` are those of the network that `spec` describes."""
    reason = misfit(outline(spec).state_dict(), tensors)
    if reason:
        raise UserError(f"The weights do not fit the spec {spec.name!r}: {reason}.")


def misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """What keeps `given` from filling `own`, in words; None where everything fits."""
    both = [name for name in own if name in given]
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    reasons = []
    if missing:
        reasons.append(f"missing {some(missing)}")
    if unexpected:
        reasons.append(f"no place for {some(unexpected)}")
    for name in both:
        if given[name].shape != own[name].shape:
            shapes = f"{list(given[name].shape)} instead of {list(own[name].shape)}"
            reasons.append(f"{name} has the shape {shapes}")
            break
        if given[name].is_floating_point() != own[name].is_floating_point():
            reasons.append(f"{name} is {given[name].dtype} instead of {own[name].dtype}")
            break
    return "; ".join(reasons) or None


def some(names: Collection[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    first = ", ".join(list(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def outline(spec: Spec) -> MBConvNet:
    """The network without memory behind its tensors, so that an absurd spec costs nothing."""
    try:
        with torch.device("meta"):
            return MBConvNet(spec)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        raise UserError(f"The spec {spec.name!r} is too large to be built: {error}.") from error


def _own_copy(tensor: Tensor) -> Tensor:
    """A float32 (or whole-number) copy in the plain memory layout; on `meta` what is on `meta`."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    device = "meta" if tensor.is_meta else "cpu"
    return torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor)
