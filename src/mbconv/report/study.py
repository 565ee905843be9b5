"""A study folder -> its page, its figure, a Markdown table and Records; from its files alone."""

from collections.abc import Sequence
from pathlib import Path

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.files import write_text
from mbconv.record import Record, write_records
from mbconv.report import words
from mbconv.report.contrasts import MOST_SEEDS, Contrast, Interval
from mbconv.report.folder import Json
from mbconv.report.run import template
from mbconv.report.study_figure import figure_context, matrix
from mbconv.report.study_folder import ArmRow, StudyFolder, read_study

_DASH = words.percent(None)


def write_study(folder: str | Path) -> tuple[Path, Path]:
    """Write study.html, study.md, study.svg and study.jsonl into a study folder.

    Returns the page's path and the table's. Runs that have not finished yet are left out. Raises
    UserError where the folder is no study or a file in it is broken.
    """
    study = read_study(folder)
    figure = template("study.svg.j2").render(figure_context(study) | {"caption": title(study)})
    page = template("study.html.j2").render(context(study) | {"figure": figure})
    out = study.path / "study.html", study.path / "study.md"
    for path, text in zip(out, (page, "\n".join(markdown(study)) + "\n"), strict=True):
        write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
    write_text(study.path / "study.svg", figure)
    write_records(study.path / "study.jsonl", records(study))
    return out


def records(study: StudyFolder) -> list[Record]:
    """Means, and differences with both of their intervals, as Records."""
    made = []
    for arm in study.arms:
        about = {"study": study.plan["name"], "arm": arm.name, "levels": arm.planned["levels"]}
        spec_hash = Spec.from_dict(arm.planned["spec"]).hash
        if (mean := arm.mean) is not None:
            several = len(arm.scores) > 1
            values = [record.value for record in arm.scores.values()]
            made.append(
                Record(name="mean_top1", value=mean.value, n=len(values), spec_hash=spec_hash,
                       low=mean.low if several else None, high=mean.high if several else None,
                       detail=about | {"values": values})
            )  # fmt: skip
        if (found := arm.contrast) is not None:
            across, pictures = found.across_seeds, found.on_pictures
            made.append(
                Record(name="top1_difference", value=found.value, n=found.seeds,
                       low=across.low if across else None,
                       high=across.high if across else None, spec_hash=spec_hash,
                       detail=about | {"beside": arm.planned["beside"], "verdict": found.verdict,
                                       "on_pictures": vars(pictures) if pictures else None})
            )  # fmt: skip
    return made


def verdict(arm: ArmRow) -> str:
    """In words: better, worse, or not distinguishable, and what it would take."""
    diverged = f"{words.count(len(arm.failures), 'run')} diverged" if arm.failures else ""
    if arm.planned["beside"] is None:
        return "; ".join(filter(None, ("what the others are compared with", diverged)))
    found = arm.contrast
    if found is None:
        return diverged or "no run to compare yet"
    text = found.verdict
    if text == "not distinguishable":
        text += f" with {words.count(found.seeds, 'seed')}{_needed(found)}"
    return "; ".join(filter(None, (text, diverged)))


def _needed(found: Contrast) -> str:
    if found.across_seeds is None:
        return ", two at least are needed"
    ways = []
    if found.across_seeds.low <= 0 <= found.across_seeds.high:
        seeds = found.needed_seeds
        ways.append(f"about {seeds} seeds" if seeds else f"more than {MOST_SEEDS} seeds")
    if found.needed_pictures is not None:
        many = found.needed_pictures >= 10**6
        pictures = "more than a million" if many else f"about {_rounded(found.needed_pictures)}"
        ways.append(f"{pictures} test pictures")
    return f"; {' and '.join(ways)} would show a difference this large" if ways else ""


def _rounded(number: int) -> str:
    """Two digits of it, as much as such a number can mean."""
    return f"{float(f'{number:.1e}'):,.0f}"


