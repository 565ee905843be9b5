"""Metrics against published, hand-computed and scikit-learn values; the evaluation loop."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.data.source import Sample, scan
from mbconv.errors import UserError
from mbconv.interval import wilson
from mbconv.measure.accuracy import collect, evaluate, summarize
from mbconv.measure.metrics import (
    balanced_accuracy,
    calibration,
    confusion_matrix,
    expected_calibration_error,
    hits,
    per_class,
    softmax,
)
from mbconv.nn.model import MBConvNet
from mbconv.preprocessing import Preprocessing
from mbconv.record import Record, read_records, write_records
from mbconv.report.evaluation import print_evaluation
from mbconv.runtime.predictor import Predictor


class ColourNet(MBConvNet):
    """Its logits are the mean red, green and blue: what it answers is known beforehand."""

    def __init__(self, labels: tuple[str, ...] | None = ("red", "green", "blue")) -> None:
        stages = (Stage(blocks=(Block(channels=8),)),)
        super().__init__(Spec(stages=stages, stem_channels=8, head_channels=8, num_classes=3))
        self.labels = labels
        self.preprocessing = Preprocessing(
            resolution=8, resize=8, mean=(0.0, 0.0, 0.0), std=(0.1, 0.1, 0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


RED, GREEN, BLUE, PALE_RED = (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 0)


def write_pictures(folder: Path, colours: list[tuple[int, int, int]]) -> None:
    folder.mkdir(parents=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", (12, 10), colour).save(folder / f"{number}.png")


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Three classes: 4 red, 2 green of which one looks red, 1 blue that looks pale red."""
    write_pictures(tmp_path / "red", [RED] * 4)
    write_pictures(tmp_path / "green", [GREEN, RED])
    write_pictures(tmp_path / "blue", [PALE_RED])
    return tmp_path


def random_answers(n: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), targets] += 1
    return logits, targets


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17, 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(
    successes: int, n: int, low: float, high: float
) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_hits_agree_with_scikit_learn() -> None:
    logits, targets = random_answers(300, 12)
    for k in (1, 2, 5, 11):
        expected = sklearn.metrics.top_k_accuracy_score(targets, logits, k=k, labels=range(12))
        assert hits(logits, targets, k).mean() == pytest.approx(expected)


def test_equal_logits_are_no_hits_for_every_class() -> None:
    targets = np.arange(4)
    assert hits(np.zeros((4, 4)), targets).tolist() == [True, False, False, False]
    assert hits(np.zeros((4, 4)), targets, 3).tolist() == [True, True, True, False]


@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), classes=st.integers(2, 8))
@settings(max_examples=40)
def test_class_scores_agree_with_scikit_learn(seed: int, n: int, classes: int) -> None:
    logits, targets = random_answers(n, classes, seed)
    predicted = logits.argmax(1)
    confusion = confusion_matrix(targets, predicted, classes)
    names = list(range(classes))
    assert np.array_equal(
        confusion, sklearn.metrics.confusion_matrix(targets, predicted, labels=names)
    )
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        targets, predicted, labels=names, zero_division=0.0
    )
    scores = per_class(confusion)
    np.testing.assert_allclose(scores["precision"], precision)
    np.testing.assert_allclose(scores["recall"], recall)
    np.testing.assert_allclose(scores["f1"], f1)
    balanced = balanced_accuracy(confusion)
    assert balanced["value"] == pytest.approx(np.mean([recall[i] for i in sorted(set(targets))]))
    assert 0 <= balanced["low"] <= balanced["value"] <= balanced["high"] <= 1


def test_balanced_accuracy_of_one_class_has_wilsons_interval() -> None:
    score = balanced_accuracy(np.array([[81, 182], [0, 0]]))
    assert (score["low"], score["high"]) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_balanced_accuracys_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    n, recall = np.array([12, 25, 50, 100]), np.array([0.95, 0.7, 0.9, 0.5])
    inside = 0
    for right in rng.binomial(n, recall, size=(2000, 4)):
        confusion = np.diag(right)
        confusion[:, 0] += n - right
        confusion[0] = [right[0], n[0] - right[0], 0, 0]
        score = balanced_accuracy(confusion)
        inside += score["low"] <= recall.mean() <= score["high"]
    assert 0.93 <= inside / 2000 <= 0.985


