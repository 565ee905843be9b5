"""A study from its name to its page: plan it or go on with it, run what is left, write it up."""

import importlib.util
import inspect
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from mbconv.errors import UserError
from mbconv.files import Busy, check_writable, locked, write_json
from mbconv.measure.accuracy import NotFinite
from mbconv.record import Record
from mbconv.report.study import write_study
from mbconv.report.words import count, duration, percent
from mbconv.study.grid import Study
from mbconv.study.plan import PLAN, Asked, Job, Plan, check_same, read_plan
from mbconv.study.planning import make_plan
from mbconv.study.ready import find_study
from mbconv.training.console import Reporter
from mbconv.training.diagnosis import Diverged
from mbconv.training.folder import FORMAT
from mbconv.training.machine import find_device
from mbconv.training.run import resume, train

PATIENCE = 600.0  # seconds that another process's planning may take
_POLL = 2.0  # seconds between looks at what other processes hold


def run_study(
    study: Study | str,
    data: str | Path,
    out: str | Path,
    *,
    budget: float | None = None,
    quiet: bool = False,
    **options: Any,
) -> Plan:
    """Run a study in the folder `out`, or what is left of it, and write its page and table.

    `study` is the name of a ready-made one, `path/to/file.py:function`, or such a function, from a
    base Spec to a Grid. `options` are fields of `mbconv.study.plan.Asked`: model, resolution,
    epochs, seeds, recipe, changes, axes, arms, device.

    A folder that already holds this study is gone on with: nothing that has finished is repeated,
    and what other processes work on is left to them, until they are done or dead. `budget`
    (seconds, from now) decides how long the arms train where the study is planned here, and ends
    this call: a run that would not fit any more is not begun. Raises UserError for everything that
    the user can mend; Ctrl-C leaves a study that the same call goes on with.
    """
    folder, reporter = Path(out), Reporter(quiet)
    asked = ask(study, data, **options)
    make = load_study(study) if isinstance(study, str) else study
    deadline = None if budget is None else time.perf_counter() + budget
    check_writable(folder)
    with _planning(folder):
        plan = _planned(make, asked, folder, budget, reporter)
    find_device(plan.machine.device)
    stopped = "interrupted"
    try:
        complete = _Worker(plan, folder, reporter, deadline).work()
        stopped = "" if complete else "another run would not fit into the budget"
    finally:
        pages = write_study(folder)
        if stopped:
            reporter.say(
                f"stopped: {stopped}. {_progress(plan, folder)}; the same command goes on."
            )
        for page in pages:
            reporter.say(f"study: {page}")
    return plan


@contextmanager
def _planning(folder: Path) -> Iterator[None]:
    """One process plans at a time; a folder in which nothing could be planned is not left."""
    claim = folder / "claims" / "plan"
    try:
        with locked(claim, f"Another process has long been planning {folder}.", PATIENCE):
            yield
    except BaseException:
        if not (folder / PLAN).exists():
            claim.unlink(missing_ok=True)
            with suppress(OSError):  # where somebody else has put something there
                for path in (claim.parent, folder, folder.parent):
                    path.rmdir()
        raise


def plan_study(
    study: Study | str,
    data: str | Path,
    *,
    budget: float | None = None,
    quiet: bool = False,
    **options: Any,
) -> Plan:
    """What `run_study` would run and how long that takes here; nothing is run or written."""
    reporter = Reporter(quiet)
    make = load_study(study) if isinstance(study, str) else study
    plan = make_plan(make, ask(study, data, **options), budget, reporter)
    for line in plan_lines(plan):
        reporter.say(line)
    return plan


def ask(study: Study | str, data: str | Path, **options: Any) -> Asked:
    """The user's words as they are kept beside the plan."""
    name = study if isinstance(study, str) else getattr(study, "__name__", "study")
    return Asked(study=name, data=str(data), **options)


def _planned(
    make: Study, asked: Asked, folder: Path, budget: float | None, reporter: Reporter
) -> Plan:
    """The folder's plan, or a new one that is written there."""
    if (folder / PLAN).is_file():
        plan = read_plan(folder)
        check_same(plan, asked, folder)
        reporter.say(f"{folder}: {_progress(plan, folder)}")
        return plan
    plan = make_plan(make, asked, budget, reporter)
    for arm in plan.arms:
        if arm.model is None:
            write_json(folder / "arms" / f"{arm.slug}.json", arm.spec)
    plan.write(folder)
    for line in plan_lines(plan):
        reporter.say(line)
    return plan


def load_study(name: str) -> Study:
    """A ready-made study by its name, or `path/to/file.py:function`.

    Raises UserError for a name that there is not, a file that cannot be run, and one without that
    function.
    """
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        return find_study(name)
    source = Path(path)
    if not source.is_file():
        raise UserError(f"There is no file {source}; write path/to/file.py:function.")
    spec = importlib.util.spec_from_file_location(source.stem, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"{source} fails: {type(error).__name__}: {error}.") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{source} has no function {function!r}; it has {_functions(module)}.")
    made: Study = found
    return made


