"""Compiles rows of the table without tensors, for a GPU that need not be there; knows the types of kernel arguments.

Triton keys a compiled kernel by the types of its arguments, by which pointers start at a multiple of 16 bytes and by
its constants. `compile_row` asks for exactly what `launch` asks for, so that a launch finds its kernel in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from unetpp_kernels.gpu.launch import KERNELS, options
from unetpp_kernels.gpu.sources import MOST
from unetpp_kernels.table import Row

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "u8": torch.uint8}
_FP32 = (
    *("inner_ptr", "bias_ptr", "mean_ptr", "std_ptr", "scale_ptr", "shift_ptr", "shares_ptr", "sums_ptr"),
    *("dmix_ptr", "dtaps_ptr"),
)
_FLOATS = ("floor", "inner_floor")
_POINTERS = tuple(f"{letter}{number}" for letter in "sd" for number in range(MOST))  # sources, their gradients


def target(name: str) -> GPUTarget:
    """Return the target called "80" (compute capability 8.0), "90", "100", ..., or "gfx942"."""
    if name.startswith("gfx"):
        return GPUTarget("hip", name, 64)
    if not name.isdecimal():
        raise ValueError(
            f"{name!r} is no architecture: write 80, 90 or 100 for compute capability 8.0 to 10.0, or gfx942"
        )
    return GPUTarget("cuda", int(name), 32)


@contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Let Triton compile for this target inside the block, whatever GPU is here; nothing can be launched there."""
    # The driver Triton would otherwise make is only made where there is a GPU, so that there may be none to return to.
    config = triton.runtime.driver
    before, config._active = config._active, _Compiling(target(name))
    try:
        yield
    finally:
        config._active = before


def compile_row(row: Row) -> Any:
    """Return the row's compiled kernel, from Triton's cache where it lies there."""
    backend = triton.runtime.driver.active.get_current_target().backend
    return KERNELS[row.kernel].warmup(*arguments(row), grid=(1,), **options(row, backend))


def arguments(row: Row) -> list[torch.dtype | int | float]:
    """Return what stands for the kernel's arguments: types for tensors, any number for numbers."""
    return [_argument(row, parameter.name) for parameter in KERNELS[row.kernel].params if not parameter.is_constexpr]


def _argument(row: Row, name: str) -> torch.dtype | int | float:
    if name in _FLOATS:
        return 0.0
    if not (name.endswith("_ptr") or name in _POINTERS):
        return 2  # any but 1, which Triton would compile in if the kernels let it
    return _TYPES[_type(row, name)]


def _type(row: Row, name: str) -> str:
    maps, _, pixels = row.dtype.partition(" ")
    if name == "pixels_ptr":
        return pixels
    if name == "values_ptr" or (name == "y_ptr" and row.kernel in ("head", "depthwise_head")):
        return "u8"
    # Where there is no room for moments, the result stands for it.
    if name in _FP32 or (
        name == "parts_ptr" and (row.kernel in ("moments", "join") or "MOMENTS" in dict(row.constants))
    ):
        return "fp32"
    if name in ("taps_ptr", "phases_ptr"):
        return maps if dict(row.constants).get("PACKED") else "fp32"
    return maps


class _Compiling:
    """What Triton asks a driver while it compiles. It keeps kernels per device: every target is a device of its own."""

    _numbers: dict[GPUTarget, int] = {}  # noqa: RUF012

    def __init__(self, target: GPUTarget) -> None:
        self._target = target
        # Real devices count from 0, and their kernels must not be mistaken for ours.
        self._device = self._numbers.setdefault(target, 1000 + len(self._numbers))

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)
