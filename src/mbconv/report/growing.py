"""What `mbconv grow` shows: where each part of the larger network starts from."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mbconv.report.network import plain_table
from mbconv.report.words import count, listing

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]

_MAIN = (".conv.weight", ".reduce.weight", ".linear.weight", "classifier.weight")
_NAMES = {"gate": "squeezed", "expand": "expanded", "depthwise": "expanded", "shortcut": "shortcut",
          "linear": "hidden", "classifier": "classes"}  # fmt: skip


def plan_table(plan: Json) -> "Table":
    """A plan's `to_dict` for a terminal: a line for the stem, each block and the head."""
    from rich.table import Table
    from rich.text import Text

    table = plain_table(
        Table(title=Text(_title(plan)), title_justify="left", caption=Text(_caption(plan)),
              caption_justify="left"),
        ("module", "starts from", "channels", "what changes"),
        ("kept", "widened", "new"),
    )  # fmt: skip
    for place, group in groupby(plan["moves"], key=lambda move: _place(move["name"])):
        moves = list(group)
        sums = [sum(move["counts"][i] for move in moves) for i in range(3)]
        changes = _changes(place, moves, plan["exact"])
        table.add_row(place, _origin(place, moves), _channels(moves), changes,
                      *(f"{number:,}" for number in sums))  # fmt: skip
    return table


def outcome(plan: Json, difference: float | None) -> str:
    """Sentences on a grown network; `difference` is that of the logits, over their largest."""
    text = (
        f"{plan['target']}, {count(plan['params'], 'parameter')}, "
        f"{plan['effective']:,} of them effective at the start"
    )
    if difference is None:
        return f"{text}; its answers are not the source's: train it"
    if difference == 0:
        return f"{text}; on noise its logits are the source's, bit for bit"
    return f"{text}; on noise its logits differ by {difference:.1e} of the largest one"


def _title(plan: Json) -> str:
    how = {"exact": "with equal answers", "nearest": "with equal answers"}.get(
        plan["mode"], f"by {plan['mode']}"
    )
    return (
        f"{plan['source']} ({count(plan['source_params'], 'parameter')}) grows into "
        f"{plan['target']} ({plan['params']:,}) {how}"
    )


def _caption(plan: Json) -> str:
    lines = [
        f"{plan['kept']:,} kept, {plan['widened']:,} widened (copies, and weights shared out among "
        f"them), {plan['new']:,} new;",
        f"effective at the start: {plan['effective']:,}, those of the source that come along.",
    ]
    if plan["left"]:
        lines.append(f"Left behind: {listing(plan['left'])}.")
    return "\n".join(lines)


def _place(name: str) -> str:
    """stages.1.2.expand.conv.weight -> stages.1.2; head.conv.norm.bias -> head.conv."""
    parts = name.split(".")
    return ".".join(parts[: {"stages": 3, "head": 2}.get(parts[0], 1)])


def _origin(place: str, moves: Sequence[Json]) -> str:
    """The source's module, or what a part that it lacks is."""
    sources = {_place(move["source"]) for move in moves if move["source"]}
    if not sources:
        return "fresh"
    (source,) = sources
    return source if source == place else f"copy of {source}"


def _channels(moves: Sequence[Json]) -> str:
    """From the first tensor's input to the last convolution's output."""
    main = _main(moves)
    first, last = main[0], [move for move in main if ".shortcut." not in move["name"]][-1]
    depthwise = first["name"].endswith(("depthwise.conv.weight", "start.conv.weight"))
    return f"{first['shape'][0 if depthwise else 1]}->{last['shape'][0]}"


def _main(moves: Sequence[Json]) -> list[Json]:
    return [move for move in moves if move["name"].endswith(_MAIN)]


def _changes(place: str, moves: Sequence[Json], exact: bool) -> str:
    """In words, without what stays as it is."""
    own = _origin(place, moves) == place
    if not own and not exact:
        return "everything"
    words = [] if own else ["silent at first"]
    for move in _main(moves):
        part = move["name"].removeprefix(f"{place}.").split(".")[0]
        if move["start"] == "source":
            words += _sizes(place, part, move)
        elif move["start"] == "identity":
            words.append(f"{part} new, hands on")
        elif not exact:
            words.append(f"{part} fresh")
        elif own and part in ("gate", "shortcut"):
            words.append(f"{part} new, {'at one half' if part == 'gate' else 'silent'}")
    if not exact and any(".norm." in m["name"] and m["start"] == "fresh" for m in moves):
        words.append("norms fresh")
    return ", ".join(dict.fromkeys(words)) or "nothing"


def _sizes(place: str, part: str, move: Json) -> list[str]:
    old, new = move["source_shape"], move["shape"]
    words = []
    if old[0] != new[0] and "gate.spatial" not in move["name"]:
        name = _NAMES.get(part, "classes" if "classifier" in move["name"] else "out")
        words.append(f"{name} {old[0]}->{new[0]}")
    if old[2:] != new[2:]:
        words.append(f"kernel {old[2]}->{new[2]}")
    if len(old) > 1 and old[1] != new[1] and part not in ("gate", "depthwise", "project"):
        words.append(f"in {old[1]}->{new[1]}")
    return words
