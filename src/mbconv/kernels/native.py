"""The fused operators in C++, through ctypes; the same functions as in `reference`.

One shared library for each instruction set lies in `native/`, where the install could compile
them. Tensors are on the CPU, maps in float32 or bfloat16. The work goes to the threads of torch's
own OpenMP runtime, as many as `torch.get_num_threads()` says.
"""

import ctypes
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbconv.kernels import reference
from mbconv.kernels.reference import ACTIVATIONS, Act, After, Geometry

INTERFACE = 9  # of the compiled functions, as native/interface.cpp has it
FOLDER = Path(__file__).with_name("native")
# By preference; what a processor must have, by the names of /proc/cpuinfo.
INSTRUCTION_SETS: dict[str, frozenset[str]] = {
    "avx512_bf16": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "avx2": frozenset({"avx2", "fma"}),
    "neon": frozenset({"aarch64"}),  # every 64-bit ARM has it
    "generic": frozenset(),
}
DTYPES = (torch.float32, torch.bfloat16)


class _Map(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("n", "pixels", "c")]


class DepthwiseShape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in ("n", "h", "w", "c", "oh", "ow", *Geometry._fields)
    ]


@cache
def processor_features() -> frozenset[str]:
    """The machine's family, and what it lets a program use, as /proc/cpuinfo lists it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = (line.partition(":") for line in lines)
    features = (v for name, _, v in fields if name.strip() in ("flags", "Features"))
    return frozenset({platform.machine(), *next(features, "").split()})


def usable() -> list[str]:
    """Instruction sets that this processor has, the best first."""
    return [name for name, needs in INSTRUCTION_SETS.items() if needs <= processor_features()]


def compiled() -> list[str]:
    """Instruction sets that the install has compiled."""
    return [name for name in INSTRUCTION_SETS if _path(name).exists()]


@cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """The best library that runs here and its instruction set, or None and the reason."""
    if sys.platform != "linux":
        return None, f"native kernels exist for Linux; this is {platform.system()}"
    names = [name for name in usable() if name in compiled()]
    if not names:
        return None, "the install found no C++ compiler: install g++ or clang, then mbconv again"
    try:
        _share_openmp()
        loaded = ctypes.CDLL(str(_path(names[0])))
    except OSError as error:
        return None, f"{_path(names[0]).name} cannot be loaded: {error}"
    if not hasattr(loaded, "mbconv_interface") or loaded.mbconv_interface() != INTERFACE:
        return None, "the compiled kernels belong to another version of mbconv: install it again"
    return loaded, names[0]


def _path(name: str) -> Path:
    return FOLDER / f"{name}.so"


def _share_openmp() -> None:
    """Let the library, which brings no OpenMP runtime, find the one that torch has loaded."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    loaded = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}
    own = str(Path(torch.__file__).parent)
    for path in sorted(loaded, key=lambda p: not p.startswith(own))[:1]:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def covariance(x: Tensor) -> Tensor:
    found = x.new_empty(1 + x.shape[3], x.shape[3], dtype=torch.float32)
    run("covariance", x, _half(x), _map(x), torch.get_num_threads(), found[0], found[1:])
    return found


def moments(x: Tensor) -> Tensor:
    found = x.new_empty(2, x.shape[3], dtype=torch.float32)
    run("moments", x, _half(x), _map(x), torch.get_num_threads(), found[0], found[1])
    return found


def normalise(
    x: Tensor, norm: Tensor, act: Act, factor: Tensor | None = None, addend: Tensor | None = None
) -> Tensor:
    y = torch.empty_like(x)
    run("normalise", x, _half(x), _map(x), norm, _number(act), factor, addend,
          torch.get_num_threads(), y)  # fmt: skip
    return y


def pool(x: Tensor, norm: Tensor, act: Act) -> Tensor:
    mean = x.new_empty(x.shape[0], x.shape[3], dtype=torch.float32)
    run("pool", x, _half(x), _map(x), norm, _number(act), torch.get_num_threads(), mean, None)
    return mean


def reduce(
    x: Tensor,
    grad: Tensor | None,
    norm: Tensor,
    act: Act,
    *,
    gated: bool = False,
    factor: Tensor | None = None,
    output: bool = False,
) -> tuple[Tensor, Tensor | None]:
    sums = x.new_empty(x.shape[0], 5, x.shape[3], dtype=torch.float32)
    y = torch.empty_like(x) if output else None
    run("reduce", x, grad, _half(x), _map(x), norm, _number(act), int(gated), factor,
          torch.get_num_threads(), sums, y)  # fmt: skip
    return sums, y


