"""Compiles the CPU kernels: one shared library an instruction set, chosen at run time.

The libraries have a plain C interface, so they depend on no Python and no torch version. Where no
compiler is found the install goes on without them, and `mbconv doctor` says so.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FOLDER = "src/mbconv/kernels/native"
FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=fast",
    "-fno-math-errno", "-fno-trapping-math",
]  # fmt: skip
AVX512 = [
    "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma",
    "-mtune=icelake-server",  # 1% of a training step, also on Zen 4
]  # fmt: skip
SETS: dict[str, dict[str, list[str]]] = {  # by the processor's family
    "x86_64": {
        "avx512_bf16": [*AVX512, "-mavx512bf16"],
        "avx512": AVX512,
        "avx2": ["-mavx2", "-mfma"],
        "generic": [],
    },
    "aarch64": {"neon": ["-march=armv8-a"]},
}


def find_compiler() -> str | None:
    """CXX, which may be a cross compiler, or what the system has."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def family() -> str:
    """The processors that the compiler compiles for: x86_64, aarch64 or another."""
    try:
        asked = [*(find_compiler() or "").split(), "-dumpmachine"]
        triple = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.machine()
    return triple.partition("-")[0]


class BuildKernels(build_ext):
    """A call of the compiler for each library; its name is that of the instruction set."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        compiler = find_compiler()
        if compiler is None:
            raise CompileError("no C++ compiler: set CXX, or install g++ or clang")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        own = os.environ.get("CXXFLAGS", "").split()
        command = [*compiler.split(), *FLAGS, *ext.extra_compile_args, *own, *ext.sources]
        try:
            subprocess.run([*command, "-o", str(target)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(str(error)) from error


class AnyPython(bdist_wheel):
    """The wheel fits every Python on its platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def kernels() -> list[Extension]:
    if sys.platform != "linux":
        return []
    sets = SETS.get(family(), {"generic": []})
    sources = sorted(str(path) for path in Path(FOLDER).glob("*.cpp"))
    headers = sorted(str(path) for path in Path(FOLDER).glob("*.h"))
    return [
        Extension(
            f"mbconv.kernels.native.{name}", sources, depends=headers,
            extra_compile_args=flags, optional=True,
        )
        for name, flags in sets.items()
    ]  # fmt: skip


setup(ext_modules=kernels(), cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython})
