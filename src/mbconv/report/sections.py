"""What each section of a run's report shows, as plain data for the template.

A section is None or empty where the run's files lack what it needs.
"""

from pathlib import Path
from typing import Any

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.report import classes, figures, findings, words
from mbconv.report.folder import Json, RunFolder, number
from mbconv.report.words import count, duration, percent

WAITING_MOST = 0.1  # share of the time waiting for pictures, above which it is worth a remark

Facts = list[tuple[str, str]]


def title(run: RunFolder) -> str:
    """What was trained on what, in one sentence."""
    text = f"{words.short(run.model)} was trained"
    if trained := len(run.splits.get("train", ())):
        text += f" on {count(trained, 'picture')}"
    if folder := Path(run.root).name:
        text += f" in “{words.short(folder)}”"
    if names := run.classes:
        text += f" to tell {count(len(names), 'class', 'classes')} apart: {words.listing(names)}"
    return text + "."


def kicker(run: RunFolder) -> list[str]:
    """Date, time taken and machine, for the line above the title."""
    record = run.evaluation
    parts = [record.date[:10]] if record else []
    if seconds := _seconds(run):
        parts.append(f"trained in {duration(seconds)}")
    if cores := _environment(run).get("cores"):
        parts.append(f"{_device(run)}, {count(cores, 'core')}")
    return parts


def score(run: RunFolder) -> Json | None:
    """The headline: accuracy with its interval, the baseline, and the scores beside it."""
    record = run.evaluation
    if record is None:
        return None
    split = {"test": "test", "val": "validation"}.get(str(run.detail.get("split")), "scored")
    return {
        "value": record.value,
        "low": record.low,
        "high": record.high,
        "n": record.n,
        "split": split,
        "headline": words.headline(record.value, record.low, record.high, record.n),
        "baseline": _baseline(run),
        "others": _others(run),
        "unreadable": run.detail.get("unreadable") or [],
    }


def _baseline(run: RunFolder) -> Json | None:
    majority = run.detail.get("majority") or {}
    value = number(majority.get("value"))
    if value is None:
        return None
    hits, base = words.out_of(value)
    label = words.short(str(majority.get("label")))
    sentence = (
        f"Always answering “{label}”, the most frequent class, would be right for {hits:,} of "
        f"{base:,}: that is the bar to clear."
    )
    return {"value": value, "label": label, "sentence": sentence}


def _others(run: RunFolder) -> list[Json]:
    named = {
        "balanced_accuracy": ("Balanced accuracy", "every class counts the same, however rare"),
        "top5": ("Top-5 accuracy", "the true class is among the five likeliest"),
    }
    return [
        {"name": name, "why": why, "value": number(given.get("value")),
         "low": number(given.get("low")), "high": number(given.get("high"))}
        for key, (name, why) in named.items() if (given := run.detail.get(key))
    ]  # fmt: skip


def curve(run: RunFolder) -> Json:
    """The training curves and what was trained when."""
    best = figures.best_epoch(run.epochs)
    stops = figures.stops(run.epochs)
    diverged = sum(number(row["train_loss"]) is None for row in run.epochs if "train_loss" in row)
    return {
        "charts": [
            chart
            for make in (figures.accuracy_chart, figures.loss_chart)
            if (chart := make(run.epochs)) is not None
        ],
        "phases": figures.phases(run.epochs),
        "stops": stops,
        "best": "Kept is e" + stops[best[0]].text.removeprefix("E") if best else "",
        "diverged": diverged,
        "n": len(run.splits.get("val", ())),
    }


def confusion(run: RunFolder) -> Json | None:
    """The heat table up to 30 classes, and the most confused pairs."""
    labels, table = _confusion(run)
    if not table:
        return None
    readable = len(labels) <= classes.MATRIX_MOST
    most = classes.PAIRS_BESIDE_MATRIX if readable else classes.PAIRS_ALONE
    return {
        "labels": labels,
        "rows": classes.matrix(labels, table) if readable else [],
        "pairs": classes.pairs(labels, table, most),
    }


def bars(run: RunFolder) -> Json | None:
    """Recall and precision of each class, worst first; `rest` is folded away."""
    rows = classes.bars(*_confusion(run), run.detail.get("per_class") or [])
    if not rows:
        return None
    return {
        "open": rows[: classes.BARS_OPEN],
        "rest": rows[classes.BARS_OPEN :],
        "few": findings.few(rows),
        "intervals": any(row["low"] is not None for row in rows),
    }


def mistakes(run: RunFolder) -> Json | None:
    """The most confident mistakes, and how many there are in all."""
    if run.evaluation is None:
        return None
    found = run.detail.get("mistakes") or []
    _, table = _confusion(run)
    wrong = sum(map(sum, table)) - sum(row[i] for i, row in enumerate(table))
    shown = classes.mistakes(found)
    total = max(wrong, len(found))
    return {**shown, "total": total, "left_out": total - sum(map(len, shown.values()))}


