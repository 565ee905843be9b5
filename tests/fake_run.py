"""A run folder as training writes it, of simulated figures, for tests of what reads one."""

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mbconv.arch.zoo import get_spec
from mbconv.interval import answers
from mbconv.record import Record, environment

CLOTHES = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt",
           "t-shirt")  # fmt: skip


def data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnails(pictures: Sequence[np.ndarray]) -> list[tuple[str, str]]:
    """Each picture at 160 px, and the same under a made-up heat map."""
    y, x = np.mgrid[-1:1:160j, -1:1:160j]
    heat = np.exp(-3 * ((x - 0.2) ** 2 + (y + 0.1) ** 2))[..., None]
    pairs = []
    for pixels in pictures:
        thumbnail = Image.fromarray(pixels).convert("RGB").resize((160, 160))
        cam = np.asarray(thumbnail) * (1 - 0.6 * heat) + np.array([246, 120, 39]) * 0.6 * heat
        pairs.append((data_uri(thumbnail), data_uri(Image.fromarray(cam.astype(np.uint8)))))
    return pairs


def wilson(hits: int, n: int) -> dict[str, Any]:
    z, p = 1.959964, hits / n
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"value": p, "low": (centre - half) / scale, "high": (centre + half) / scale}


def evaluation(
    classes: Sequence[str], n: int, accuracy: float, *, seed: int, split: str, pictures: Any
) -> Record:
    """A record such as `evaluate` returns, of simulated answers."""
    rng = np.random.default_rng(seed)
    k = len(classes)
    true = np.sort(rng.choice(k, n, p=(w := np.linspace(1, 3, k)) / w.sum()))
    wrong = (true + 1 + np.minimum(rng.geometric(0.5, n) - 1, k - 2)) % k
    ability = np.clip(accuracy + 0.12 * rng.standard_normal(k), 0, 1) if 0 < accuracy < 1 else None
    right = rng.random(n) < (accuracy if ability is None else ability[true])
    said = np.where(right, true, wrong)
    confidence = np.clip(np.where(right, rng.beta(8, 1, n), rng.beta(3, 2, n)), 1 / k, 0.9999)
    confusion = np.zeros((k, k), int)
    np.add.at(confusion, (true, said), 1)
    shown = sorted({*true.tolist(), *said.tolist()})
    per_class = []
    for i in np.flatnonzero(confusion.sum(1)).tolist():
        hits, own, said_so = confusion[i, i], confusion[i].sum(), confusion[:, i].sum()
        per_class.append({"label": classes[i], "n": int(own), "recall": hits / own,
                          "precision": hits / max(said_so, 1)})  # fmt: skip
    bins = []
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        m = int(inside.sum())
        bins.append({"low": low, "high": low + 1 / 15, "n": m,
                     "confidence": float(confidence[inside].mean()) if m else None,
                     "accuracy": float(right[inside].mean()) if m else None})  # fmt: skip
    ece = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["n"]) / n
    errors = sorted(np.flatnonzero(~right), key=lambda i: -confidence[i])[:200]
    mistakes: list[dict[str, Any]] = [
        {"path": f"{split}/{classes[true[i]]}/IMG_{i:04d}.jpg", "true": classes[true[i]],
         "predicted": classes[said[i]], "score": float(confidence[i])}
        for i in errors
    ]  # fmt: skip
    for mistake, (thumbnail, cam) in zip(mistakes, pictures, strict=False):
        mistake |= {"thumbnail": thumbnail, "cam": cam}
    top, most = Counter(true.tolist()).most_common(1)[0]
    recalls = [row["recall"] for row in per_class]
    mean = float(np.mean(recalls))
    detail = {
        "labels": [classes[i] for i in shown],
        "top5": wilson(int(n - (~right).sum() // 4), n) if k > 5 else None,
        "balanced_accuracy": {"value": mean, "low": mean * 0.96, "high": min(1, mean * 1.03)},
        "ece": ece,
        "per_class": per_class,
        "confusion": confusion[np.ix_(shown, shown)].tolist(),
        "calibration": bins,
        "majority": {"label": classes[top], "value": most / n},
        "unreadable": [{"path": "test/hat/broken.jpg", "reason": "the file ends too early"}],
        "mistakes": mistakes,
        "answers": answers((f"{classes[true[i]]}: {i}.jpg", bool(right[i])) for i in range(n)),
        "split": split,
    }
    score = wilson(int(right.sum()), n)
    return Record(name="top1", n=n, detail=detail, spec_hash="0123456789abcdef", **score)


def metrics(epochs: int, *, broken_loss: bool = False) -> list[dict[str, Any]]:
    rows = []
    for i in range(epochs):
        head, progress = i == 0 and epochs > 1, i / max(epochs - 1, 1)
        raw = 0.70 + 0.2 * (1 - math.exp(-4 * progress)) + 0.006 * math.sin(5 * i)
        rows.append({
            "epoch": i, "phase": "head" if head else "full",
            "resolution": 128 if progress < 0.6 else 160, "seconds": 21.5 + 38.25 * i,
            "train_loss": float("nan") if broken_loss and i else 1.9 * math.exp(-1.5 * progress),
            "lr": 1e-3 * (1 - progress), "val_raw": raw,
            "val_ema": None if head else raw + 0.012, "img_per_s": 83.2, "data_wait": 0.021,
        })  # fmt: skip
        if head:  # which is fitted, not stepped
            for key in ("train_loss", "lr", "data_wait"):
                del rows[-1][key]
    return rows


def audit(classes: Sequence[str], splits: dict[str, list[str]], problems: bool) -> dict[str, Any]:
    weight = {name: 1 + (i % 4) for i, name in enumerate(classes)}
    a, b = splits["train"][0], splits[list(splits)[-1]][0]
    c, d = f"train/{classes[0]}/c.jpg", f"train/{classes[-1]}/c-again.jpg"
    return {
        "files": 3781, "checked": 3781, "sampled": False,
        "unreadable": [{"path": f"train/{classes[-1]}/half.jpg",
                        "reason": "the file ends too early"}] if problems else [],
        "exact": [[a, b]] if problems else [], "near": [[c, d]] if problems else [],
        "across_splits": [[a, b]] if problems else [],
        "label_conflicts": [[c, d]] if problems else [],
        "class_counts": {s: {name: weight[name] * len(paths) // 20 for name in classes}
                         for s, paths in splits.items()},
        "imbalance": 4.0,
        "sizes": {"width": {"min": 250, "median": 400, "max": 533},
                  "height": {"min": 400, "median": 533, "max": 600}},
        "modes": {"RGB": 3779, "L": 2}, "exif_rotated": 3, "animated": 0, "seconds": 4.2,
    }  # fmt: skip


def fake_run(
    folder: Path,
    *,
    classes: Sequence[str] = CLOTHES,
    n: int = 372,
    accuracy: float = 0.9,
    epochs: int = 8,
    seed: int = 0,
    split: str = "test",
    problems: bool = True,
    pictures: Sequence[tuple[str, str]] = (),
    root: str = "photos/clothing",
    interrupted: bool = False,
    pretrained: bool = True,
    broken_loss: bool = False,
) -> Path:
    """A run folder with the files that training writes, of simulated figures."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = get_spec("efficientnet_lite0").replace(num_classes=len(classes))
    config = {
        "command": f"mbconv train {root} --out {folder}", "model": "efficientnet_lite0",
        "spec": spec.to_dict(), "spec_name": "efficientnet_lite0", "data": root,
        "recipe": {"optimizer": "adamw", "lr": 1e-3, "ema": 0.99, "label_smoothing": 0.1},
        "base": {} if pretrained else None,
        "seed": 0, "epochs": epochs, "resolution": 160, "batch_size": 32, "budget_seconds": 300,
        "machine": {"device": "cpu", "dtype": "bfloat16", "memory_format": "channels_last",
                    "threads": 2,
                    "trials": [{"dtype": "float32", "memory_format": "channels_last",
                                "img_per_s": 51.0},
                               {"dtype": "bfloat16", "memory_format": "channels_last",
                                "img_per_s": 83.25}]},
        "environment": environment(), "version": "0.1.0",
    }  # fmt: skip
    counts = {"train": 3068, "val": 341, "test": n} if split == "test" else {"train": 80, "val": n}
    splits = {s: [f"{s}/{classes[i % len(classes)]}/{i}.jpg" for i in range(m)]
              for s, m in counts.items()}  # fmt: skip
    data = {"root": root, "classes": list(classes), "splits": splits,
            "audit": audit(classes, splits, problems)}  # fmt: skip
    lines = [json.dumps(row) + "\n" for row in metrics(epochs, broken_loss=broken_loss)]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    if not interrupted:
        record = evaluation(classes, n, accuracy, seed=seed, split=split, pictures=pictures)
        (folder / "evaluation.jsonl").write_text(json.dumps(record.to_dict()) + "\n")
        (folder / "model.safetensors").write_bytes(bytes(13_614_784))
    return folder
