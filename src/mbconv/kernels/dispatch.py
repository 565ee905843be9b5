"""Which implementation computes: native, reference, or the plain modules."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from mbconv.errors import UserError
from mbconv.kernels import native, reference

Mode = Literal["auto", "native", "reference", "plain"]
Memory = Literal["normal", "lean"]


# Whether torch's own convolutions and products take bfloat16 on this CPU. Without the instructions
# (AVX2 alone, say) they take up to a hundred times as long as in float32.
LIBRARY_BFLOAT16 = bool(
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)


@dataclass
class _Choice:
    mode: Mode = "auto"
    memory: Memory = "normal"


_choice = _Choice()


def use(mode: Mode, *, memory: Memory = "normal") -> None:
    """Choose what computes the fused operators, from now on and in the whole process.

    `auto`: native kernels for float32 and bfloat16 on a CPU they are compiled for, the plain
    modules everywhere else. `native`: the same, but UserError where there are none. `reference`:
    the operators in plain torch on any device, which keep as little for backward as the native
    ones and are no faster than plain modules. `plain`: no fused operators.

    `memory="lean"` also drops the expanded map and recomputes it from the block's input: less is
    kept, one 1x1 convolution more is computed.
    """
    for value, known in ((mode, Mode), (memory, Memory)):
        if value not in get_args(known):
            raise UserError(f"{value!r} is none of {', '.join(get_args(known))}.")
    if mode == "native":
        loaded, reason = native.library()
        if loaded is None:
            raise UserError(f"There are no native kernels: {reason}. Use auto or reference.")
    _choice.mode, _choice.memory = mode, memory


@contextmanager
def plain() -> Iterator[None]:
    """Compute by the plain modules in here, so that each operator is seen: to count, to time.

    In the whole process, as `use`: not for several threads at once.
    """
    before, _choice.mode = _choice.mode, "plain"
    try:
        yield
    finally:
        _choice.mode = before


def memory() -> Memory:
    return _choice.memory


def applies(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a fused operator is to be used for maps like x stored as `dtype`."""
    if _choice.mode == "plain":
        return False
    return _choice.mode == "reference" or _native_for(x, dtype)


def backend(x: Tensor) -> ModuleType:
    """The module with the operators for maps like x: `native` or `reference`."""
    return native if _choice.mode != "reference" and _native_for(x, x.dtype) else reference


def library_format(dtype: torch.dtype) -> torch.dtype:
    """What torch's own convolutions of maps in `dtype` are to be computed in on the CPU."""
    return torch.float32 if dtype == torch.bfloat16 and not LIBRARY_BFLOAT16 else dtype


def native_pictures() -> bool:
    """Whether native kernels prepare pictures; the modes `plain` and `reference` do without."""
    return _loaded and _choice.mode in ("auto", "native")


def status() -> dict[str, Any]:
    """What `mbconv doctor` shows: the choice, and why."""
    loaded, reason = native.library()
    features = native.processor_features()
    wanted = {name for names in native.INSTRUCTION_SETS.values() for name in names}
    return {
        "mode": _choice.mode,
        "memory": _choice.memory,
        "instruction_set": reason if loaded is not None else None,
        "missing": None if loaded is not None else reason,
        "usable": native.usable(),
        "compiled": native.compiled(),
        "features": sorted(wanted & features),
        "threads": torch.get_num_threads(),
    }


def _native_for(x: Tensor, dtype: torch.dtype) -> bool:
    return x.device.type == "cpu" and dtype in native.DTYPES and _loaded


def _from_environment() -> None:
    name = "MBCONV_KERNELS"
    try:
        use(cast(Mode, os.environ.get(name, "auto")))
    except UserError as error:
        raise UserError(f"The environment variable {name} is wrong: {error}") from error


_loaded = native.library()[0] is not None
_from_environment()
