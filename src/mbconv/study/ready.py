"""The ready-made studies: functions from a base network to a grid. Nothing here imports torch.

Their docstring's first line is the question; what follows says what is held equal.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from itertools import product

from mbconv.arch.block import Activation, Gate
from mbconv.arch.fields import known
from mbconv.arch.scale import scale
from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec
from mbconv.errors import UserError
from mbconv.study.grid import Arm, Grid, Study
from mbconv.study.matching import same_macs, same_milliseconds

ACTIVATIONS: tuple[Activation, ...] = ("relu6", "silu", "hard_swish")
GATES: tuple[Gate | None, ...] = (None, "se", "eca", "sse", "scse")


def activation_x_gate(base: Spec) -> Grid:
    """Which activation and which gate?

    ReLU6, SiLU and hard-swish, each with no gate, SE, ECA, sSE and scSE in every block; compared
    with SiLU and SE, EfficientNet's own. Widths and depths are the base's.
    """
    arms = [
        Arm(
            name=f"{activation}, {gate or 'none'}",
            model=base.replace(activation=activation, gate=gate, gate_activation=None),
            levels={"activation": activation, "gate": gate or "none"},
        )
        for activation, gate in product(ACTIVATIONS, GATES)
    ]
    return Grid(arms=arms, baseline="silu, se")


def shortcut(base: Spec) -> Grid:
    """Does it help if every block can skip?

    Identity shortcuts where shapes allow them, ResNet-D's in every block, and none at all.
    """
    return Grid(
        arms=[
            Arm(name="identity", model=base.replace(shortcut="identity")),
            Arm(name="resnet_d", model=base.replace(shortcut="resnet_d")),
            Arm(name="none", model=base.replace(shortcut=None)),
        ]
    )


def regularizer(base: Spec) -> Grid:
    """Dropout before the classifier, or whole blocks dropped?

    Neither, dropout 0.2, drop-path 0.2 (called drop connect in EfficientNet's code), and both.
    """
    paths = ("regularization.dropout", "regularization.drop_path")
    rates = {"none": (0, 0), "dropout": (0.2, 0), "drop_path": (0, 0.2), "both": (0.2, 0.2)}
    return Grid(
        arms=[
            Arm(name=name, model=base, changes=_set(dict(zip(paths, values, strict=True))))
            for name, values in rates.items()
        ]
    )


def optimizer(base: Spec) -> Grid:
    """Which optimizer, at the learning rate that suits it?

    AdamW, SGD with momentum, RMSprop as TensorFlow has it, LAMB and Muon, each at three learning
    rates a factor of three apart, since at one rate apiece the rates would be compared. Weight
    decay is what each is usually given. Rates are for batches of 32.
    """
    middle = {  # learning rate, weight decay
        "adamw": (4e-3, 0.05),
        "sgd": (0.05, 1e-4),
        "rmsprop_tf": (2e-3, 1e-5),
        "lamb": (4e-3, 0.02),
        "muon": (4e-3, 0.05),
    }
    arms = []
    for (name, (rate, decay)), factor in product(middle.items(), (1.0, 1 / 3, 3.0)):
        own = float(f"{rate * factor:.2g}")
        fields = {"name": name, "learning_rate": own, "weight_decay": decay}
        arms.append(
            Arm(
                name=f"{name} {own:g}",
                model=base,
                changes=_set({f"optimizer.{key}": value for key, value in fields.items()}),
                levels={"optimizer": name, "rate": "middle" if factor == 1 else f"x {factor:.2g}"},
            )
        )
    return Grid(arms=arms)


def mixup(base: Spec) -> Grid:
    """Mix pictures while training, or not?

    Nothing, mixup 0.2, cutmix 1, and both, one of them drawn for each batch.
    """
    paths = ("augmentation.mixup", "augmentation.cutmix")
    rates = {"none": (0, 0), "mixup": (0.2, 0), "cutmix": (0, 1), "both": (0.2, 1)}
    return Grid(
        arms=[
            Arm(name=name, model=base, changes=_set(dict(zip(paths, values, strict=True))))
            for name, values in rates.items()
        ]
    )


def scaling_down(base: Spec) -> Grid:
    """How to make a small network: scale the base down, or take another family?

    The base scaled by one coefficient, the base made narrower only, and MobileNetV2 made narrower,
    each with the multiply-adds of MobileNetV3-small and again with its milliseconds: a pass of 16
    pictures here, measured while the study is planned. All see pictures of the same size.
    """
    rival = _like(base, get_spec("mobilenetv3_small_100"))
    v2 = _like(base, get_spec("mobilenetv2_100"))
    shrunk: dict[str, Callable[[float], Spec]] = {
        f"{base.name} by phi": lambda x: scale(base, phi=x, resolution=base.resolution),
        f"{base.name} by width": lambda x: scale(base, width=2**x),
        "mobilenetv2 by width": lambda x: scale(v2, width=2**x),
    }
    arms = [Arm(name="mobilenetv3_small", model=rival, levels={"family": "mobilenetv3_small",
                                                             "equal": "reference"})]  # fmt: skip
    for (family, make), (equal, find) in product(
        shrunk.items(), (("MACs", same_macs), ("ms", same_milliseconds))
    ):
        arms.append(
            Arm(name=f"{family}, same {equal}", model=find(make, rival),
                levels={"family": family, "equal": equal})
        )  # fmt: skip
    return Grid(arms=arms)


def se_or_not(base: Spec) -> Grid:
    """MnasNet A1 has SE and B1 has none: is it the gates?

    Both as published, A1 without its gates, and B1 with SE in the stages where A1 has it. The base
    only says the resolution and the momentum of batch norms.
    """
    a1, b1 = (_like(base, get_spec(name)) for name in ("mnasnet_a1", "mnasnet_b1"))
    gated = b1.replace_in((3, 5, 6), gate="se")
    return Grid(
        arms=[
            Arm(name="A1", model=a1, levels={"network": "A1", "gates": "se"}),
            Arm(name="A1, no gates", model=a1.replace(gate=None),
                levels={"network": "A1", "gates": "none"}),
            Arm(name="B1", model=b1, levels={"network": "B1", "gates": "none"}),
            Arm(name="B1, se", model=gated, levels={"network": "B1", "gates": "se"}, beside="B1"),
        ]
    )  # fmt: skip


def hardware_widths(base: Spec) -> Grid:
    """What do widths cost and bring that suit the hardware?

    Channels rounded to multiples of 16 and 32 instead of the base's, expansions by 4 and by 8
    where the base expands, and multiples of 32 with an expansion by 4.
    """

    def expanded(spec: Spec, by: float) -> Spec:
        return spec.map_blocks(
            lambda block: block if block.unexpanded else replace(block, expand=by)
        )

    return Grid(
        arms=[
            Arm(name="as it is", model=base),
            Arm(name="multiples of 16", model=scale(base, divisor=16)),
            Arm(name="multiples of 32", model=scale(base, divisor=32)),
            Arm(name="expand 4", model=expanded(base, 4.0)),
            Arm(name="expand 8", model=expanded(base, 8.0)),
            Arm(name="multiples of 32, expand 4", model=expanded(scale(base, divisor=32), 4.0)),
        ]
    )


def last_stage(base: Spec) -> Grid:
    """MobileNetV3's savings at both ends: do they cost accuracy?

    The last stage left out and the wide convolution moved behind the pooling (arXiv 1905.02244,
    section 5.1), a stem of 16 channels, and both.
    """
    if len(base.stages) < 2:
        raise UserError("last_stage leaves out a network's last stage, and this one has only one.")
    before = base.stages[-2]
    redone = base.replace(
        stages=base.stages[:-1],
        head_channels=round(before.channels * before.blocks[-1].expand),
        head_hidden=base.head_channels,
    )
    return Grid(
        arms=[
            Arm(name="as it is", model=base),
            Arm(name="last stage redone", model=redone),
            Arm(name="stem of 16", model=base.replace(stem_channels=16)),
            Arm(name="both", model=redone.replace(stem_channels=16)),
        ]
    )


def zero_gamma(base: Spec) -> Grid:
    """Should blocks start as their shortcut?

    The last batch norm's scale of blocks with a shortcut starts at 1 or at 0 (bag of tricks, arXiv
    1812.01187).
    """
    return Grid(
        arms=[
            Arm(name="one", model=base.replace(zero_gamma=False)),
            Arm(name="zero", model=base.replace(zero_gamma=True)),
        ]
    )


def bias_decay(base: Spec) -> Grid:
    """Should norms and biases have weight decay?

    None for them, as everywhere here (bag of tricks, arXiv 1812.01187), or the same for all.
    """
    return Grid(
        arms=[
            Arm(name="spared", model=base, changes=_set({"optimizer.bias_decay": False})),
            Arm(name="decayed", model=base, changes=_set({"optimizer.bias_decay": True})),
        ]
    )


def pooling(base: Spec) -> Grid:
    """Average, maximum, or both side by side before the classifier?"""
    return Grid(
        arms=[Arm(name=kind, model=base.replace(pooling=kind)) for kind in ("avg", "max", "concat")]
    )


_ALL: tuple[Study, ...] = (
    activation_x_gate, shortcut, regularizer, optimizer, mixup, scaling_down, se_or_not,
    hardware_widths, last_stage, zero_gamma, bias_decay, pooling,
)  # fmt: skip
STUDIES: dict[str, Study] = {study.__name__: study for study in _ALL}


def find_study(name: str) -> Study:
    """The ready-made study of that name; UserError names the nearest ones."""
    known("mbconv", [name], set(STUDIES), kind="study")
    return STUDIES[name]


def question(study: Study) -> str:
    """The first line of a study's docstring."""
    return (inspect.getdoc(study) or "").partition("\n")[0]


def _set(values: dict[str, object]) -> tuple[str, ...]:
    """Changes of a recipe; Python's True is JSON's true."""
    return tuple(f"{path}={str(value).lower()}" for path, value in values.items())


def _like(base: Spec, spec: Spec) -> Spec:
    """What all networks of a study share with the base: the resolution, how fast norms follow."""
    return spec.replace(resolution=base.resolution, bn_momentum=base.bn_momentum,
                        stem_stride=base.stem_stride, drop_path=base.drop_path)  # fmt: skip