def title(study: StudyFolder) -> str:
    """What came out, in one sentence."""
    name, baseline = study.plan["name"], study.plan["baseline"]
    compared = [arm for arm in study.arms if arm.contrast is not None]
    if not compared:
        return f"{name}: nothing to compare yet"
    parts = []
    for kind in ("better", "worse"):
        names = [arm.name for arm in compared if arm.contrast and arm.contrast.verdict == kind]
        if names:
            parts.append(f"{kind}: {words.listing([f'“{n}”' for n in names], 3)}")
    rest = sum(a.contrast is not None and a.contrast.verdict[0] == "n" for a in compared)
    if not parts:
        return f"{name}: no arm can be told apart from “{baseline}”"
    tail = f"; {rest} of {len(compared)} not distinguishable" if rest else ""
    one = {arm.planned["beside"] for arm in compared} == {baseline}
    than = f" (beside “{baseline}”)" if one else ""
    return f"{name}: {'; '.join(parts)}{tail}{than}"


def points(interval: Interval | None, value: float | None = None) -> str:
    """+1.2 [-0.3, +2.7], in percentage points."""
    if interval is None:
        return _DASH if value is None else f"{100 * value:+.1f}"
    ends = f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    return ends if value is None else f"{100 * value:+.1f} {ends}"


def cells(arm: ArmRow, study: StudyFolder) -> Json:
    """An arm's row of the table, each cell as text."""
    mean, found = arm.mean, arm.contrast
    spec = Spec.from_dict(arm.planned["spec"])
    spent = cost(spec, study.plan["resolution"])
    accuracy = _DASH
    if mean is not None:
        accuracy = f"{100 * mean.value:.1f}%"
        if len(arm.scores) > 1:
            accuracy += f" [{100 * max(mean.low, 0):.1f}, {100 * min(mean.high, 1):.1f}]"
    return {
        "name": arm.name,
        "seeds": str(len(arm.scores)),
        "accuracy": accuracy,
        "difference": points(found.across_seeds, found.value) if found else _DASH,
        "pictures": points(found.on_pictures) if found else _DASH,
        "params": f"{spent.params / 1e6:.2f}",
        "macs": f"{spent.macs / 1e6:,.1f}",
        "step": f"{arm.planned['ms_per_step']:,.0f}",
        "pass": f"{arm.planned['ms_per_picture']:.2f}",
        "epochs": str(sum(p["epochs"] for p in arm.planned["recipe"]["phases"])),
        "time": words.duration(sum(arm.seconds) / len(arm.seconds)) if arm.seconds else _DASH,
        "verdict": verdict(arm),
    }


VERDICTS = (("name", "arm"), ("seeds", "seeds"), ("accuracy", "accuracy"),
            ("difference", "difference, over seeds"), ("pictures", "on new pictures"),
            ("verdict", "verdict"))  # fmt: skip
COSTS = (("name", "arm"), ("params", "M parameters"), ("macs", "MMACs"),
         ("step", "ms a training step"), ("pass", "ms a picture"), ("epochs", "epochs"),
         ("time", "time a run"))  # fmt: skip


def table(study: StudyFolder, columns: Sequence[tuple[str, str]]) -> list[list[str]]:
    """A row of text an arm."""
    texts = [cells(arm, study) for arm in study.arms]
    return [[row[key] for key, _ in columns] for row in texts]


def context(study: StudyFolder) -> Json:
    """What the page shows, as plain data."""
    return {
        "title": title(study),
        "name": study.plan["name"],
        "question": study.plan["question"],
        "about": study.plan["about"],
        "columns": [label for _, label in VERDICTS],
        "rows": table(study, VERDICTS),
        "cost_columns": [label for _, label in COSTS],
        "costs": table(study, COSTS),
        "verdicts": [(arm.contrast.verdict if arm.contrast else "") for arm in study.arms],
        "matrix": matrix(study),
        "remarks": remarks(study),
        "method": METHOD,
        "facts": facts(study),
    }


