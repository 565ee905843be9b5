"""Where a network's time goes: each operator's time beside its work and the machine's ceilings.

Operators are timed where PyTorch dispatches them, below modules and autograd and above kernels, so
that every network is taken apart by the same code, without touching it. What lies between them
(Python, dispatch) is in the whole pass, which is timed without this, in turn.
"""

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mbconv import kernels
from mbconv.errors import UserError
from mbconv.measure.bench import Plan, about_task, record, sentence
from mbconv.measure.ceilings import Ceilings, ceilings, synchronise
from mbconv.measure.memory import keep_freed_memory
from mbconv.measure.speed import warm_up
from mbconv.measure.subject import open_subject
from mbconv.measure.task import Mode, Task
from mbconv.record import Record

_BLOCK = re.compile(r"[^.]+(\.\d+)*")  # stages.1.0 of stages.1.0.gate.reduce
BACKWARD = "backward"


@dataclass(frozen=True)
class Ran:
    """One operator of a pass: where, what, how long, with how much work."""

    path: str  # of the module that called it
    kind: str
    seconds: float
    flops: float
    bytes: float  # of its inputs and outputs; none for views

    @property
    def block(self) -> str:
        found = _BLOCK.match(self.path)
        return found[0] if found else self.path


@dataclass(frozen=True)
class Profile:
    """A pass taken apart; `whole` is its time without this, `profiled` with it, in seconds.

    An inference pass is that of the plain modules; `fused` is what it takes with the operators
    that usually compute it, if there are any.
    """

    operators: tuple[Ran, ...]
    whole: float
    profiled: float
    fused: float | None
    ceilings: Ceilings

    @property
    def parts(self) -> float:
        return sum(op.seconds for op in self.operators)


def profile(task: Task, rounds: int = 5) -> Profile:
    """Time the operators of `task`; medians of `rounds` passes with and without, in turn."""
    task.without_grad = torch.no_grad  # inference mode hides what a convolution is made of
    infers, way = task.mode == "inference", task.way
    apart = kernels.plain if infers else nullcontext
    ours = infers and task.subject.library == "mbconv"
    usual = ours and kernels.applies(torch.empty(0, device=way.device), getattr(torch, way.dtype))
    with apart():
        warm_up(task)
    if usual:
        warm_up(task)
    fused, wholes, profiled, passes = [], [], [], []
    for _ in range(rounds):
        if usual:
            fused.append(_seconds(task))
        watch = _Watch(task.way.device)
        with apart():
            wholes.append(_seconds(task))
            with _paths(task.network, watch), watch:
                profiled.append(_seconds(task))
        passes.append(watch.ran)
    same = [ran for ran in passes if len(ran) == len(passes[-1])]  # the first may allocate
    operators = tuple(
        Ran(each[-1].path, each[-1].kind, statistics.median(op.seconds for op in each),
            each[-1].flops, each[-1].bytes)
        for each in zip(*same, strict=True)
    )  # fmt: skip
    most = ceilings(getattr(torch, task.way.dtype), task.way.device)
    whole, watched = statistics.median(wholes), statistics.median(profiled)
    return Profile(operators, whole, watched, statistics.median(fused) if usual else None, most)


def _seconds(task: Task) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def operator_records(name: str, plan: Plan, mode: Mode) -> Iterator[Record]:
    """`profile` of the network `name`, eager, at the largest batch and in the first way of `plan`.

    Raises UserError where the network cannot be built, or fails or does not fit at this size.
    """
    keep_freed_memory()
    sizes = plan.train_batches if mode == "training" else plan.batches
    subject, batch = open_subject(name), max(sizes or (8 if mode == "training" else 16,))
    way, side = replace(plan.ways[0], compiled=False), plan.resolution or subject.resolution
    try:
        task = Task(subject, way, mode, batch, side)
        found = profile(task)
    except Exception as error:  # a foreign network may raise anything
        raise UserError(f"{name} fails at {side} px: {sentence(error, batch)}.") from error
    yield from records(task, found)


def records(task: Task, found: Profile) -> Iterator[Record]:
    """The whole, the ceilings, and sums by kind, by block and by module; times in ms.

    `floor` in `detail` is what the work takes at the ceilings, `share` floor / time.
    """
    about = about_task(task)
    most = found.ceilings
    sums = {"parts": 1e3 * found.parts, "profiled": 1e3 * found.profiled}
    if task.mode == "inference" and task.subject.library == "mbconv":
        about |= {"kernels": "plain"}
    if found.fused is not None:
        sums["fused"] = 1e3 * found.fused
    yield record("pass", 1e3 * found.whole, "ms", task.subject, about | sums)
    yield record("copy_ceiling", most.bandwidth / 1e9, "GB/s", task.subject, about)
    yield record("product_ceiling", most.arithmetic / 1e9, "GFLOP/s", task.subject, about)
    keys: dict[str, Callable[[Ran], str]] = {
        "operator_kind": lambda op: op.kind,
        "block": lambda op: op.block,
        "operator": lambda op: f"{op.path} {op.kind}",
    }
    for name, key in keys.items():
        for label, ops in _grouped(found.operators, key).items():
            seconds = sum(op.seconds for op in ops)
            floor = sum(most.floor(op.bytes, op.flops) for op in ops)
            yield record(name, 1e3 * seconds, "ms", task.subject,
                         about | {"label": label, "count": len(ops), "floor": 1e3 * floor,
                                  "flops": sum(op.flops for op in ops),
                                  "bytes": sum(op.bytes for op in ops),
                                  "share": floor / seconds if seconds else 0.0})  # fmt: skip


def _grouped(operators: Iterable[Ran], key: Callable[[Ran], str]) -> dict[str, list[Ran]]:
    groups: dict[str, list[Ran]] = defaultdict(list)
    for op in operators:
        groups[key(op)].append(op)
    return groups


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times every operator that is dispatched, and weighs it."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.paths = [BACKWARD]  # of the modules that are being called
        self.ran: list[Ran] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        synchronise(self.device)
        seconds = time.perf_counter() - start
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=out) if count else 0.0
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        moved = 0.0 if _is_view(func) else float(sum(t.nbytes for t in tensors))
        self.ran.append(Ran(self.paths[-1], _kind(func, args), seconds, flops, moved))
        return out


@contextmanager
def _paths(network: Any, watch: _Watch) -> Iterator[None]:
    """Keep `watch.paths` at the module that runs, by hooks that no module carries itself.

    A module with hooks of its own would be computed in another way.
    """
    names = {id(module): name for name, module in network.named_modules()}

    def enter(module: nn.Module, inputs: Any) -> None:
        watch.paths.append(names.get(id(module)) or "(network)")

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        watch.paths.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_view(func: Any) -> bool:
    """Whether it returns other looks at its inputs and moves nothing."""
    infos = [result.alias_info for result in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _kind(func: Any, args: Any) -> str:
    """An operator's name; convolutions by what they are."""
    name = str(func.overloadpacket).removeprefix("aten.")
    if name not in ("convolution", "convolution_backward"):
        return name.rstrip("_")
    picture, weight = (args[0], args[1]) if name == "convolution" else (args[1], args[2])
    back = " backward" if name == "convolution_backward" else ""
    if weight.shape[1] == 1 and weight.shape[0] == picture.shape[1] > 1:
        return "depthwise convolution" + back
    side = "x".join(str(n) for n in weight.shape[2:])
    return f"{side} convolution{back}"
