"""The public door: `mbconv compare`. Records first, then a page made from them alone."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from mbconv.comparing.gap import RESOLUTION, gap
from mbconv.comparing.learning import Lesson, learn
from mbconv.comparing.ways import usual_ways
from mbconv.data.source import scan
from mbconv.errors import UserError
from mbconv.files import check_writable
from mbconv.measure.bench import Bench, Plan
from mbconv.measure.subject import open_subject
from mbconv.measure.task import Way
from mbconv.record import Record, write_records
from mbconv.report.costs_page import PAGE, RECORDS, write_page
from mbconv.report.words import duration
from mbconv.training.console import Reporter


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is compared. `resolution` is the one at which all are; None: the smallest of their own.

    With a `lesson`, our networks are also trained.
    """

    names: tuple[str, ...]
    resolution: int | None = None
    lesson: Lesson | None = None
    plan: Plan = field(default_factory=lambda: Plan(batches=(16,)))

    def __post_init__(self) -> None:
        if len(set(self.names)) < 2:
            raise UserError("Give at least two different networks to compare.")

    @property
    def ways(self) -> tuple[Way, ...]:
        """The plan's, or where it has but one: all that the device has."""
        given = self.plan.ways
        return given if len(given) > 1 else usual_ways(given[0])


def compare(contest: Contest, out: Path, *, quiet: bool = False) -> list[Record]:
    """Measure the networks of `contest`, train them if asked, and write `out`.

    Records are written to `out`/records.jsonl as they come, the page to `out`/compare.html, runs
    below `out`/runs. What fails is a Record with the reason, and the rest goes on. Raises UserError
    where `out` holds a comparison or cannot be written, or nothing could be measured.
    """
    reporter = Reporter(quiet)
    if contest.lesson is not None:
        scan(contest.lesson.data)  # a wrong folder is told before anything is measured
    with Kept(out, reporter) as kept:
        with reporter.bar(1, "starting") as bar:
            bench = Bench(replace(contest.plan, ways=contest.ways, fastest=True), bar.notify)
            kept.extend(costs(contest, bench))
        if not any(record.n for record in kept.records):
            reasons = "; ".join(r.detail["error"].rstrip(".") for r in kept.records)
            raise UserError(f"None of these networks can be measured: {reasons}.")
        if contest.lesson is not None:
            each = duration(contest.lesson.budget)
            reporter.say(
                f"each of our networks learns for {each} at its own resolution, and where that is "
                "not the smallest, again there"
            )
            kept.extend(learn(contest.lesson, contest.names, out / "runs", reporter))
            with reporter.bar(1, "costs of the trained networks") as bar:
                bench.tell = bar.notify
                kept.extend(costs_of_taught(bench, kept.records))
    return kept.records


def compare_gap(
    out: Path, way: Way, resolution: int | None, *, quiet: bool = False
) -> list[Record]:
    """`gap`'s networks on the device of `way`, written to `out` as by `compare`."""
    reporter = Reporter(quiet)
    with Kept(out, reporter) as kept, reporter.bar(1, "starting") as bar:
        kept.extend(gap(bar.notify, way, resolution=resolution or RESOLUTION))
    return kept.records


class Kept:
    """The records of a comparison in its folder: written as they come, the page at the end.

    An interrupt leaves what was measured until then, with its page.
    """

    def __init__(self, out: Path, reporter: Reporter) -> None:
        if (out / RECORDS).exists():
            raise UserError(
                f"{out} already holds a comparison. Give another --out, or make its page again: "
                f"mbconv compare --from {out / RECORDS}"
            )
        check_writable(out)
        self.out, self.reporter = out, reporter
        self.records: list[Record] = []

    def extend(self, records: Iterator[Record]) -> None:
        for record in records:
            self.records.append(record)
            write_records(self.out / RECORDS, self.records)

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if not any(record.n for record in self.records):
            (self.out / RECORDS).unlink(missing_ok=True)
            return
        page = write_page(self.records, self.out / PAGE)
        if kind is not None:
            self.reporter.say(f"stopped; what was taken until then is kept, and shown by {page}")


def costs(contest: Contest, bench: Bench) -> Iterator[Record]:
    """What the networks cost: all at the common resolution, then at their own where that differs.

    `view` in `detail` is same or own.
    """
    natives: dict[str, int] = {}
    for name in dict.fromkeys(contest.names):
        try:
            natives[name] = open_subject(name).resolution
        except UserError:
            continue  # the bench says why
    common = contest.resolution or min(natives.values(), default=None)
    yield from _viewed(bench, "same", contest.names, common)
    if any(native != common for native in natives.values()):
        yield from _viewed(bench, "own", list(natives), None)


def costs_of_taught(bench: Bench, records: Sequence[Record]) -> Iterator[Record]:
    """What trained networks cost at resolutions that they learnt at and nobody measured yet.

    A score says little beside the cost at another resolution.
    """
    done = {(r.detail["network"], r.detail["resolution"]) for r in records if r.name == "macs"}
    taught = {
        (r.detail["network"], r.detail["resolution"]) for r in records if r.name == "top1" and r.n
    }
    missing = sorted(taught - done, key=lambda pair: pair[1])
    for side, group in groupby(missing, key=lambda pair: pair[1]):
        yield from _viewed(bench, "taught", [name for name, _ in group], side)


def _viewed(
    bench: Bench, view: str, names: Sequence[str], resolution: int | None
) -> Iterator[Record]:
    """The bench's records at a resolution, with the view; calibration and peaks are kept."""
    bench.plan = replace(bench.plan, resolution=resolution)
    for record in bench.records(names):
        yield replace(record, detail=record.detail | {"view": view})


def free_folder() -> Path:
    """A folder in comparisons/ that is not there yet, named by the date."""
    name = time.strftime("%Y-%m-%d")
    folders = (
        Path("comparisons") / (name + tail) for tail in ("", *(f"-{n}" for n in range(2, 1000)))
    )
    return next(folder for folder in folders if not folder.exists())