def test_calibration_error_by_hand() -> None:
    # Two bins, (0, .5] and (.5, 1]: accuracy 1 at confidence .45; accuracy 1/2 at confidence .8.
    confidence, right = np.array([0.4, 0.5, 0.7, 0.9]), np.array([True, True, True, False])
    rows = calibration(confidence, right, bins=2)
    assert [row["n"] for row in rows] == [2, 2]
    assert rows[0]["confidence"] == pytest.approx(0.45)
    assert rows[1]["accuracy"] == pytest.approx(0.5)
    assert expected_calibration_error(rows) == pytest.approx((2 * 0.55 + 2 * 0.3) / 4)


def test_calibration_has_fifteen_bins_and_the_ends_belong_to_them() -> None:
    rows = calibration(np.array([0.0, 1.0, 1.0]), np.array([False, True, False]))
    assert [row["n"] for row in rows] == [1, *[0] * 13, 2]
    assert rows[5]["accuracy"] is None
    assert (rows[0]["low"], rows[14]["high"]) == (0.0, 1.0)
    assert expected_calibration_error(rows) == pytest.approx(2 / 3 * 0.5)


def test_softmax_survives_large_logits() -> None:
    expected = torch.tensor([[1000.0, 999.0, 0.0]], dtype=torch.float64).softmax(1)
    np.testing.assert_allclose(softmax(np.array([[1000.0, 999.0, 0.0]])), expected)


def test_summary_shows_the_classes_that_matter() -> None:
    logits = np.full((3, 100), -9.0)
    logits[0, 7], logits[1, 7], logits[2, 50] = 1, 1, 1
    summary = summarize(logits, np.array([7, 9, 7]), [str(i) for i in range(100)], classes=[11])
    assert summary["labels"] == ["7", "9", "11", "50"]
    assert summary["confusion"] == [[1, 0, 0, 1], [1, 0, 0, 0], [0] * 4, [0] * 4]
    assert [(row["label"], row["n"]) for row in summary["per_class"]] == [("7", 2), ("9", 1)]
    assert summary["top1"]["value"] == pytest.approx(1 / 3)
    assert summary["majority"] == {"label": "7", "value": pytest.approx(2 / 3)}


def test_summary_refuses_answers_that_are_not_finite() -> None:
    with pytest.raises(UserError, match="2 of 3 pictures"):
        summarize(np.array([[0, np.nan], [1, 2], [np.inf, 0]]), np.array([0, 0, 0]), "ab")


def test_top5_needs_more_than_five_classes() -> None:
    logits, targets = random_answers(20, 6)
    five = summarize(logits[:, :5], targets % 5, "abcde")
    assert five["top5"] is None
    expected = sklearn.metrics.top_k_accuracy_score(targets, logits, k=5, labels=range(6))
    assert summarize(logits, targets, "abcdef")["top5"]["value"] == pytest.approx(expected)


