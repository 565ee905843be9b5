"""Intervals of shares and of differences between two, and what two scores have in common."""

import base64
import hashlib
import math
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

Z95 = 1.959963984540054  # the normal distribution's 97.5% point


class Discordant(NamedTuple):
    """Two networks on the same `n` pictures: how many only the one, only the other named right."""

    n: int
    only_first: int
    only_second: int


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share: `successes` of `n`, `n` above 0."""
    share = successes / n
    scale = 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def unpaired_difference(
    first: tuple[int, int], second: tuple[int, int], z: float = Z95
) -> tuple[float, float, float]:
    """Second share minus first, each (successes, n), on different pictures: value, low, high.

    Newcombe's interval from the two Wilson intervals (1998, Statistics in Medicine 17, method 10).
    """
    (a, n), (b, m) = first, second
    p, q = a / n, b / m
    (p_low, p_high), (q_low, q_high) = wilson(a, n, z), wilson(b, m, z)
    low = q - p - math.hypot(q - q_low, p_high - p)
    high = q - p + math.hypot(q_high - q, p - p_low)
    return q - p, low, high


def paired_difference(counts: Discordant, z: float = Z95) -> tuple[float, float, float]:
    """Second share minus first on the same pictures: value, low, high.

    Only pictures that one of the two got right alone count, as in McNemar's test.
    """
    centre, half = agresti_min(counts, z)
    more = counts.only_second - counts.only_first
    return more / counts.n, max(-1.0, centre - half), min(1.0, centre + half)


def agresti_min(counts: Discordant, z: float = Z95) -> tuple[float, float]:
    """Centre and half width of the interval of second share minus first, on the same pictures.

    Agresti and Min (2005, Statistics in Medicine 24) add half a picture to each of the four cells,
    without which small tables promise too much.
    """
    n, first, second = counts
    more = second - first
    half = z * math.sqrt(max(0.0, first + second + 1 - more**2 / (n + 2))) / (n + 2)
    return more / (n + 2), half


@cache
def t_quantile(p: float, df: int) -> float:
    """The `p` quantile of Student's distribution, 0.5 <= p < 1, with `df` degrees of freedom >= 1.

    By bisection of its distribution function, which for whole `df` is a finite sum (Abramowitz and
    Stegun 1964, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(df)
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, df) < 2 * p - 1 else (low, angle)
    return math.sqrt(df) * math.tan(low)


def _within(angle: float, df: int) -> float:
    """The probability of |t| below sqrt(df) tan(angle)."""
    cosine = math.cos(angle)
    first = df % 2 + 2  # 3, 5, 7 ... for odd df, 2, 4, 6 ... for even ones
    term = total = cosine if df % 2 else 1.0
    for k in range(first, df, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if df % 2 == 0:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if df > 1 else 0.0))


def answers(named: Iterable[tuple[str, bool]]) -> dict[str, str]:
    """Which pictures were named right, small enough to keep beside a score.

    `named` has each picture's name (with its class) once, and whether the answer was right.
    `pictures` is a hash of all the names, `right` a bit a picture in the order of the sorted names:
    6 kB for 50,000 of them.
    """
    ordered = sorted(named)
    digest = hashlib.sha256("\n".join(name for name, _ in ordered).encode("utf-8", "replace"))
    bits = "".join("01"[right] for _, right in ordered)
    packed = int("1" + bits, 2)  # the leading one keeps their number
    content = packed.to_bytes(packed.bit_length() // 8 + 1, "big")
    return {"pictures": digest.hexdigest(), "right": base64.b64encode(content).decode("ascii")}


def right_bits(given: Any) -> int | None:
    """The bits of `answers` behind a leading one; None for a record of an earlier version."""
    try:
        return int.from_bytes(base64.b64decode(given["right"]), "big")
    except (TypeError, KeyError, ValueError):
        return None


def discordant(first: Any, second: Any) -> Discordant | None:
    """What two `answers` have in common; None unless both are of the same pictures."""
    one, other = right_bits(first), right_bits(second)
    if one is None or other is None or first.get("pictures") != second.get("pictures"):
        return None
    n = one.bit_length() - 1
    if n < 1 or n != other.bit_length() - 1:
        return None
    return Discordant(n, (one & ~other).bit_count(), (other & ~one).bit_count())
