"""What a reader must know before believing the score: warnings, and the audit of the data."""

from collections.abc import Sequence
from typing import Any

from mbconv.report.classes import FEW
from mbconv.report.folder import Json, RunFolder, number
from mbconv.report.words import count, duration, listing, percent, short

SMALL = 100  # scored pictures, below which a score is rough
LISTED_MOST = 50
UNBALANCED = 5  # times as many pictures in the largest class as in the smallest


def warnings(run: RunFolder) -> list[str]:
    """Sentences that belong beside the score; none where it can be taken as it stands."""
    record = run.evaluation
    if record is None:
        return []
    found = [*_against_baseline(run), *_small(run)]
    if run.detail.get("split") == "val":
        found.append(
            "There was no test split, so the score comes from the validation pictures. Training "
            "chose its best state by them: expect a little less on new pictures."
        )
    leaked = _leaked(run)
    if leaked and record.n:
        found.append(
            f"{count(leaked)} of the {count(record.n)} scored pictures "
            f"{'is' if leaked == 1 else 'are'} equal or nearly equal to one that was trained on, "
            "so the score may be too good. The data section lists them."
        )
    return found + _about_classes(run)


def _leaked(run: RunFolder) -> int:
    """Scored pictures that share a group of duplicates with a training picture."""
    trained = set(run.splits.get("train", ()))
    scored = set(run.splits.get(str(run.detail.get("split")), ())) - trained
    groups = [set(map(str, group)) for group in run.audit.get("across_splits") or []]
    return len({path for group in groups if group & trained for path in group & scored})


def _against_baseline(run: RunFolder) -> list[str]:
    record, majority = run.evaluation, run.detail.get("majority") or {}
    baseline = number(majority.get("value"))
    if record is None or baseline is None:
        return []
    always = f"always answering “{short(str(majority.get('label')))}” ({percent(baseline)})"
    if record.value <= baseline:
        return [
            f"The score is not better than {always}: by this measure the network has learned "
            "nothing useful."
        ]
    if record.low is not None and record.low <= baseline:
        return [
            f"The score is not clearly better than {always}: its 95% interval begins at "
            f"{percent(record.low)}, so it may be luck."
        ]
    return []


def _small(run: RunFolder) -> list[str]:
    record = run.evaluation
    if record is None or not record.n or record.n >= SMALL:
        return []
    if record.low is None or record.high is None:
        return [f"Only {count(record.n, 'picture')} were scored, so the score is rough."]
    return [
        f"Only {count(record.n, 'picture')} {'was' if record.n == 1 else 'were'} scored, so the "
        f"score is rough: anything from {percent(record.low)} to {percent(record.high)} fits it. "
        "More test pictures narrow it."
    ]


def _about_classes(run: RunFolder) -> list[str]:
    rows = [row for row in run.detail.get("per_class") or [] if row.get("n")]
    seen = {str(row["label"]) for row in rows}
    never = [str(row["label"]) for row in rows if not row.get("recall")]
    unseen = [name for name in run.classes if name not in seen]
    found = []
    if never:
        found.append(
            f"Not one picture was named correctly in {count(len(never), 'class', 'classes')}: "
            f"{listing(never)}."
        )
    if unseen:
        found.append(
            f"{count(len(unseen), 'class', 'classes')} without a scored picture, so nothing is "
            f"known about {'it' if len(unseen) == 1 else 'them'}: {listing(unseen)}."
        )
    return found


def few(rows: Sequence[Json]) -> str | None:
    """A sentence about classes whose bars rest on few pictures."""
    names = [row["label"] for row in rows if row["few"]]
    if not names:
        return None
    return (
        f"{count(len(names), 'class', 'classes')} with fewer than {FEW} scored pictures, marked "
        "“few”: one picture more or less moves such a bar a lot."
    )


def findings(audit: Json) -> list[Json]:
    """The audit's findings, gravest first: title, sentence, whether it is bad, and the files."""
    if not audit:
        return []
    return [
        _unreadable(audit.get("unreadable") or []),
        *(_groups(audit.get(key) or [], *words) for key, words in _GROUPS.items()),
        *([found] if (found := _imbalance(audit)) else []),
        *([found] if (found := _formats(audit)) else []),
    ]