def apply(
    x: Tensor,
    grad: Tensor | None,
    norm: Tensor,
    act: Act,
    means: Tensor,
    *,
    factor: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    dx = torch.empty_like(x)
    run("apply", x, grad, _half(x), _map(x), norm, _number(act), factor, offset, means,
          torch.get_num_threads(), dx)  # fmt: skip
    return dx


def depthwise(
    x: Tensor,
    norm: Tensor | None,
    act: Act,
    weight: Tensor,
    geometry: Geometry,
    *,
    bias: Tensor | None = None,
    statistics: bool = False,
) -> tuple[Tensor, Tensor | None]:
    assert geometry.kernel in (3, 5, 7), geometry
    shape = depthwise_shape(x.shape, geometry)
    y = x.new_empty(shape.n, shape.oh, shape.ow, shape.c)
    found = x.new_empty(2, shape.c, dtype=torch.float32) if statistics else None
    mean, variance = (None, None) if found is None else found
    run("depthwise", x, _half(x), shape, norm, _number(act), weight, bias,
          torch.get_num_threads(), y, mean, variance)  # fmt: skip
    return y, found


def depthwise_backward(
    x: Tensor,
    grad: Tensor,
    norm: Tensor | None,
    act: Act,
    weight: Tensor,
    geometry: Geometry,
    after: After | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    assert geometry.kernel in (3, 5, 7), geometry
    dz, dw = torch.empty_like(x), torch.empty_like(weight, memory_format=torch.contiguous_format)
    sums = x.new_empty(2, x.shape[3], dtype=torch.float32)
    shape = depthwise_shape(x.shape, geometry)
    run("depthwise_backward", x, grad, _half(x), shape, norm, _number(act), weight,
        *(after or [None] * 5), torch.get_num_threads(), dz, dw, sums)  # fmt: skip
    return dz, dw, sums


def product(x: Tensor, weight: Tensor) -> Tensor:
    if _half(x) and x.shape[3] % 2:  # pairs of bf16 are multiplied
        return reference.product(x, weight)
    out = x.new_empty(*x.shape[:3], weight.shape[0])
    (n, k), wide = weight.shape, weight.float()
    sizes = (x.numel() // k, wide.data_ptr(), k, n, wide.stride(1), wide.stride(0))
    run("product", x, _half(x), *map(ctypes.c_int64, sizes), torch.get_num_threads(), out)
    return out


def levels(pictures: Tensor, tables: Tensor) -> Tensor:
    """Bytes [N, H, W, 3] -> floats of that shape: what `tables` [3, 256] have for each byte."""
    assert pictures.dtype == torch.uint8
    assert pictures.shape[3:] == (3,)
    assert tables.shape == (3, 256)
    pictures = pictures.contiguous()
    out = pictures.new_empty(pictures.shape, dtype=torch.float32)
    count, height, width, _ = pictures.shape
    sizes = map(ctypes.c_int64, (count, height * width))
    run("levels", ctypes.c_void_p(pictures.data_ptr()), *sizes, tables, torch.get_num_threads(),
          out)  # fmt: skip
    return out


def resample(
    pixels: NDArray[np.uint8],
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    mirrored: bool = False,
) -> NDArray[np.uint8]:
    """A part of a picture [H, W, 3] at `size` (height, width), bilinear and antialiased.

    `box` has left, top, right and bottom in pixels, within the picture. On one thread, without
    the interpreter's lock.
    """
    height, width, channels = pixels.shape
    left, top, right, bottom = box
    # Nothing below looks at types or bounds.
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert channels == 3
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    out = np.empty((*size, 3), np.uint8)
    run("resample", ctypes.c_void_p(pixels.ctypes.data), *map(ctypes.c_int64, (height, width)),
          (ctypes.c_double * 4)(*box), *map(ctypes.c_int64, size), int(mirrored),
          ctypes.c_void_p(out.ctypes.data))  # fmt: skip
    return out


weight_gradient = reference.weight_gradient  # step by step; compiled blocks have their own


def run(name: str, *arguments: Any) -> None:
    """Call `mbconv_<name>`: tensors as addresses, structures by address, None as null."""
    functions, _ = library()
    assert functions is not None
    ready = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            # Nothing below looks at strides or types: a wrong one would be read as it lies.
            half = argument.dtype == torch.bfloat16
            assert argument.is_contiguous(), name
            assert half or argument.dtype == torch.float32, name
            ready.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, ctypes.Structure):
            ready.append(ctypes.byref(argument))  # type: ignore[arg-type]
        else:
            ready.append(argument)
    getattr(functions, f"mbconv_{name}")(*ready)


def address(tensor: Tensor | None) -> int | None:
    """None where there is nothing: the compiled code asks for null."""
    if tensor is None or not tensor.numel():
        return None
    # Nothing below looks at strides.
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _half(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _number(act: Act) -> int:
    return ACTIVATIONS.index(act)


def _map(x: Tensor) -> _Map:
    return _Map(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])


def depthwise_shape(size: tuple[int, ...], geometry: Geometry) -> DepthwiseShape:
    """Of a map of this size, [N, H, W, C]."""
    n, h, w, c = size
    return DepthwiseShape(n, h, w, c, *geometry.output(h, w), *geometry)
