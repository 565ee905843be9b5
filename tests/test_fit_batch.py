"""The largest batch for the memory there is: the line, the division, and real processes."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mbconv.arch.zoo import get_spec
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.measure.memory import available_memory, fitted_line
from mbconv.report.fit_batch import fit_batch_lines
from mbconv.training import fit_batch as module
from mbconv.training.fit_batch import Fit, fit_batch

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def test_the_line_is_least_squares() -> None:
    assert fitted_line((1, 2, 4), (30, 50, 90)) == pytest.approx((10, 20))
    fixed, each = fitted_line((1, 2, 3), (10, 30, 20))
    assert (fixed, each) == pytest.approx((10, 5))


def test_the_arithmetic_is_shown() -> None:
    fit = Fit((4, 8), (300 * MIB, 500 * MIB), 100 * MIB, 50 * MIB, 1000 * MIB)
    assert fit.largest == 16  # (900 - 100) / 50
    words = "\n".join(fit_batch_lines(fit.to_dict()))
    assert "fixed part 100 MiB, 50.00 MiB a picture" in words
    assert "(1,000 x 0.9 - 100) / 50.00 = 16 pictures" in words
    assert "--set batch_size=16" in words
    small = Fit((4, 8), (300 * MIB, 500 * MIB), 100 * MIB, 50 * MIB, 90 * MIB)
    assert small.largest == 0
    assert "not even one picture fits" in "\n".join(fit_batch_lines(small.to_dict()))


@linux
def test_measured_steps(tmp_path: Path) -> None:
    """A network learns in processes of their own, and more pictures take more memory."""
    spec = tmp_path / "small.json"
    spec.write_text(get_spec("efficientnet_lite0").replace(num_classes=10).to_json())
    fit = fit_batch(str(spec), resolution=96, sizes=(2, 16))
    assert fit.peaks[1] - fit.peaks[0] > 50 * MIB
    assert fit.fixed > 100 * MIB  # torch alone is more
    assert fit.per_picture == pytest.approx((fit.peaks[1] - fit.peaks[0]) / 14)
    assert fit.largest >= 1
    assert 0 < fit.available <= available_memory() * 2


@linux
def test_what_goes_wrong_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(main, ["fit-batch", "no_such_network"])
    assert done.exit_code == 2
    assert "no_such_network" in done.output
    monkeypatch.setattr(module, "run_child", lambda entry, request: 7)
    with pytest.raises(UserError, match="did not grow"):
        fit_batch("efficientnet_lite0")
    monkeypatch.setattr(module, "run_child", lambda entry, request: request["size"] * 2**30 + 5)
    done = CliRunner().invoke(main, ["fit-batch", "efficientnet_lite0", "--json"])
    found = json.loads(done.output)
    assert found["per_picture"] == pytest.approx(2**30)
    assert found["sizes"] == [8, 16, 32]
