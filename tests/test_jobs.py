"""Whole runs by several processes: one machine, two machines, deaths, fewer and more of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import mbconv
from launch import TESTS, ended, torchrun
from mbconv.cli import main
from mbconv.weights.file import tensor_hash
from small import write_classes, write_model
from worker import EPOCHS, ONE_THREAD, OPTIONS

WORKER = TESTS / "worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and 48 pictures to train on."""
    folder = tmp_path_factory.mktemp("jobs")
    write_classes(folder / "data", each=20)
    write_model(folder / "small.safetensors")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    """The run of two processes on two machines, which are one with two names for itself."""
    run = folder / "undisturbed"
    meeting = ["--nnodes", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29417"]
    arguments = [*meeting, "--rdzv-id", "job", WORKER, folder, run, "none"]
    agents = [torchrun(*arguments, processes=1) for _ in range(2)]
    found = [ended(agent) for agent in agents]
    assert [code for code, _, _ in found] == [0, 0], found
    texts = [output for _, output, _ in found]
    assert sum("predict: mbconv predict" in text for text in texts) == 1, "one of them speaks"
    spoken = "".join(texts)
    assert "2 processes, 1 thread each" in spoken
    assert "3 or 4 of a batch's 7 pictures" in spoken
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return mbconv.load(run).state_dict()


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def epochs(run: Path) -> list[int]:
    return [line["epoch"] for line in metrics(run)]


def test_two_machines_end_where_one_process_does(
    folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbconv.training.setup.choose_machine", lambda *_: ONE_THREAD)
    alone = folder / "alone"
    model, data = folder / "small.safetensors", folder / "data"
    main(["train", str(data), "--model", str(model), "--out", str(alone), *OPTIONS],
         standalone_mode=False)  # fmt: skip
    assert epochs(undisturbed) == epochs(alone) == list(range(EPOCHS + 1))
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(undisturbed)[name], value, rtol=1e-3, atol=1e-4)
    for one, two in zip(*map(metrics, (alone, undisturbed)), strict=True):
        assert one["val_ema"] == two["val_ema"]
        if one["epoch"]:
            assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-3)
    scores = [json.loads((r / "evaluation.jsonl").read_text()) for r in (alone, undisturbed)]
    assert scores[0]["n"] == scores[1]["n"] == 6
    assert scores[0]["value"] == scores[1]["value"]


@pytest.mark.slow
def test_a_worker_is_killed_and_the_job_goes_on(folder: Path, undisturbed: Path) -> None:
    run = folder / "killed"
    code, output, errors = ended(torchrun("--max-restarts", 1, WORKER, folder, run, "kill"))
    assert code == 0, errors
    assert (folder / "killed.failed").exists()
    assert f"resuming {run} at step 7" in output  # behind the first epoch of six steps
    assert epochs(run) == list(range(EPOCHS + 1))
    assert tensor_hash(weights(run)) == tensor_hash(weights(undisturbed))


@pytest.mark.slow
def test_an_error_ends_all_with_one_sentence_and_more_processes_go_on(
    folder: Path, undisturbed: Path
) -> None:
    run = folder / "grown"
    code, _, errors = ended(torchrun(WORKER, folder, run, "sentence"))
    assert code != 0
    sentences = re.findall(r"^error: .*$", errors, re.MULTILINE)
    assert len(sentences) == 1
    told = r"error: process 2 of 2 on \S+: the cellar is flooded\. "
    kept = "The state after step 6 is kept. Start the same command again to go on."
    assert re.fullmatch(told + re.escape(kept), sentences[0])
    assert epochs(run) == [0, 1]
    code, output, errors = ended(torchrun(WORKER, folder, run, "sentence", processes=3))
    assert code == 0, errors
    assert "now 3 processes" in output
    assert "2 or 3 of a batch's 7 pictures" in output
    assert epochs(run) == list(range(EPOCHS + 1))
    for name, value in weights(undisturbed).items():
        torch.testing.assert_close(weights(run)[name], value, rtol=1e-3, atol=1e-4)