def calibration(run: RunFolder) -> Json | None:
    """The reliability diagram and the expected calibration error in one sentence."""
    bins = figures.reliability(run.detail.get("calibration") or [])
    ece = number(run.detail.get("ece"))
    if not bins or ece is None:
        return None
    total = sum(b["n"] for b in bins)
    surplus = sum(b["n"] * (b["confidence"] - b["accuracy"]) for b in bins) / total
    lean = "about as sure as it should be"
    if abs(surplus) >= 0.01:
        lean = f"too {'sure' if surplus > 0 else 'modest'} by {abs(surplus) * 100:.1f} points"
    across = tuple(figures.Tick(at, f"{at}%") for at in range(0, 101, 25))
    upwards = tuple(figures.Tick(100 - tick.at, tick.text) for tick in across)
    return {"bins": bins, "ece": ece, "lean": lean, "x_ticks": across, "y_ticks": upwards}


def data(run: RunFolder) -> Json | None:
    """The splits and what the audit found."""
    if not run.data:
        return None
    splits, rows = findings.class_counts(run.audit, run.classes)
    return {
        "root": run.root,
        "splits": [(name, count(len(paths), "picture")) for name, paths in run.splits.items()],
        "checked": _checked(run.audit) if run.audit else "",
        "findings": findings.findings(run.audit),
        "count_splits": splits,
        "counts": rows if splits else [],
    }


def _checked(audit: Json) -> str:
    ignored = int(audit.get("ignored") or 0)
    others = f" {count(ignored, 'other file')} passed over: no pictures." if ignored else ""
    return findings.checked(audit) + others


def machine(run: RunFolder) -> Json:
    """Time, network, hardware and software as pairs of name and value, and the formats tried."""
    given = run.config.get("machine") or {}
    trials = [t for t in given.get("trials") or [] if number(t.get("img_per_s")) is not None]
    return {
        "time": _time(run),
        "network": _network(run),
        "hardware": _hardware(run),
        "trials": sorted(trials, key=lambda t: -t["img_per_s"]),
        "chosen": (given.get("dtype"), given.get("memory_format")),
        "versions": list((_environment(run).get("versions") or {}).items()),
    }


def _time(run: RunFolder) -> Facts:
    facts: Facts = []
    if seconds := _seconds(run):
        budget = number(run.config.get("budget_seconds"))
        of = f" of a budget of {duration(budget)}" if budget else ""
        facts.append(("Training took", duration(seconds) + of))
    if run.epochs:
        facts.append(("Epochs", count(len(run.epochs) - 1 + figures.first_number(run.epochs))))
    speeds = [v for row in run.epochs if (v := number(row.get("img_per_s")))]
    if speeds:
        facts.append(("Speed", f"{count(speeds[-1])} pictures a second in the last epoch"))
    waits = [v for row in run.epochs if (v := number(row.get("data_wait"))) is not None]
    if waits:
        share = sum(waits) / len(waits)
        hint = ": reading pictures slows this run down" if share > WAITING_MOST else ""
        facts.append(("Waiting for pictures", f"{percent(share)} of the time{hint}"))
    return facts


def _network(run: RunFolder) -> Facts:
    facts: Facts = [("Network", run.model)]
    if resolution := run.config.get("resolution"):
        facts.append(("Resolution", f"{resolution} px"))
    try:
        spec = Spec.from_dict(run.config.get("spec"))
        spent = cost(spec, run.config.get("resolution"))
    except UserError:  # a run of a newer version, say: the rest of the report still holds
        pass
    else:
        facts.append(("Parameters", f"{spent.params / 1e6:.2f} million"))
        facts.append(("Multiply-adds", f"{spent.macs / 1e6:,.0f} million a picture"))
    if run.model_bytes is not None:
        facts.append(("Model file", f"model.safetensors, {words.size(run.model_bytes)}"))
    return facts


def _hardware(run: RunFolder) -> Facts:
    environment, given = _environment(run), run.config.get("machine") or {}
    named = {
        "Processor": environment.get("hardware"),
        "Cores": environment.get("cores"),
        "Device": given.get("device"),
        "Number format": given.get("dtype"),
        "Memory layout": given.get("memory_format"),
        "Threads": given.get("threads"),
        "System": environment.get("system"),
    }
    return [(name, str(value)) for name, value in named.items() if value]


def _confusion(run: RunFolder) -> tuple[list[str], list[list[int]]]:
    labels = [str(label) for label in run.detail.get("labels") or []]
    return labels, run.detail.get("confusion") or []


def _environment(run: RunFolder) -> dict[str, Any]:
    found = run.config.get("environment") or (run.evaluation and run.evaluation.environment)
    return found or {}


def _device(run: RunFolder) -> str:
    device = str((run.config.get("machine") or {}).get("device") or "cpu")
    return "CPU" if device == "cpu" else device


def _seconds(run: RunFolder) -> float:
    return max((number(row.get("seconds")) or 0.0 for row in run.epochs), default=0.0)
