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
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"]
X86 = {
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
    "avx512": AVX512,
    "avx2": ["-mavx2", "-mfma"],
}


class BuildKernels(build_ext):
    """A call of the compiler for each library; its name is that of the instruction set."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
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
    sets = {**(X86 if platform.machine() in ("x86_64", "AMD64") else {}), "generic": []}
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
