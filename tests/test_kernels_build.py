"""The kernels as other compilers than the install's take them."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETS = {
    "clang++": {"avx512_bf16", "avx512", "avx2", "generic"},
    "aarch64-linux-gnu-g++": {"neon"},
}


@pytest.mark.slow
@pytest.mark.parametrize("compiler", SETS)
def test_they_compile(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    if compiler == "clang++" and platform.machine() != "x86_64":
        pytest.skip("clang++ compiles for another processor here")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib"),
         "--build-temp", str(tmp_path / "temp")],
        cwd=ROOT, check=True, env=os.environ | {"CXX": compiler, "CXXFLAGS": "-O1"},
    )  # fmt: skip
    assert {path.stem for path in (tmp_path / "lib").rglob("*.so")} == SETS[compiler]