def test_evaluate_counts_what_the_network_answers(colours: Path) -> None:
    record = evaluate(ColourNet(), colours)
    detail = record.detail
    assert (record.name, record.n) == ("top1", 7)
    assert record.value == pytest.approx(5 / 7)
    assert (record.low, record.high) == pytest.approx(wilson(5, 7))
    assert detail["labels"] == ["red", "green", "blue"]  # the network's order, not the folder's
    assert detail["confusion"] == [[4, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert detail["balanced_accuracy"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert detail["split"] == "all"
    first, second = detail["mistakes"]  # the pure red one is the more confident
    assert (first["path"], first["true"], first["predicted"]) == ("green/1.png", "green", "red")
    assert second["path"] == "blue/0.png"
    assert second["score"] == pytest.approx(1 / (1 + np.exp(-1000 / 255) + np.exp(-2000 / 255)))
    assert record.spec_hash == ColourNet().spec.hash


def test_evaluation_survives_a_record_file(colours: Path, tmp_path: Path) -> None:
    record = evaluate(ColourNet(), colours)
    write_records(tmp_path / "e.jsonl", [record])
    json.dumps(record.to_dict(), allow_nan=False)
    assert read_records(tmp_path / "e.jsonl") == [record]


def test_a_subset_of_the_classes_is_matched_by_name(colours: Path) -> None:
    for picture in (colours / "red").iterdir():
        picture.unlink()
    (colours / "red").rmdir()
    record = evaluate(ColourNet(), colours)
    assert record.n == 3
    assert record.value == pytest.approx(1 / 3)
    assert record.detail["confusion"] == [[0, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert [row["label"] for row in record.detail["per_class"]] == ["green", "blue"]


def test_unreadable_pictures_are_listed_and_not_counted(colours: Path) -> None:
    (colours / "red" / "0.png").write_bytes(b"not a picture")
    record = evaluate(ColourNet(), colours)
    assert record.n == 6
    assert [item["path"] for item in record.detail["unreadable"]] == ["red/0.png"]
    assert record.detail["unreadable"][0]["reason"]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "a.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"None of the 1 pictures.*a\.png"):
        evaluate(ColourNet(), tmp_path)


def test_classes_that_the_network_does_not_know(colours: Path) -> None:
    (colours / "green").rename(colours / "greeen")
    with pytest.raises(UserError, match=r"does not know 1 of the data's 3.*Did you mean green"):
        evaluate(ColourNet(), colours)
    with pytest.raises(UserError, match=r"knows 3 classes \(cat, dog, eel\) and none"):
        evaluate(ColourNet(labels=("cat", "dog", "eel")), colours)
    named = evaluate(ColourNet(), colours, classes=["blue", "green", "red"])
    assert named.value == pytest.approx(5 / 7)
    with pytest.raises(UserError, match="3 classes and 2 names"):
        evaluate(ColourNet(), colours, classes=["blue", "green"])


def test_a_name_that_two_classes_share_is_refused(colours: Path) -> None:
    with pytest.raises(UserError, match="more than one class named 'red'"):
        evaluate(ColourNet(labels=("red", "red", "blue")), colours, classes=["blue", "red", "red"])


def test_a_network_without_labels_follows_the_order_of_the_folders(colours: Path) -> None:
    record = evaluate(ColourNet(labels=None), colours)  # 0 is blue, 1 green, 2 red
    assert record.value == pytest.approx(2 / 7)  # the pale red one is called 0, a green one 1
    assert record.detail["labels"] == ["0", "1", "2"]


def test_evaluate_takes_the_test_split_first(tmp_path: Path) -> None:
    for name, right in (("train", RED), ("val", GREEN), ("test", BLUE)):
        write_pictures(tmp_path / name / "red", [RED] * 2)
        write_pictures(tmp_path / name / "blue", [right] * 2)
    assert evaluate(ColourNet(), tmp_path).value == 1.0
    assert evaluate(ColourNet(), tmp_path).detail["split"] == "test"
    assert evaluate(ColourNet(), tmp_path, split="train").value == 0.5
    for picture in (tmp_path / "test").rglob("*.png"):
        picture.unlink()
    assert evaluate(ColourNet(), tmp_path).detail["split"] == "val"
    with pytest.raises(UserError, match="split 'test'; it has: train, val"):
        evaluate(ColourNet(), tmp_path, split="test")


def test_samples_and_datasets_give_what_the_folder_gives(colours: Path) -> None:
    dataset = scan(colours, training=False)
    expected = evaluate(ColourNet(), colours).detail["confusion"]
    assert evaluate(ColourNet(), dataset).detail["confusion"] == expected
    samples = dataset.splits["all"]
    by_name = evaluate(Predictor(ColourNet(), batch_size=2), samples, classes=dataset.classes)
    assert by_name.detail["confusion"] == expected
    with pytest.raises(UserError, match="between 0 and 2"):
        evaluate(ColourNet(), [Sample(samples[0].path, 3)])


def test_progress_counts_every_picture(colours: Path) -> None:
    seen: list[tuple[int, int]] = []
    samples = scan(colours, training=False).splits["all"]
    collected = collect(Predictor(ColourNet()), samples, progress=lambda *step: seen.append(step))
    assert seen == [(i, 7) for i in range(1, 8)]
    assert collected.logits.shape == (7, 3)
    assert collected.targets.tolist() == [s.label for s in samples]


def text_of(record: Record) -> str:
    file = io.StringIO()
    print_evaluation(record, file)
    return file.getvalue()


def test_an_evaluation_as_text(colours: Path) -> None:
    (colours / "green").rename(colours / "[bold]green")
    (colours / "red" / "0.png").write_bytes(b"not a picture")
    record = evaluate(ColourNet(labels=("red", "[bold]green", "blue")), colours)
    text = text_of(record)
    assert "4 of 6 pictures" in text
    assert "66.7%" in text
    assert "95% interval 30.0% to 90.3%" in text
    assert "[bold]green taken for red: 1 time" in text
    assert "[bold]green/1.png: red" in text
    assert f"red/0.png: {record.detail['unreadable'][0]['reason']}" in text
    assert "always answering red" in text


def test_an_evaluation_of_many_classes_as_text() -> None:
    logits, targets = random_answers(400, 30)
    detail = summarize(logits, targets, [f"class {i}" for i in range(30)])
    top1 = detail.pop("top1")
    text = text_of(Record(name="top1", **top1, n=detail.pop("n"), detail=detail))
    assert "top-5" in text
    assert "Confusion matrix" not in text
    assert "Most frequent confusions" in text
