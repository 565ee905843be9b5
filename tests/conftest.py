"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


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
