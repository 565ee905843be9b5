"""What Keras itself makes of the files that it writes, in an environment of its own.

`make test-keras` makes that and names its Python in MBCONV_KERAS.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbconv.data.transform import normalise
from mbconv.nn.model import MBConvNet
from mbconv.weights import keras
from mbconv.weights.assemble import assemble

IMAGENET_STD = (0.229, 0.224, 0.225)
pytestmark = pytest.mark.keras


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Let Keras write the files of a network, once; returns their folder."""
    python = os.environ.get("MBCONV_KERAS")
    if not python:
        pytest.skip("MBCONV_KERAS is not set: it names a Python with TensorFlow (make test-keras)")
    folder = tmp_path_factory.mktemp("keras")
    script = Path(__file__).parent / "keras_reference.py"

    def write(name: str) -> Path:
        if not (folder / f"{name}.npz").exists():
            command = [python, str(script), str(folder), name]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
        return folder

    return write


def compare(model: MBConvNet, pixels: Any, expected: Any) -> float:
    """Largest difference of the logits relative to their largest magnitude."""
    with torch.inference_mode():
        logits = model(normalise(torch.from_numpy(pixels), model.preprocessing)).numpy()
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", list(keras.NETWORKS))
def test_logits_equal_those_of_keras(name: str, written: Any) -> None:
    folder: Path = written(name)
    reference = np.load(folder / f"{name}.npz")
    files = sorted(path for path in folder.glob(f"{name}.*") if path.suffix != ".npz")
    assert len(files) == (5 if name == "efficientnet_b0" else 3)
    models = [keras.load(path) for path in files]
    for shown in ("native", "odd"):
        pixels, expected = reference[shown], reference[f"{shown}_logits"]
        difference = compare(models[0], pixels, expected)
        print(f"{name} {shown} {pixels.shape[1]}x{pixels.shape[2]}: {difference:.1e}")
        assert difference < 1e-4
    for other in models[1:]:
        assert other.preprocessing == models[0].preprocessing
        ours, theirs = models[0].state_dict(), other.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    spread = np.abs(np.diff(reference["odd_logits"], axis=0)).max()
    assert spread > 0.01 * np.abs(reference["odd_logits"]).max()  # pictures make a difference
    symmetric = models[0].spec.replace(padding="symmetric")
    wrong = assemble(symmetric, models[0].state_dict())
    wrong.preprocessing = models[0].preprocessing
    assert compare(wrong, reference["native"], reference["native_logits"]) > 0.01


def test_a_fine_tuned_network_is_found_in_its_model(written: Any) -> None:
    """Augmentation, the network without its top, a classifier of the user's; by Keras 3 and 2."""
    folder: Path = written("transfer")
    reference = np.load(folder / "transfer.npz")
    files = sorted(folder.glob("transfer_*"))
    assert len(files) == 6
    for file in files:
        library = file.name.split(".")[0]
        model = keras.load(file)
        assert compare(model, reference["shown"], reference[library]) < 1e-4, file


def test_published_weights_are_normalised_as_keras_does(written: Any) -> None:
    """Keras mends their variance by a layer that the file does not have."""
    folder: Path = written("published")
    reference = np.load(folder / "published.npz")
    for file in ("published.h5", "published.weights.h5"):
        model = keras.load(folder / file)
        assert model.preprocessing.std == pytest.approx(IMAGENET_STD)
        difference = compare(model, reference["native"], reference["native_logits"])
        assert difference < 1e-4, file
