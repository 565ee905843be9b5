"""Several processes: a step is that of one process with the whole batch."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

import shares
from launch import TESTS, ended, torchrun
from mbconv import kernels
from mbconv.data.loader import Batch
from mbconv.training.distributed import World
from shares import CASES, PICTURES, Tensors


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `shares.everything` gives in each of 2 or 3 processes."""
    file = tmp_path_factory.mktemp("shares") / "found.pt"
    code, _, errors = ended(torchrun(TESTS / "shares.py", file, processes=request.param))
    assert code == 0, errors
    return torch.load(file)


def joined(changes: list[str], unread: int = 0) -> tuple[float, Tensors]:
    """A step of one process with the whole batch, or all but its first pictures."""
    pixels, labels = shares.pictures()
    own = shares.trainer([change.replace("synced", "train") for change in changes])
    loss = own.step(Batch(pixels[unread:], labels[unread:], ()), 0, 0)
    return loss, shares.left_by(own)


def one_after_another(changes: list[str], size: int) -> tuple[float, Tensors]:
    """The mean over shares, weighed by their pictures, of what each gives by itself."""
    pixels, labels = shares.pictures()
    total, mean = 0.0, {}
    for rank in range(size):
        part = list(World(rank, size).share(range(PICTURES)))
        own = shares.trainer(changes)
        loss = own.backward(Batch(pixels[part], labels[part], ()), 0)
        weight = len(part) / PICTURES
        total += weight * loss.item()
        for name, value in shares.left_by(own).items():
            if "grad" in name or "running" in name:
                mean[name] = mean.get(name, 0) + weight * value
    return total, {name: value for name, value in mean.items() if not name.endswith(" ema")}


def close(found: tuple[float, Tensors], wanted: tuple[float, Tensors]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    for name, value in wanted[1].items():
        assert_close(found[1][name], value, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("mode", shares.MODES)
@pytest.mark.parametrize("name", CASES)
def test_a_shared_step_is_that_of_one_process(found: Any, name: str, mode: Any) -> None:
    kernels.use(mode)
    changes, size = CASES[name], len(found)
    wanted = joined(changes) if "train" not in name else one_after_another(changes, size)
    own = [each[f"{name}, {mode}"] for each in found]
    close(own[0], wanted)
    for other in own[1:]:
        assert other[0] == own[0][0]
        assert all(torch.equal(value, other[1][n]) for n, value in own[0][1].items())


def test_a_process_that_can_read_nothing_leaves_the_step_to_the_others(found: Any) -> None:
    wanted = joined(CASES["frozen"], unread=PICTURES // len(found))
    for each in found:
        close(each["nothing read"], wanted)


def test_the_processes_of_a_machine_share_what_the_first_has_made(found: Any) -> None:
    assert len({each["made once"] for each in found}) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_have_each_picture_once(size: int) -> None:
    parts = [World(rank, size).share(range(17)) for rank in range(size)]
    assert [picture for part in parts for picture in part] == list(range(17))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
