"""Which engines and kinds of machine code the CPU that runs the tests has."""

from __future__ import annotations

from typing import Any, Final

from unetpp.native.support import WHOLE, why_no_cpu, words_are_faster
from unetpp.native.target import Target, target_of
from unetpp.processor import cpu_has_bf16

NATIVE = ("native",) if why_no_cpu("fp32") is None else ()
NATIVE_BF16 = ("native",) if why_no_cpu("bf16") is None else ()
WHOLES = tuple(name for name in WHOLE if why_no_cpu(name) is None)
ENGINES = ("torch", "openvino", *NATIVE)
BF16_ENGINES = ("torch", *(("openvino",) if cpu_has_bf16() else ()), *NATIVE_BF16)
AUTO = "native" if (NATIVE_BF16 if cpu_has_bf16() else NATIVE) else "openvino"
"""What "auto" takes without a GPU for networks that there is machine code for."""

AUTO_PRECISION = "bf16" if cpu_has_bf16() else "int16" if words_are_faster() else "fp32"
"""What it computes them in, if they have batch norms."""

UNSUPPORTED: Final[tuple[dict[str, Any], ...]] = ({"conv": "dw_pw"}, {"network": "unet", "upsample": "deconv"})
"""Networks that there is no machine code for."""

LEFT_OUT: Final[dict[str, tuple[str, str]]] = {
    "8 lanes": ("fp32", "avx512f"),
    "16 lanes": ("fp32", ""),
    "pairs": ("bf16", "amx_tile"),
    "tiles": ("bf16", ""),
    "words": ("int16", ""),
    "bytes": ("int8", ""),
}
"""Precision of each kind of machine code, and the flag of better CPUs without which a CPU gets it."""


def kinds() -> list[str]:
    """Return the kinds of machine code that run here."""
    fp32, bf16, int16, int8 = (target_of(precision) for precision in ("fp32", "bf16", "int16", "int8"))
    found = ["8 lanes"] if isinstance(fp32, Target) else []
    found += ["16 lanes"] if fp32 == Target(16) else []
    found += ["pairs"] if isinstance(bf16, Target) else []
    found += ["tiles"] if isinstance(bf16, Target) and bf16.tiles else []
    found += ["words"] if isinstance(int16, Target) else []
    return found + (["bytes"] if isinstance(int8, Target) else [])
