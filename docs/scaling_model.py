"""A model of what communication adds to a training step: a ring, and buckets that overlap it.

docs/make_scaling.py makes a page of it; every constant here is a row of that page's assumptions.
"""

from dataclasses import dataclass

import mbconv
from mbconv.arch.cost import cost
from mbconv.training.distributed import World
from mbconv.training.reducer import Reducer, buckets

COUNTS = tuple(2**power for power in range(11))  # GPUs
# Assumed, each for its reason in the page's table.
IMAGES = 2489.0  # a second on one GPU
FLOOR = 0.025  # seconds that a step takes at least
BACKWARD = 2 / 3  # of a step
NODE = 8  # GPUs
WEAK, STRONG, HIDDEN = 128, 2048, 0.05  # pictures a GPU, pictures a batch, share of a step


@dataclass(frozen=True)
class Link:
    """What a hop of the ring takes: seconds before the first byte, and bytes a second."""

    latency: float
    bandwidth: float
    name: str = ""
    colour: str = ""


INSIDE = Link(3e-6, 200e9)
NETWORKS = (
    Link(50e-6, 2.5e9, "25 Gbit/s Ethernet", "#b4552d"),
    Link(5e-6, 160e9, "8 x 200 Gbit/s InfiniBand", "#1f7a8c"),
)


@dataclass(frozen=True)
class Traffic:
    """What a step sends: bytes of each bucket of gradients in their order, when each is full (as a
    share of the backward pass), and bytes that go behind it: loss and running statistics."""

    sizes: tuple[int, ...]
    full: tuple[float, ...]
    tail: int


def traffic(model: str, resolution: int) -> Traffic:
    """That of a network by name; time is taken to go with the bytes of the layers' maps."""
    network = mbconv.create_model(model, pretrained=False)
    network.train()
    names = {parameter: name for name, parameter in network.named_parameters()}
    operators = cost(network.spec, resolution).operators
    ends, done = {}, 0
    for operator in reversed(operators):
        done += operator.activation_bytes
        ends[operator.name] = done

    def end(name: str) -> float:
        owner = max((o for o in ends if name.startswith(f"{o}.")), key=len)
        return ends[owner] / done

    groups = buckets(list(network.parameters()))
    sizes = [sum(p.numel() * p.element_size() for p in group) for group in groups]
    full = [max(end(names[p]) for p in group) for group in groups]
    statistics = Reducer(network, World(), 1).statistics()
    tail = sum(buffer.numel() * buffer.element_size() for buffer in statistics) + 12
    return Traffic(tuple(sizes), tuple(full), tail)


def all_reduce(size: int, count: int, link: Link) -> float:
    """Seconds of a ring over `count` processes: 2 (count - 1) hops of size / count bytes each."""
    return 2 * (count - 1) * (link.latency + size / count / link.bandwidth)


def exposed(sent: Traffic, count: int, link: Link, backward: float) -> float:
    """Seconds by which communication outlasts a backward pass of so many seconds.

    Buckets go one after another, each once it is full; the tail follows them.
    """
    clock = 0.0
    for size, full in zip(sent.sizes, sent.full, strict=True):
        clock = max(clock, full * backward) + all_reduce(size, count, link)
    return max(clock, backward) + all_reduce(sent.tail, count, link) - backward


@dataclass(frozen=True)
class Step:
    """A modelled step of `count` GPUs with so many pictures each."""

    sent: Traffic
    count: int
    network: Link
    each: float

    @property
    def compute(self) -> float:
        return max(FLOOR, self.each / IMAGES)

    @property
    def talk(self) -> float:
        """Seconds that are added to the computing."""
        link = INSIDE if self.count <= NODE else self.network
        return exposed(self.sent, self.count, link, BACKWARD * self.compute)

    @property
    def seconds(self) -> float:
        return self.compute + self.talk

    @property
    def images(self) -> float:
        """A second, of all GPUs."""
        return self.count * self.each / self.seconds

    @property
    def kept(self) -> float:
        """Share of what so many single GPUs compute."""
        return self.compute / self.seconds


def hiding(sent: Traffic, count: int, network: Link) -> int:
    """The least pictures a GPU with which communication adds at most 5% to a step."""
    return next(
        n for n in range(1, 1 << 16)
        if (step := Step(sent, count, network, n)).talk <= HIDDEN * step.compute
    )  # fmt: skip