def plan_lines(plan: Plan) -> list[str]:
    """What will run, and how long that takes here."""
    width = max(len(arm.name) for arm in plan.arms)
    lines = [
        f"{plan.name}: {plan.question}",
        f"{count(len(plan.arms), 'arm')} x {count(plan.seeds, 'seed')} = "
        f"{count(len(plan.arms) * plan.seeds, 'run')} at {plan.resolution} px on "
        f"{plan.pictures['train']:,} pictures; about {duration(plan.seconds)} in one process",
    ]
    for arm in plan.arms:
        beside = "baseline" if arm.beside is None else f"beside {arm.beside}"
        lines.append(
            f"  {arm.name:{width}}  {count(arm.recipe.epochs, 'epoch'):>9}  "
            f"{arm.ms_per_step:8.1f} ms a step  {duration(arm.seconds):>12} a run  {beside}"
        )
    return lines


def _progress(plan: Plan, folder: Path) -> str:
    jobs = list(plan.jobs(folder))
    return f"{sum(job.finished for job in jobs)} of {count(len(jobs), 'run')} done"


def _functions(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items()
             if inspect.isfunction(value) and value.__module__ == module.__name__]  # fmt: skip
    return ", ".join(names) or "none"


class _Worker:
    """One process's share of a study."""

    def __init__(
        self, plan: Plan, folder: Path, reporter: Reporter, deadline: float | None
    ) -> None:
        self.plan, self.folder = plan, folder
        self.reporter, self.deadline = reporter, deadline
        self.expected = self.taken = 0.0  # seconds of the runs that were done here

    def work(self) -> bool:
        """Run what is left, in order, until nothing is; False where the time is up before."""
        told = False
        while left := [job for job in self.plan.jobs(self.folder) if not job.finished]:
            worked = False
            for job in left:
                if self._too_late(job):
                    return False
                with _claimed(job) as mine:
                    if mine and not job.finished:
                        worked = True
                        self._run(job)
            if not worked:  # the others are at work; who dies leaves a claim that is free
                if not told:
                    self.reporter.say(f"waiting for other processes: {count(len(left), 'run')}")
                told = True
                time.sleep(_POLL)
        return True

    def _too_late(self, job: Job) -> bool:
        now = time.perf_counter()
        return self.deadline is not None and now + self._takes(job.arm.seconds) > self.deadline

    def _takes(self, expected: float) -> float:
        """As the plan expects, corrected by the runs so far."""
        return expected * (self.taken / self.expected if self.expected else 1.0)

    def _run(self, job: Job) -> None:
        begun = time.perf_counter()
        fresh = not (job.path / "config.json").exists()
        try:
            result = _say_score(self._train(job) if fresh else resume(job.path, quiet=True).record)
        except UserError as error:
            if isinstance(error.__cause__, Busy):  # a dead process's children, for some seconds
                return
            if not isinstance(error.__cause__, Diverged | NotFinite):
                raise
            reason = str(error.__cause__).partition(". ")[0] + "."
            write_json(job.failure, {"reason": reason})
            result = f"diverged: {reason}"
        _forget_state(job.path)
        seconds = time.perf_counter() - begun
        if fresh:  # a resumed run says nothing about how long one takes
            self.expected += job.arm.seconds
            self.taken += seconds
        left = [other for other in self.plan.jobs(self.folder) if not other.finished]
        rest = self._takes(sum(other.arm.seconds for other in left))
        self.reporter.say(
            f"  {_progress(self.plan, self.folder)}  {job}: {result}, {duration(seconds)}"
            + (f"; about {duration(rest)} left" if left else "")
        )

    def _train(self, job: Job) -> Record:
        arm = job.arm
        config: dict[str, Any] = {
            "format": FORMAT,
            "model": arm.model or str(self.folder / "arms" / f"{arm.slug}.json"),
            "seed": job.seed,
            "recipe": arm.recipe.to_dict(),
            "machine": self.plan.machine.to_dict(),
            "cache": arm.cache,
        }
        path = self.folder / "arms" / f"{arm.slug}-seed{job.seed}.json"
        write_json(path, config)
        run = train(
            config["model"], self.plan.asked.data, job.path, config=path, trackers=["none"],
            quiet=True,
        )  # fmt: skip
        return run.record


@contextmanager
def _claimed(job: Job) -> Iterator[bool]:
    """Whether the run is this process's to do: a lock that the system frees if the process dies."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(job.claim, f"{job} is run by another process.", wait=0.0))
        except Busy:
            mine = False
        else:
            mine = True
        yield mine


def _say_score(record: Record) -> str:
    interval = f" [{100 * (record.low or 0):.1f}, {100 * (record.high or 0):.1f}]"
    return f"{percent(record.value)}{interval}"


def _forget_state(run: Path) -> None:
    """A finished run is not resumed; the optimizer's state would be most of a study's bytes."""
    for name in ("state.pt", "before.pt"):
        (run / "last" / name).unlink(missing_ok=True)
