"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

from mbconv.kernels import dispatch
from server import Server, serving
from small import write_model

# The same examples in every run, and no failure because the machine is busy.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of large real picture sets; tests that ask for it are marked `data`."""
    folder = os.environ.get("MBCONV_DATA")
    if not folder:
        pytest.skip("MBCONV_DATA is not set: it names the folder of the large real picture sets")
    return Path(folder).resolve()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test computes with ends with it; the next one finds what MBCONV_KERNELS says."""
    monkeypatch.setattr(dispatch, "_choice", replace(dispatch._choice))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of small.SMALL, to be served."""
    return write_model(tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.fixture(scope="session")
def small_server(small_model: Path) -> Iterator[Server]:
    """A server of that model, in a process of its own, that any test may ask."""
    with serving(small_model, "--allow-urls") as server:
        yield server