METHOD = (
    "Each arm is trained with the same seeds; a seed decides the first weights, the order of the "
    "pictures and how they are cropped, so that arms are compared seed by seed.",
    "Accuracy: the mean over seeds with its 95% interval (Student, each arm by its own spread).",
    "Difference over seeds: accuracy minus that of the arm it stands beside. Its interval is "
    "Student's from arm + seed + noise with one size of noise for all arms; with two arms that is "
    "the paired t test. It speaks of other seeds.",
    "On new pictures: the interval of the same difference for these very networks, from which "
    "pictures each named right. All intervals of a kind hold at once with 95% confidence "
    "(Bonferroni).",
    "Better or worse is said only where both intervals leave out zero. How many seeds or pictures "
    "would be needed is for a difference as large as the one seen, found in four of five studies.",
)


def remarks(study: StudyFolder) -> list[str]:
    """What a reader must know before believing the verdicts."""
    made = []
    if study.runs < study.planned:
        made.append(f"{study.runs} of {study.planned} runs are done; the rest would add to this.")
    splits = {r.detail.get("split") for arm in study.arms for r in arm.scores.values()}
    if splits == {"val"}:
        made.append(
            "Scores are on validation pictures, by which each run also chose its network: a little "
            "too good, for all arms alike."
        )
    for arm in study.arms:
        made += [f"{arm.name}, seed {seed}: {why}" for seed, why in arm.failures.items()]
    return made


def facts(study: StudyFolder) -> list[tuple[str, str]]:
    """What the study was made with."""
    plan = study.plan
    base = next(arm for arm in plan["arms"] if arm["name"] == plan["baseline"])
    machine, environment, recipe = plan["machine"], plan["environment"], base["recipe"]
    threads = words.count(machine["threads"], "thread")
    versions = environment.get("versions", {})
    scored = {r.n for arm in study.arms for r in arm.scores.values() if r.n}
    return [
        ("data", f"{Path(plan['asked']['data']).name}: {len(plan['classes'])} classes, "
                 f"{plan['pictures']['train']:,} training pictures; scored on "
                 f"{words.listing([f'{n:,}' for n in sorted(scored)]) if scored else 'none yet'}"),
        ("network", f"{base['spec'].get('name', 'custom')} at {plan['resolution']} px, the "
                    "baseline's"),
        ("recipe", f"{recipe['name']}, batch {recipe['batch_size']}"),
        ("seeds", f"{plan['seeds']}; {study.runs} of {study.planned} runs done"),
        ("hardware", f"{environment.get('hardware')}; {machine['device']}, {threads}, "
                     f"{machine['dtype']}"),
        ("software", ", ".join(f"{name} {v}" for name, v in versions.items()
                               if name in ("mbconv", "torch", "python"))),
        ("command", plan["command"]),
    ]  # fmt: skip


def markdown(study: StudyFolder) -> list[str]:
    """The table and what belongs to it, for a README or an issue."""
    about = study.plan["about"].partition("\n\n")[2].replace("\n", " ")
    lines = [f"# {title(study)}", "", study.plan["question"], *(["", about] if about else []), ""]
    if found := matrix(study):
        down, across = found["axes"]
        lines += _table([f"{down} \\ {across}", *found["columns"]], [
            [row, *(f"**{c['text']}**" if c["kind"] == "baseline" else c["text"] for c in texts)]
            for row, texts in found["rows"]
        ])  # fmt: skip
        lines += ["", "Mean accuracy; the baseline is bold.", ""]
    for columns in (VERDICTS, COSTS):
        lines += [*_table([label for _, label in columns], table(study, columns)), ""]
    lines += [f"- {text}" for text in remarks(study)]
    lines += [f"- {name}: {value}" for name, value in facts(study)]
    return [*lines, "", *METHOD]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    made = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in made]
