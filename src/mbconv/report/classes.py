"""How each class fared: the confusion matrix, bars, confused pairs, the most confident mistakes."""

import math
import re
from collections.abc import Sequence
from typing import Any

from mbconv.report.folder import Json, number
from mbconv.report.words import percent

MATRIX_MOST = 30  # classes; more cells than 30 x 30 nobody reads
STRONG = 0.7  # heat from which a cell's text is in the page's colour; the style sheet's fits
PAIRS_BESIDE_MATRIX = 5
PAIRS_ALONE = 20
BARS_OPEN = 25
FEW = 10  # pictures of a class, below which its bars are mostly chance
PICTURED_MOST = 24
LISTED_MOST = 100
_PICTURE = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")


def matrix(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[Json]:
    """Rows of the heat table: label, n and cells with count, share of the row and heat 0..1."""
    rows = []
    for true, counts in enumerate(confusion):
        total = sum(counts)
        cells = [_cell(labels, true, said, n, total) for said, n in enumerate(counts)]
        rows.append({"label": labels[true], "n": total, "cells": cells})
    return rows


def _cell(labels: Sequence[str], true: int, said: int, n: int, total: int) -> Json:
    share = n / total if total else 0.0
    # Mistakes are a few percent of a row; the root lifts them out of the background. Their heat
    # ends where dark text on it stays readable, as that of hits does below STRONG.
    heat = share if true == said else 0.6 * math.sqrt(share)
    return {
        "count": n,
        "hit": true == said,
        "heat": round(heat, 2),
        "strong": heat >= STRONG,
        "title": f"true {labels[true]}, named {labels[said]}: {n} of {total}",
    }


def pairs(labels: Sequence[str], confusion: Sequence[Sequence[int]], most: int) -> list[Json]:
    """The most frequent mistakes, as (true, said, count, n of the true class)."""
    found: list[Json] = [
        {"true": labels[true], "said": labels[said], "count": n, "n": sum(counts)}
        for true, counts in enumerate(confusion)
        for said, n in enumerate(counts)
        if n and true != said
    ]
    return sorted(found, key=lambda pair: (-pair["count"], pair["n"]))[:most]


def bars(
    labels: Sequence[str], confusion: Sequence[Sequence[int]], per_class: Sequence[Json]
) -> list[Json]:
    """Classes by recall, worst first; those without a scored picture at the end.

    A class that was never named has no precision, and one without pictures no recall: None.
    """
    named = dict(zip(labels, map(sum, zip(*confusion, strict=True)), strict=True))
    rows: list[Json] = []
    for row in per_class:
        label, n = str(row["label"]), int(row["n"])
        rows.append({
            "label": label,
            "n": n,
            "few": n < FEW,
            "recall": number(row.get("recall")) if n else None,
            "precision": number(row.get("precision")) if named.get(label, 1) else None,
            "low": number(row.get("low")) if n else None,
            "high": number(row.get("high")) if n else None,
        })  # fmt: skip
    return sorted(rows, key=_worst_first)


def _worst_first(row: Json) -> tuple[bool, float, int]:
    return row["recall"] is None, row["recall"] or 0.0, -row["n"]


def mistakes(found: Sequence[Json]) -> dict[str, Any]:
    """The most confident mistakes: `pictured` with thumbnails and `listed` without.

    Only embedded pictures are taken, so that the page never loads anything.
    """
    rows = [
        {
            "path": str(row.get("path", "")),
            "true": str(row.get("true", "")),
            "predicted": str(row.get("predicted", "")),
            "sure": percent(number(row.get("score")), 0),
            "thumbnail": _embedded(row.get("thumbnail")),
            "cam": _embedded(row.get("cam")),
        }
        for row in found
    ]
    pictured = [row for row in rows if row["thumbnail"]][:PICTURED_MOST]
    listed = [row for row in rows if row not in pictured][:LISTED_MOST]
    return {"pictured": pictured, "listed": listed}


def _embedded(value: Any) -> str | None:
    return value if isinstance(value, str) and _PICTURE.fullmatch(value) else None
