"""More than one process at one run: who there is, what they decide together, who speaks.

Processes are started by torchrun, or by anything else that sets the same environment variables
(RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), and talk through torch.distributed: gloo between
CPUs, NCCL between GPUs. The first one measures, decides, prints and writes.
"""

import os
import pickle
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from mbconv.errors import UserError
from mbconv.runtime.predictor import Output, Picture, Predictor
from mbconv.training.machine import Machine
from mbconv.training.recipe import Recipe

T = TypeVar("T")

PATIENCE = timedelta(hours=6)  # of processes that wait while the first one audits the pictures
ASSEMBLY = 1800.0  # seconds until all must have come


class Lost(UserError):
    """Another process is gone."""


def launched() -> bool:
    """Whether a launcher started this process as one of a job's, if only of one."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


@dataclass
class World:
    """The processes of a run; by default there is this one alone.

    Everything here is asked of all processes, in the same order.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1  # of them on this machine
    local_rank: int = 0  # this one's number among those
    launched: bool = False
    store: Any = None  # what the launcher keeps for all
    asked: bool = False  # this process was told to stop
    agreed: bool = False  # one of them was, and since the last step all know

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def stops(self) -> bool:
        """Whether to stop behind this step: all answer alike."""
        return self.asked if self.size == 1 else self.agreed

    def decide(self, choose: Callable[..., T], *arguments: Any) -> T:
        """What `choose(*arguments)` returns in the first process, in every process."""
        found: list[Any] = [choose(*arguments) if self.first else None]
        if self.size == 1:
            return cast(T, found[0])
        with talking():
            dist.broadcast_object_list(found)
        return cast(T, found[0])

    def gather(self, mine: T) -> list[T]:
        """Everybody's, in the order of ranks."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        with talking():
            dist.all_gather_object(found, mine)
        return found

    def pick(self, mine: T, wanted: bool) -> T:
        """That of the first process which wants its own to be taken; of rank 0 if none does."""
        wishes = self.gather(wanted)
        found: list[Any] = [mine]
        if self.size > 1:
            with talking():
                dist.broadcast_object_list(found, src=wishes.index(True) if True in wishes else 0)
        return cast(T, found[0])

    def wait(self) -> None:
        """Until all have come here."""
        self.gather(None)

    def on_each_machine(self, make: Callable[[], T]) -> T:
        """What `make()` returns in the first process of each machine, in all on that machine.

        The others get a pickled copy.
        """
        if self.local_size == 1:
            return make()
        own = make() if self.local_rank == 0 else None
        copies = self.gather(pickle.dumps(own))  # unpickled on no other machine
        return cast(
            T, own if self.local_rank == 0 else pickle.loads(copies[self.rank - self.local_rank])
        )

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Give these tensors the first process's values, in place."""
        if self.size > 1:
            with talking(), torch.no_grad():
                for tensor in tensors:
                    dense = tensor.contiguous()  # in channels_last it is not sent
                    dist.broadcast(dense, 0)
                    tensor.copy_(dense)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch: consecutive, shares differ by one at most."""
        return items[
            self.rank * len(items) // self.size : (self.rank + 1) * len(items) // self.size
        ]

    def seed(self, seed: int) -> int:
        """One for each process's dropout and mixing; the first one's is that of one alone."""
        return seed if self.rank == 0 else hash((seed, self.rank))

    def predictor(self, *arguments: Any, **options: Any) -> Predictor:
        """A Predictor that shares its pictures out among the processes."""
        if self.size == 1:
            return Predictor(*arguments, **options)
        return SharedPredictor(self, *arguments, **options)

    def check(self, recipe: Recipe, machine: Machine) -> None:
        """UserError where these processes cannot train by the recipe."""
        if machine.compiled and self.size > 1 and recipe.transfer.norms == "synced":
            raise UserError(
                "torch.compile cannot compute batch norms over all processes: leave --compile "
                "away, or give --set transfer.norms=train."
            )
        if recipe.batch_size < self.size:
            raise UserError(
                f"A batch of {recipe.batch_size} pictures cannot be divided among {self.size} "
                f"processes: start fewer, or give --set batch_size={self.size} or more."
            )
        here = torch.cuda.device_count()
        if machine.device.startswith("cuda") and self.local_size > here:
            raise UserError(
                f"{self.local_size} processes share {here} GPUs on {socket.gethostname()}: start "
                f"torchrun with --nproc-per-node {here}, or train with --device cpu."
            )

    def describe(self, recipe: Recipe, machine: Machine) -> str:
        """One line on who computes what."""
        least, most = recipe.batch_size // self.size, -(-recipe.batch_size // self.size)
        each = f"{most}" if least == most else f"{least} or {most}"
        norms = ""
        if recipe.transfer.norms == "train" and self.size > 1:
            norms = "; batch norms see only these (--set transfer.norms=synced: all)"
        count = "1 process" if self.size == 1 else f"{self.size} processes"
        threads = f"{machine.threads} thread{'s' if machine.threads > 1 else ''}"
        return (
            f"{count}, {threads} each ({os.cpu_count()} cores): {each} of a batch's "
            f"{recipe.batch_size} pictures each{norms}"
        )

    def speaks(self) -> bool:
        """Whether this process is the first to fail, whose sentence is the one to print."""
        if self.store is None:
            return self.first
        try:
            return bool(self.store.add("failed", 1) == 1)
        except RuntimeError:  # the store went with the process that kept it
            return self.rank <= 1


class SharedPredictor(Predictor):
    """A Predictor of which every process computes a part, each picture once; all get all answers.

    Pictures are dealt out in turn, so that shares are even where sizes or classes come in runs.
    """

    def __init__(self, world: World, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.world = world

    def logits(self, pictures: Iterable[Picture]) -> Generator[Output, None, None]:
        """Yield one Output a picture, in order, once all are computed."""
        world, everything = self.world, list(pictures)
        own = list(super().logits(everything[world.rank :: world.size]))
        parts = world.gather(own)
        yield from (parts[i % world.size][i // world.size] for i in range(len(everything)))


@contextmanager
def talking() -> Iterator[None]:
    """What a lost connection raises becomes `Lost`."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(
            "Another process of this run has ended or cannot be reached. If it gave no reason, the "
            "system killed it, mostly for memory. With torchrun --max-restarts 3 all start again."
        ) from error


