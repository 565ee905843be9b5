"""Random networks for property tests: small, but every option in every combination."""

from typing import get_args

from hypothesis import strategies as st

from mbconv.arch.block import Activation, Block, Gate, Kind, Shortcut, Sigmoid
from mbconv.arch.spec import Padding, Pooling, Spec, Stage

_activations = st.sampled_from(get_args(Activation))


@st.composite
def blocks(draw: st.DrawFn, channels: int | None = None, stride: int | None = None) -> Block:
    kind = draw(st.sampled_from(get_args(Kind)))
    kernel = draw(st.sampled_from({"mbconv": (3, 5, 7), "fused": (1, 3), "uib": (0, 3, 5)}[kind]))
    start = draw(st.sampled_from((0, 3, 5))) if kind == "uib" else 0
    stride = stride or draw(st.sampled_from((1, 2)))
    return Block(
        kind=kind,
        channels=channels or draw(st.integers(1, 24)),
        kernel=kernel,
        start_kernel=start,
        stride=stride if kernel + start else 1,
        dilation=draw(st.sampled_from((1, 1, 2))),
        expand=draw(st.sampled_from((1, 1.5, 2, 4, 6))),
        expand_from=draw(st.sampled_from((None, None, 5))),
        expand_divisor=draw(st.sampled_from((1, 8))),
        activation=draw(_activations),
        gate=draw(st.sampled_from((None, *get_args(Gate)))),
        gate_ratio=draw(st.sampled_from((0.1, 0.25, 1))),
        gate_base=draw(st.sampled_from(("input", "expanded"))),
        gate_divisor=draw(st.sampled_from((1, 8))),
        gate_activation=draw(st.sampled_from((None, "relu"))),
        gate_sigmoid=draw(st.sampled_from(get_args(Sigmoid))),
        shortcut=draw(st.sampled_from((None, *get_args(Shortcut)))),
    )


@st.composite
def stages(draw: st.DrawFn, one_width: bool) -> Stage:
    first = draw(blocks())
    width = first.channels if one_width else None
    others = draw(st.lists(blocks(channels=width, stride=1), max_size=2))
    return Stage(blocks=(first, *others))


@st.composite
def specs(draw: st.DrawFn, one_width: bool = False) -> Spec:
    """Any spec; with `one_width` each stage has blocks of one width."""
    return Spec(
        name=draw(st.text(max_size=8)),
        stages=tuple(draw(st.lists(stages(one_width), min_size=1, max_size=3))),
        source=draw(st.text(max_size=8)),
        resolution=draw(st.integers(1, 48)),
        in_channels=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(1, 12)),
        stem_channels=draw(st.integers(1, 16)),
        stem_kernel=draw(st.sampled_from((3, 5, 7))),
        stem_stride=draw(st.sampled_from((1, 2))),
        head_channels=draw(st.integers(1, 32)),
        head_hidden=draw(st.sampled_from((None, 6))),
        head_hidden_norm=draw(st.booleans()),
        activation=draw(_activations),
        pooling=draw(st.sampled_from(get_args(Pooling))),
        dropout=draw(st.sampled_from((0, 0.2, 0.5))),
        drop_path=draw(st.sampled_from((0, 0.2))),
        padding=draw(st.sampled_from(get_args(Padding))),
        bn_eps=draw(st.sampled_from((1e-5, 1e-3))),
        bn_momentum=draw(st.sampled_from((0.01, 0.1, 1))),
        zero_gamma=draw(st.booleans()),
        width_divisor=draw(st.sampled_from((1, 4, 8))),
        width_tenth_rule=draw(st.booleans()),
        depth_rounding=draw(st.sampled_from(("ceil", "round"))),
        scale_stem=draw(st.booleans()),
        scale_head=draw(st.sampled_from(("always", "never", "up"))),
        scale_outer_depth=draw(st.booleans()),
    )
