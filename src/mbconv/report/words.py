"""Numbers as people read them: shares, counts, durations, and the headline in one sentence."""

from collections.abc import Sequence


def percent(share: float | None, digits: int = 1) -> str:
    """0.9167 -> 91.7%. Never rounds up to 100% or down to 0%; an absent figure is a dash."""
    if share is None:
        return "–"  # noqa: RUF001
    text = f"{share:.{digits}%}"
    least = 0.1**digits
    if share < 1 - 1e-9 and text == f"{1:.{digits}%}":
        return f">{100 - least:.{digits}f}%"
    if share > 0 and text == f"{0:.{digits}%}":
        return f"<{least:.{digits}f}%"
    return text


def count(number: float, one: str = "", many: str = "") -> str:
    """3068, "picture" -> 3,068 pictures."""
    text = f"{number:,.0f}"
    if not one:
        return text
    return f"{text} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """292 -> 4 min 52 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    parts = [f"{minutes} min"] * bool(minutes) + [f"{rest} s"] * bool(rest)
    return " ".join(parts)


def size(number: float) -> str:
    """Bytes in decimal megabytes: 13614784 -> 13.6 MB."""
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


def short(text: str, most: int = 40) -> str:
    """`text` cut to `most` characters in its middle, where names differ least."""
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return text[:head] + "…" + text[len(text) - (most - 1 - head) :]


def listing(names: Sequence[str], most: int = 4) -> str:
    """a, b, c and 7 more."""
    shown = [short(name, 30) for name in names[:most]]
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most:,} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def out_of(share: float) -> tuple[int, int]:
    """A share as (k, base), "k of base": base is 100, more where 0 or all of 100 would mislead."""
    base = 100
    while 0 < share < 1 and round(share * base) in (0, base) and base < 10_000:
        base *= 10
    return round(share * base), base


def headline(value: float, low: float | None, high: float | None, n: int | None) -> str:
    """The score in words for somebody who has never met a confidence interval."""
    hits, base = out_of(value)
    new = f"Of {base:,} new pictures like these"
    interval = ""
    if low is not None and high is not None:
        interval = f"between {round(low * base):,} and {round(high * base):,} at 95% confidence"
    if n and value in (0, 1):
        start = f"{'All' if value else 'None of the'} {count(n, 'scored picture')}"
        start += f" {'was' if n == 1 else 'were'} named correctly."
        return f"{start} {new} it would be {interval}." if interval else start
    return f"{new} about {hits:,} are named correctly{'; ' + interval if interval else ''}."
