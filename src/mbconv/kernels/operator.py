"""Defining the fused operators in torch's dispatcher.

`torch.library.custom_op` would do, but it looks at the schema of each argument of each call and
checks each result: Python that runs with cold caches between two passes over large maps. Of a step
of EfficientNet-B0 with two small pictures, which is little else, that took 2.5 of 29 ms.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

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
    gradient or None for each input, as for `torch.library.register_autograd`. But the first of
    `ctx.needs_input_grad` is none of the operator's.
    """

    def below(keys: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & torch._C._after_autograd_keyset, *inputs)

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keys: Any, *inputs: Any) -> Any:
            output = below(keys, *inputs)
            setup(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            return None, *formula(ctx, *grads)

    def autograd(keys: Any, *inputs: Any) -> Any:
        learns = torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)
        return (Formula.apply if learns else below)(keys, *inputs)

    _LIBRARY.impl(op._opname, autograd, "Autograd", with_keyset=True)
