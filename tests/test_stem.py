"""The stem's first filters: uncorrelated answers of equal strength on patches of real pictures."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import mbconv
from mbconv.data.decode import decode
from mbconv.data.source import scan
from mbconv.data.transform import normalise, prepare
from mbconv.training.console import Reporter
from mbconv.training.range_test import range_test
from mbconv.training.setup import Settings
from mbconv.training.stem import FLOOR, patch_covariance, whiten_stem
from mbconv.weights.model import load
from small import SMALL, write_classes, write_model


@pytest.mark.parametrize(("kernel", "channels"), [(3, 64), (3, 24), (5, 32)])
def test_whitened_filters_answer_without_correlation(
    data_root: Path, kernel: int, channels: int
) -> None:
    samples = scan(data_root / "clothing").splits["test"]
    spec = SMALL.replace(stem_kernel=kernel, stem_channels=channels, resolution=64)
    torch.manual_seed(0)
    model = mbconv.build(spec)
    before = model.stem.conv.weight.detach().clone()
    whiten_stem(model, samples)
    weight = model.stem.conv.weight.detach()
    count = min(3 * kernel**2, channels // 2)
    filters = weight[:count].flatten(1).double()
    assert torch.equal(weight[count : 2 * count], -weight[:count])
    assert torch.equal(weight[2 * count :], before[2 * count :])

    covariance = patch_covariance(samples, model.preprocessing, kernel)
    answers = filters @ covariance @ filters.T
    strongest = torch.linalg.eigvalsh(covariance).flip(0)[:count]
    torch.testing.assert_close(
        answers, torch.diag(strongest / (strongest + FLOOR)), rtol=1e-4, atol=1e-4
    )


def test_the_covariance_is_that_of_every_patch(data_root: Path) -> None:
    samples = scan(data_root / "clothing").splits["test"][:3]
    preprocessing = mbconv.build(SMALL).preprocessing
    patches = []
    for sample in samples:
        pixels = torch.from_numpy(prepare(decode(sample.path), preprocessing))
        picture = normalise(pixels[None], preprocessing)
        patches.append(F.unfold(picture, 3)[0].double())
    found = torch.cat(patches, 1)
    expected = found @ found.T / found.shape[1]
    torch.testing.assert_close(patch_covariance(samples, preprocessing, 3), expected,
                               rtol=0.02, atol=0.02)  # fmt: skip


def test_a_damaged_picture_is_left_out(tmp_path: Path) -> None:
    write_classes(tmp_path)
    samples = next(iter(scan(tmp_path).splits.values()))
    preprocessing = mbconv.build(SMALL).preprocessing
    expected = patch_covariance(samples[1:], preprocessing, 3)
    Path(str(samples[0].path)).write_bytes(b"gone")
    assert torch.equal(patch_covariance(samples, preprocessing, 3), expected)


def test_a_run_starts_from_them(tmp_path: Path) -> None:
    """At a learning rate of nearly nothing they are still there at the end."""
    data, model = write_classes(tmp_path / "data"), write_model(tmp_path / "m.safetensors")
    run = mbconv.train(
        model, data, tmp_path / "run", epochs=1, resolution=32, quiet=True,
        changes=["transfer.whiten_stem=true", "optimizer.learning_rate=1e-12"],
    )  # fmt: skip
    weight = load(run.path).stem.conv.weight
    count = len(weight) // 2
    torch.testing.assert_close(weight[count:], -weight[:count], rtol=0, atol=1e-6)
    assert not torch.allclose(weight[count:], weight[:count])


def test_a_range_test_starts_from_them_too(tmp_path: Path) -> None:
    data, model = write_classes(tmp_path / "data"), write_model(tmp_path / "m.safetensors")
    first = []
    for change in ("true", "true", "false"):
        changes = (f"transfer.whiten_stem={change}", "batch_size=4")
        settings = Settings(resolution=32, changes=changes)
        found = range_test(model, data, settings, number=1, reporter=Reporter(quiet=True))
        first.append(found.losses[0])
    assert first[0] == first[1] != first[2]
