"""What the machine code may use of this CPU; knows no network."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from unetpp.processor import cpu_flags

_AVX2: Final = frozenset({"avx2", "fma"})
_AVX512: Final = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"})
_BF16: Final = _AVX512 | {"avx512_bf16"}
_INT8: Final = _AVX512 | {"avx512_vnni"}
_TILES: Final = frozenset({"amx_tile", "amx_bf16"})
MOST_WORD: Final = (1 << 15) - 1
"""AVX2 multiplies words with a sign, which no map has."""
MOST_BYTE: Final = (1 << 8) - 1
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""Of Linux on x86-64: a process asks once before it may use AMX's registers."""


@dataclass(frozen=True, slots=True)
class Target:
    """How numbers are stored and multiplied.

    Attributes:
        lanes: float32 numbers in a vector.
        stored: how maps are stored and multiplied in pointwise convolutions: as float32, as bf16, or as whole numbers
            of 15 bits ("int16") or 8 bits ("int8") by whole weights, see `unetpp.native.quantize`. Sums of whole
            numbers are exact; others, depthwise convolutions and all that has no name are float32.
        tiles: pointwise convolutions run on AMX's tiles.
    """

    lanes: int
    stored: Literal["fp32", "bf16", "int16", "int8"] = "fp32"
    tiles: bool = False

    @property
    def size(self) -> int:
        """Bytes of a stored number."""
        return {"fp32": 4, "bf16": 2, "int16": 2, "int8": 1}[self.stored]

    @property
    def most(self) -> int | None:
        """Largest number that is stored, where those are whole."""
        return {"int16": MOST_WORD, "int8": MOST_BYTE}.get(self.stored)

    @property
    def together(self) -> int:
        """Stored numbers that are multiplied and summed in one lane of a vector."""
        return 4 // self.size

    @property
    def kept(self) -> int:
        """Vectors of float32 numbers that are stored at once. Words fill one of their own with two of them."""
        return 2 if self.stored == "int16" else 1

    def padded(self, channels: int) -> int:
        """Return the channels that are stored: the last ones, if more, are zeros."""
        unit = 32 if self.tiles and channels > 16 else 16
        return -(-channels // unit) * unit


def target_of(precision: str) -> Target | str:
    """Return what to use for "fp32", "bf16", "int16" or "int8", or why this CPU cannot be used."""
    flags = cpu_flags()
    if precision == "bf16":
        if not flags >= _BF16:
            return "this CPU does not multiply bf16 in AVX-512"
        return Target(16, "bf16", tiles=flags >= _TILES and _tiles_allowed())
    if precision == "int8":
        return Target(16, "int8") if flags >= _INT8 else "this CPU does not multiply bytes in AVX-512 (VNNI)"
    if not flags >= _AVX2:
        return "this is no x86-64 CPU with AVX2 under Linux"
    return Target(8, "int16") if precision == "int16" else Target(16 if flags >= _AVX512 else 8)


@cache
def _tiles_allowed() -> bool:
    """Ask Linux for AMX's registers, for this process and its threads to come."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    return bool(syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)
