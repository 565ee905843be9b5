"""What a run leaves and says when Ctrl-C, the disk, the memory or the pictures stop it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.measure.memory import is_out_of_memory
from mbconv.report.commands import free_name, shell_line
from mbconv.training.console import Reporter
from mbconv.training.diagnosis import Diverged
from mbconv.training.interrupt import Stepping, interrupts_held

UNREADABLE_MOST = 16  # pictures in a row, from which on they are not single broken ones
SHOWN = 5  # of those that an epoch left out


class Survivor(Stepping, Protocol):
    """A run as far as its end is concerned."""

    path: Path
    config: dict[str, Any]
    next_step: int
    saved_step: int | None  # what `--resume` goes on from; None: nothing was saved yet
    closing: ExitStack  # what must be closed however the run ends
    reporter: Reporter

    def save(self) -> None: ...


@contextmanager
def survivable(session: Survivor) -> Iterator[None]:
    """Ctrl-C saves and says how to go on; so does what fails, with the last good state kept.

    Raises UserError with one sentence for a full disk, short memory and lost pictures; other
    errors pass as they are.
    """
    try:
        with session.closing:
            try:
                with interrupts_held(session):
                    yield
            except KeyboardInterrupt:
                if session.saved_step is not None:
                    session.save()
                    told = f"stopped after step {session.next_step}.{_go_on(session)}"
                    session.reporter.say(told)
                    if session.world.stops:  # all do: the first may take its time to write
                        session.world.wait()
                raise
    except (UserError, MemoryError, RuntimeError) as error:
        sentence = _sentence(error, session)
        if sentence is None:
            raise
        kind = type(error) if isinstance(error, UserError) else UserError
        raise kind(sentence) from error


def _sentence(error: Exception, session: Survivor) -> str | None:
    if isinstance(error.__cause__, Diverged):  # it says itself how to go on: not as before
        return None
    if isinstance(error, UserError):
        what = str(error)
    elif is_out_of_memory(error):
        what = _short_of_memory(session)
    elif "DataLoader worker" in str(error):
        what = (
            "A process that prepares pictures was killed: memory is short, or shared memory in a "
            "container (docker run --shm-size=2g). Free some."
        )
    elif "deterministic" in str(error) and session.config["machine"].get("deterministic"):
        what = (
            f"This network has an operator without a deterministic form on this device ({error}). "
            "Train without --deterministic, or on the CPU."
        )
    else:
        return None
    return what + _go_on(session)


def _go_on(session: Survivor) -> str:
    """How to, where there is something that can be gone on with."""
    if session.saved_step is None:
        return ""
    kept = f" The state after step {session.saved_step} is kept."
    if session.world.launched:
        return f"{kept} Start the same command again to go on."
    command = shell_line(["train", "--resume", str(session.path)])
    return f"{kept} Go on with:\n  {command}"


def _short_of_memory(session: Survivor) -> str:
    if session.saved_step is None:
        return "There is not enough memory to prepare this run. Free some, or take a smaller MODEL."
    config = session.config
    recipe, model = config["recipe"], str(config["model"])
    size = int(recipe["optimizer"].get("micro_batch") or recipe["batch_size"])
    resolution = str(config["resolution"])
    fit = shell_line(["fit-batch", model, "--resolution", resolution])
    return (
        f"There is not enough memory to compute {size} pictures of {resolution} px at once. Start "
        f"again with --out {free_name(session.path)} --set optimizer.micro_batch="
        f"{max(1, size // 4)}, which computes the same batches in smaller parts, or with a smaller "
        f"batch_size; {fit} says what fits. Or free some memory."
    )


def lost_pictures() -> Callable[[Batch], None]:
    """A check of each batch: raises UserError where picture after picture cannot be read.

    That is a folder that has gone, not a single broken file, which is left out.
    """
    missing = 0

    def check(batch: Batch) -> None:
        nonlocal missing
        missing = 0 if len(batch.labels) else missing + len(batch.failures)
        if missing >= UNREADABLE_MOST:
            place, reason = batch.failures[0]
            raise UserError(
                f"The last {missing} training pictures cannot be read: the data have gone. The "
                f"first of them, {place}: {reason}. Put them back."
            )

    return check


def tell_left_out(
    failures: Sequence[tuple[Any, str]], say: Callable[..., None], where: str = ""
) -> None:
    """Name the first few pictures that could not be read, and count the others."""
    for path, reason in failures[:SHOWN]:
        say(f"  left out{where}: {path}: {reason}", style="yellow")
    if len(failures) > SHOWN:
        say(f"  left out{where}: {len(failures) - SHOWN:,} more", style="yellow")