def class_counts(audit: Json, classes: Sequence[str]) -> tuple[list[str], list[Json]]:
    """Splits, and for each class its number of pictures by split, most pictures first."""
    counts = audit.get("class_counts") or {}
    splits = list(counts)
    rows = [
        {"label": name, "counts": [int(counts[split].get(name, 0)) for split in splits]}
        for name in classes
    ]
    return splits, sorted(rows, key=lambda row: -sum(row["counts"]))


def checked(audit: Json) -> str:
    """How many files the audit looked at, and how long it took."""
    files, seen = int(audit.get("files") or 0), int(audit.get("checked") or 0)
    seconds = number(audit.get("seconds"))
    time = f" in {duration(seconds)}" if seconds is not None else ""
    if audit.get("sampled"):
        return f"A sample of {count(seen)} of {count(files, 'file')} was decoded{time}."
    return f"{count(files, 'file')} {'was' if files == 1 else 'were all'} decoded{time}."


# Audit field: title, sentence where there are such groups ({} is their number), sentence where
# there is none, and whether they make the score or the training wrong.
_GROUPS = {
    "across_splits": (
        "Duplicates across splits",
        "{} of equal or nearly equal pictures in more than one split. A network tested on what it "
        "was trained on looks better than it is: keep each group in one split.",
        "No picture appears in more than one split.",
        True,
    ),
    "label_conflicts": (
        "Contradicting labels",
        "{} of equal or nearly equal pictures in different classes. At least one of the labels is "
        "wrong: correct or remove it.",
        "No picture appears in two classes.",
        True,
    ),
    "exact": (
        "Exact duplicates",
        "{} of identical pictures. They teach nothing new and count more than once.",
        "No two files hold the same picture.",
        False,
    ),
    "near": (
        "Near duplicates",
        "{} of pictures that look almost the same.",
        "No two pictures look almost the same.",
        False,
    ),
}


def _unreadable(found: Sequence[Json]) -> Json:
    if not found:
        return _finding("Unreadable files", "Every file that was checked could be read.")
    was, them = ("was", "it") if len(found) == 1 else ("were", "them")
    number = count(len(found), "file")
    text = f"{number} could not be read and {was} left out. Mend or remove {them}."
    files = [[f"{item.get('path')}: {item.get('reason')}"] for item in found]
    return _finding("Unreadable files", text, files)


def _groups(found: Sequence[Any], title: str, some: str, none: str, grave: bool) -> Json:
    if not found:
        return _finding(title, none)
    files = [list(map(str, group)) for group in found]
    return _finding(title, some.format(count(len(found), "group")), files, bad=grave)


def _imbalance(audit: Json) -> Json | None:
    given = audit.get("class_counts") or {}
    counts = given.get("train") or given.get("all") or {}
    if len(counts) < 2:
        return None
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if not counts[least]:
        return _finding("Balance", f"“{short(least)}” has no training picture.", bad=True)
    times = counts[most] / counts[least]
    text = (
        f"From {count(counts[least])} (“{short(least)}”) to {count(counts[most])} "
        f"(“{short(most)}”) training pictures a class: the largest class has {times:.1f} times as "
        "many as the smallest."
    )
    if times >= UNBALANCED:
        text += " Small classes are often the weak ones; more pictures of them help most."
    return _finding("Balance", text, bad=times >= UNBALANCED)


def _formats(audit: Json) -> Json | None:
    parts = [
        f"{side} {count(px['min'])} to {count(px['max'])} px (median {count(px['median'])})"
        for side, px in (audit.get("sizes") or {}).items()
    ]
    modes = audit.get("modes") or {}
    if modes:
        parts.append("colour modes " + ", ".join(f"{k} {count(n)}" for k, n in modes.items()))
    for key, what in (("exif_rotated", "turned upright by EXIF"),
                      ("animated", "animated, of which the first frame is used")):  # fmt: skip
        if n := int(audit.get(key) or 0):
            parts.append(f"{count(n, 'file')} {what}")
    text = "; ".join(parts)
    return _finding("Sizes and formats", text[0].upper() + text[1:] + ".") if text else None


def _finding(
    title: str, sentence: str, files: Sequence[Sequence[str]] = (), bad: bool | None = None
) -> Json:
    """`files` are groups of paths; a finding with files is bad unless said otherwise."""
    return {
        "title": title,
        "sentence": sentence,
        "bad": bool(files) if bad is None else bad,
        "files": [list(group) for group in files[:LISTED_MOST]],
        "more": max(0, len(files) - LISTED_MOST),
    }
