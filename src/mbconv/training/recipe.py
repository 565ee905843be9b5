"""A recipe: one frozen config of everything that decides how a network learns; JSON both ways.

`recipes.py` has the functions that make complete ones. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, cast

from mbconv.arch.cost import cost
from mbconv.arch.fields import check, check_types, known, members
from mbconv.arch.spec import Spec
from mbconv.data.augmentation import Augmentation
from mbconv.errors import UserError

Item = TypeVar("Item")

SMALLER = "smaller"  # as a phase's network: a smaller relative of the next phase's


@dataclass(frozen=True)
class Phase:
    """So many epochs at one resolution; what is None is as the rest of the recipe says."""

    resolution: int  # px
    epochs: int
    magnitude: float | None = None  # of RandAugment
    mixup: float | None = None  # alpha
    dropout: float | None = None
    network: str | Spec | None = None  # a name, a file, smaller; None: the next phase's or MODEL

    def __post_init__(self) -> None:
        check_types("phases", self)
        if isinstance(self.network, Mapping):
            object.__setattr__(self, "network", Spec.from_dict(self.network))
        known = isinstance(self.network, str | Spec | None)
        check("phases", "network", self.network, known, "a name, a file or a spec")
        _at_least_zero("phases", self, "magnitude", "mixup", "dropout")
        _below_one("phases", self, "dropout")
        if self.magnitude is not None:
            check("phases", "magnitude", self.magnitude, self.magnitude <= 10, "from 0 to 10")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How gradients become steps."""

    name: Literal["adamw", "sgd", "rmsprop_tf", "lamb", "muon"] = "adamw"  # _tf: TensorFlow's
    learning_rate: float = 1e-3  # at its highest
    weight_decay: float = 0.01  # of matrices and kernels; norms and biases have none
    bias_decay: bool = False  # norms and biases decay as well
    momentum: float = 0.9  # of AdamW, LAMB and Muon the first beta
    squares: float | None = None  # second beta, RMSprop's decay; None: .999, RMSprop .9
    epsilon: float | None = None  # None: AdamW, Muon 1e-8, LAMB 1e-6, RMSprop 1e-3 in the root
    nesterov: bool = True  # of SGD
    clip: float | None = None  # longest gradient, over all weights
    micro_batch: int | None = None  # pictures computed at once, for less memory; None: all

    def __post_init__(self) -> None:
        where = "optimizer"
        check_types(where, self)
        check(where, "learning_rate", self.learning_rate, self.learning_rate > 0, "above zero")
        _at_least_zero(where, self, "weight_decay", "momentum", "squares")
        _below_one(where, self, "momentum", "squares")
        for name in ("epsilon", "clip"):
            value = getattr(self, name)
            check(where, name, value, value is None or value > 0, "above zero")
        plain = self.name != "sgd" or not self.nesterov or self.momentum > 0
        check(where, "momentum", self.momentum, plain, "above zero with nesterov")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over the run; `schedule.py` has the formulas."""

    kind: Literal["cosine", "one_cycle", "step", "exponential"] = "cosine"  # its shape
    warmup: float = 0.1  # share of all steps that the rate rises in
    factor: float = 0.97  # of step and exponential: what `every` epochs multiply the rate by
    every: float = 2.4  # epochs

    def __post_init__(self) -> None:
        where = "schedule"
        check_types(where, self)
        check(where, "warmup", self.warmup, 0 <= self.warmup <= 1, "from 0 to 1")
        check(where, "factor", self.factor, 0 < self.factor <= 1, "above 0 and at most 1")
        check(where, "every", self.every, self.every > 0, "above zero")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What training makes small."""

    kind: Literal["cross_entropy", "bce"] = "cross_entropy"  # bce: each class on its own
    label_smoothing: float = 0.1  # share of each target that is spread over all classes
    balance: Literal["none", "weights", "sampling"] = "none"  # weigh rare classes, or repeat them
    teacher: float = 0.5  # share of it that is nearness to the teacher's answers, if there is one

    def __post_init__(self) -> None:
        check_types("loss", self)
        _at_least_zero("loss", self, "label_smoothing", "teacher")
        _below_one("loss", self, "label_smoothing")
        check("loss", "teacher", self.teacher, self.teacher <= 1, "at most 1")


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """Noise inside the network, and the moving average of its weights."""

    dropout: float | None = None  # before the classifier; None: what the spec says
    drop_path: float | None = None  # block i of n drops with i / n of it; None: the spec's
    ema_decay: float = 0.98  # reached by (1 + n) / (10 + n) after n steps; 0: no average

    def __post_init__(self) -> None:
        check_types("regularization", self)
        _at_least_zero("regularization", self, "dropout", "drop_path", "ema_decay")
        _below_one("regularization", self, "dropout", "drop_path", "ema_decay")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What pretrained weights keep, and how stem and classifier start."""

    fresh: bool = False  # a network by name starts from random weights, published or not
    head_resolution: int | None = None  # fit the classifier first, on frozen features; None: do not
    whiten_stem: bool = False  # the stem starts with filters that whiten the pictures' patches
    zero_head: bool = False  # the classifier starts from zero, where it is not fitted
    head_penalty: float = 0.03  # weight of the squared norm of the standardised classifier
    frozen_stages: int = field(default=0, metadata={"least": 0})  # with the stem; 0: all learns
    # frozen: statistics stay, scale and shift learn; synced: train, over all processes
    norms: Literal["frozen", "train", "synced"] = "train"  # batch norms
    norm_momentum: float | None = None  # of batch norms at least; None: the spec's
    layer_decay: float = 1.0  # a stage's learning rate over that of the one behind it

    def __post_init__(self) -> None:
        check_types("transfer", self)
        _at_least_zero("transfer", self, "head_penalty", "norm_momentum")
        decays = 0 < self.layer_decay <= 1
        check("transfer", "layer_decay", self.layer_decay, decays, "above 0 and at most 1")
        follows = (self.norm_momentum or 0) <= 1
        check("transfer", "norm_momentum", self.norm_momentum, follows, "at most 1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a network learns, apart from the network and the pictures."""

    name: str
    phases: tuple[Phase, ...]
    batch_size: int = 32  # pictures a step, over all processes
    checkpointing: bool = False  # keep block inputs alone and compute the rest again in backward
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: Loss = field(default_factory=Loss)
    regularization: Regularization = field(default_factory=Regularization)
    transfer: Transfer = field(default_factory=Transfer)

    def __post_init__(self) -> None:
        check_types("recipe", self)
        object.__setattr__(self, "phases", members("recipe", "phases", self.phases, Phase))
        if not self.phases:
            raise UserError("A recipe needs at least one phase of one epoch.")

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    @property
    def resolution(self) -> int:
        """The last phase's, which the finished network is used at."""
        return self.phases[-1].resolution

    def phase(self, epoch: int) -> Phase:
        """The phase of an epoch, counted from 1; behind the last one the last."""
        for phase in self.phases:
            epoch -= phase.epochs
            if epoch <= 0:
                return phase
        return self.phases[-1]

    @property
    def grows(self) -> bool:
        """Whether the network becomes larger from phase to phase."""
        return any(phase.network is not None for phase in self.phases)

    def work(self, phase: Phase) -> float:
        """What a picture of this phase costs, in pixels of the first phase's network."""
        pixels, first = float(phase.resolution**2), self.phases[0].network
        if isinstance(phase.network, Spec) and isinstance(first, Spec):
            side = self.phases[0].resolution
            pixels = side**2 * _macs(phase.network, phase.resolution) / _macs(first, side)
        return pixels

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every field written out; `from_dict` restores it exactly."""
        data = asdict(self)
        data["phases"] = list(data["phases"])
        for phase, made in zip(self.phases, data["phases"], strict=True):
            if isinstance(phase.network, Spec):
                made["network"] = phase.network.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: Any) -> "Recipe":
        """A Recipe from `to_dict`'s data; UserError names the field that does not fit."""
        if isinstance(data, Mapping) and isinstance(data.get("phases"), list | tuple):
            phases = tuple(_made(Phase, phase, "phases") for phase in data["phases"])
            data = {**data, "phases": phases}
        return _made(cls, data, "recipe")


def _made(kind: type[Item], data: Any, where: str) -> Item:
    """A dataclass from plain data, and those inside it from theirs."""
    if not isinstance(data, Mapping):
        raise UserError(f"{where} is {data!r}; it must be an object with named fields.")
    own = {f.name: f for f in fields(cast(Any, kind))}
    known(where, data, set(own))
    values = {
        name: _made(cast(Any, own[name].type), value, name)
        if is_dataclass(own[name].type) and not is_dataclass(value)
        else value
        for name, value in data.items()
    }
    try:
        return kind(**values)
    except TypeError as error:  # a field without default is missing
        raise UserError(f"{where} is incomplete: {error}.") from error


@cache
def _macs(spec: Spec, resolution: int) -> int:
    return cost(spec, resolution).macs


def _at_least_zero(where: str, item: Any, *names: str) -> None:
    for name in names:
        value = getattr(item, name)
        check(where, name, value, value is None or value >= 0, "zero or more")


def _below_one(where: str, item: Any, *names: str) -> None:
    for name in names:
        value = getattr(item, name)
        check(where, name, value, value is None or value < 1, "below 1")
