"""What `mbconv shrink` shows: what went, in what order, at what cost."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mbconv.report.export import ComparisonLike
from mbconv.report.network import plain_table
from mbconv.report.words import count, percent

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]

_NOISY = 1.5  # times as long
_UNITS = {"ms": "milliseconds", "macs": "multiply-adds", "params": "parameters"}


def plan_table(plan: Json) -> "Table":
    """A plan's `to_dict` for a terminal: a line a removal, in order."""
    from rich.table import Table
    from rich.text import Text

    unit = _UNITS[plan["by"]]
    table = plain_table(
        Table(title=Text(f"{plan['source']['name']} shrinks to {plan['target']['name']}: "
                         f"{percent(plan['reached'])} of its {unit} (asked: "
                         f"{percent(plan['goal'])})"),
              title_justify="left", caption=Text(_caption(plan)), caption_justify="left"),
        ("module", "what goes"),
        ("round", "alone costs", "loss", f"saves {plan['by']}", "then in all", "left"),
    )  # fmt: skip
    for step in plan["steps"]:
        table.add_row(
            step["module"], _what(step), str(step["round"]), f"{step['cost']:.4f}",
            f"{step['loss']:+.4f}", percent(step["saved"]), f"{step['divergence']:.4f}",
            percent(step["left"]),
        )  # fmt: skip
    return table


def outcome(plan: Json | None, comparison: ComparisonLike | None, params: int) -> Iterator[str]:
    """Sentences on a shrunk network."""
    yield count(params, "parameter") + (
        "" if plan is None else f", {percent(plan['reached'])} of the {_UNITS[plan['by']]}"
    )
    if comparison is not None:
        yield compared(comparison)


def compared(comparison: ComparisonLike) -> str:
    """Both accuracies and the interval of what was lost."""
    low, high = (100 * bound for bound in comparison.interval)
    return (
        f"accuracy {percent(comparison.second)}, the source's {percent(comparison.first)} on the "
        f"same {count(comparison.n, 'picture')}, which decided nothing: a loss of "
        f"{100 * comparison.drop:.1f} points (95% interval {low:.1f} to {high:.1f})"
    )


def _what(step: Json) -> str:
    if step["kind"] == "block":
        return "the whole block"
    return f"{step['kind']} {step['before']}->{step['after']}"


def _caption(plan: Json) -> str:
    before, after = plan["loss"]
    again = "were taken again" if plan["recalibrated"] else "stay, which was better"
    noisy = ""
    if plan["noise"] > _NOISY:
        noisy = (
            f"\nThe machine was busy: a fixed piece of work beside the timings took "
            f"{plan['noise']:.1f} times as long as at best. Shrink again on a quiet one."
        )
    return (
        f"Costs: by how much the answers to {count(plan['pictures'], 'held-out picture')} diverge "
        f"from the source's, nats a picture; loss: rise of the cross-entropy.\n"
        f"Cross-entropy in all: {before:.3f} before, {after:.3f} after. Batch-norm statistics "
        f"{again}.{noisy}"
    )