@contextmanager
def joined() -> Iterator[World]:
    """The processes that were started together; this one alone where no launcher did.

    An error in one of them ends all: the first to fail raises it, the others leave without a word
    (SystemExit). Inside another `joined`, or where the caller has made a process group, nothing
    is opened or closed.
    """
    if not launched():
        yield World()
        return
    global _open
    if dist.is_initialized():
        yield _open or _of_the_caller()
        return
    world = _open = _join()
    try:
        yield world
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        if not world.speaks():
            raise SystemExit(2) from error
        if isinstance(error, UserError) and not (world.first or isinstance(error, Lost)):
            where = f"process {world.rank + 1} of {world.size} on {socket.gethostname()}"
            raise UserError(f"{where}: {error}") from error
        raise
    finally:
        _open = None
    dist.destroy_process_group()


_open: World | None = None


def _of_the_caller() -> World:
    """The processes of a group that this library did not make."""
    return World(dist.get_rank(), dist.get_world_size(), *_here(), launched=True)


def _join() -> World:
    local_size, local = _here()
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with talking():
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        store = _unused_part(store, rank, size)
        dist.init_process_group(backend, timeout=PATIENCE, store=store, rank=rank, world_size=size)
    return World(rank, size, local_size, local, launched=True, store=store)


def _here() -> tuple[int, int]:
    """How many processes this machine has, and the number of this one among them."""
    environment = os.environ
    return int(environment.get("LOCAL_WORLD_SIZE", "1")), int(environment.get("LOCAL_RANK", "0"))


def _unused_part(store: Any, rank: int, size: int) -> Any:
    """A part of the launcher's store that no earlier start of the job has written to.

    torchrun keeps its store when it starts workers again, with the dead ones' addresses in it,
    and counts restarts on each machine for itself. So the first process names a part to each
    of the others, which prove by a word of their own that they are not of an earlier start.
    """
    word = uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", word)
        part = store.get(f"welcome/{word}").decode()
        store.set(f"ready/{part}/{rank}", "")
        return PrefixStore(part, store)
    deadline = time.monotonic() + ASSEMBLY
    for other in range(1, size):
        answered = ""
        while not store.check([f"ready/{word}/{other}"]):
            if store.check([f"hello/{other}"]):
                heard = store.get(f"hello/{other}").decode()
                if heard != answered:
                    store.set(f"welcome/{heard}", word)
                    answered = heard
            if time.monotonic() > deadline:
                raise Lost(f"Process {other + 1} of {size} has not come within half an hour.")
            time.sleep(0.01)
    return PrefixStore(word, store)
