"""Predictions as lines for people (table) or programs (jsonl, csv), each as soon as it is there."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, TextIO

from mbconv.errors import UserError
from mbconv.report.words import count, duration, percent

Format = Literal["table", "jsonl", "csv"]

_SOURCE_WIDTH = 60  # longer paths push their own line to the right, not everybody's


class PredictionLike(Protocol):
    """What a prediction must have to be printed; `error` is None where it succeeded."""

    @property
    def source(self) -> str: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def scores(self) -> Sequence[float]: ...
    @property
    def error(self) -> str | None: ...


def write_predictions(
    predictions: Iterable[PredictionLike],
    file: TextIO,
    *,
    format: Format = "table",
    top_k: int = 5,
    width: int = 0,
) -> int:
    """Write one line a prediction to `file` as it comes; return how many of them are errors.

    `jsonl`: {source, predictions: [{label, score}], error}. `csv`: source, error, then label_1,
    score_1 to `top_k`. `table` is for people; `width`, the length of the longest source where it
    is known, lines its columns up. Characters that `file` cannot encode are escaped. Raises
    UserError for another format.
    """
    errors = 0

    def counted() -> Iterator[PredictionLike]:
        nonlocal errors
        for prediction in predictions:
            errors += prediction.error is not None
            yield prediction

    lines: Iterator[str]
    if format == "jsonl":
        lines = map(_json_line, counted())
    elif format == "csv":
        lines = _csv_lines(counted(), top_k)
    elif format == "table":
        lines = _table_lines(counted(), width)
    else:
        raise UserError(f"The format {format!r} is unknown; choose table, jsonl or csv.")
    encoding = getattr(file, "encoding", None) or "utf-8"
    for line in lines:
        file.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        file.flush()  # a reader at the other end of a pipe sees each line at once
    return errors


def timing_lines(
    timing: Mapping[str, float], opening: float, seconds: float, threads: int
) -> list[str]:
    """Where the `seconds` of predicting went; `timing` as `Predictor.timing` has it."""
    n = timing["pictures"]
    if not n or not seconds:
        return [f"opening the network took {duration(opening)}; no picture was read"]
    share = timing["waited"] / seconds
    return [
        f"{count(n, 'picture')} in {seconds:.2f} s, {n / seconds:,.0f} a second, after "
        f"{opening:.2f} s for opening the network",
        f"computing {1e3 * timing['computing'] / n:.1f} ms a picture; reading "
        f"{1e3 * timing['reading'] / n:.1f} ms, in {threads} threads; the network waited "
        f"for pictures {percent(share)} of the time",
    ]


def _json_line(prediction: PredictionLike) -> str:
    pairs = zip(prediction.labels, prediction.scores, strict=True)
    answers = [{"label": label, "score": round(score, 6)} for label, score in pairs]
    data = {"source": prediction.source, "predictions": answers, "error": prediction.error}
    return json.dumps(data)  # ASCII: valid whatever the file can encode


def _csv_lines(predictions: Iterable[PredictionLike], top_k: int) -> Iterator[str]:
    numbers = range(1, top_k + 1)
    yield _csv_line(["source", "error", *(f"{c}_{i}" for i in numbers for c in ("label", "score"))])
    for prediction in predictions:
        pairs = zip(prediction.labels, prediction.scores, strict=True)
        cells = [cell for label, score in pairs for cell in (label, f"{score:.6f}")]
        cells += [""] * (2 * top_k - len(cells))
        yield _csv_line([prediction.source, prediction.error or "", *cells])


def _csv_line(cells: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)  # without "\n" it is not quoted either
    return buffer.getvalue().removesuffix("\n")


def _table_lines(predictions: Iterable[PredictionLike], width: int) -> Iterator[str]:
    width = min(width, _SOURCE_WIDTH)
    for prediction in predictions:
        source = _one_line(prediction.source)
        width = max(width, min(len(source), _SOURCE_WIDTH))
        if prediction.error is not None:
            yield f"{source:<{width}}  not read: {_one_line(prediction.error)}"
            continue
        pairs = zip(prediction.labels, prediction.scores, strict=True)
        answers = [f"{score:6.1%} {_one_line(label)}" for label, score in pairs]
        yield f"{source:<{width}}  {'  '.join(answers)}"


def _one_line(text: str) -> str:
    """Control characters (a line break in a file's name) escaped: a line stays a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
