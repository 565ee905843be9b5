"""Defining the fused operators in torch's dispatcher.

`torch.library.custom_op` would do, but it looks at the schema of each argument of each call and
checks each result: Python that runs with cold caches between two passes over large maps. Of a step
of EfficientNet-B0 with two small pictures, which is little else, that took 2.5 of 29 ms.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from mbconv.errors import UserError

_LIBRARY: Any = torch.library.Library("mbconv", "DEF")  # type: ignore[no-untyped-call]


def operator(function: Callable[..., Any]) -> OpOverload:
    """Define `mbconv::<name>` by the function's signature: on any device, mutating nothing.

    No argument may have a default; no result may share memory with an argument or another result.
    """
    name = function.__name__
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    # Where a frame that torch.compile leaves alone calls it, the kernels are not to be compiled.
    uncompiled = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, uncompiled, "CompositeExplicitAutograd")
    return getattr(torch.ops.mbconv, name).default  # type: ignore[no-any-return]


def fake(*operators: OpOverload) -> Callable[[Callable[..., Any]], None]:
    """Register what gives results of the right shapes and formats without computing them."""

    def register(function: Callable[..., Any]) -> None:
        for op in operators:
            torch.library.register_fake(op, function, lib=_LIBRARY)

    return register


def differentiate(
    op: OpOverload, formula: Callable[..., tuple[Any, ...]], setup: Callable[..., None]
) -> None:
    """Register the backward: setup(ctx, inputs, output) saves, formula(ctx, *grads) gives a
    gradient or None for each input, as for `torch.library.register_autograd`.
    """

    def below(keys: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & torch._C._after_autograd_keyset, *inputs)

    def forward(ctx: Any, *inputs_and_keys: Any) -> Any:
        *inputs, keys = inputs_and_keys
        output = below(keys, *inputs)
        setup(ctx, inputs, output)
        return output

    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph: what it lacked would pass for zero
            raise UserError(
                "The fused kernels have no second derivative (create_graph=True): compute with "
                "mbconv.kernels.use('plain')."
            )
        return *formula(ctx, *grads), None

    parts = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"{op._opname}_formula", (torch.autograd.Function,), parts)

    def autograd(keys: Any, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return function.apply(*inputs, keys)
        return below(keys, *inputs)

    _LIBRARY.impl(op._opname, autograd, "Autograd", with_keyset=True)
