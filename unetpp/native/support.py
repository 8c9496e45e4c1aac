"""Says which networks and CPUs there is machine code for, and in which precision, without making any."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final, Literal

from unetpp.native.target import Target, target_of
from unetpp.package import ModelSpec

MOST_SOURCES = 16
"""Of one node at its own resolution."""

SAMPLES = ("uint8", "uint16", "float32")

WHOLE: Final = ("int16", "int8")
"""Precisions whose maps are whole numbers. Other engines have none of them."""


def why_not(spec: ModelSpec, precision: str) -> str | None:
    """Return why this network cannot run as machine code on this CPU in "fp32", "bf16", "int16" or "int8", or None."""
    config = spec.architecture
    if config.conv != "pw_dw":
        return f"its convolutions are {config.conv}, not pw_dw"
    if config.upsample == "deconv":
        return "it upsamples by deconvolution"
    if spec.dtype not in SAMPLES:
        return f"it reads samples of type {spec.dtype}"
    if precision in WHOLE and config.norm != "batch":
        return "it has no batch norms, which say how far its values reach"
    if config.last > MOST_SOURCES:
        return f"a node has more than {MOST_SOURCES} sources"
    return why_no_cpu(precision)


def why_no_cpu(precision: str) -> str | None:
    """Return why this CPU cannot run machine code in this precision, or None."""
    if find_spec("llvmlite") is None:
        return "llvmlite is not installed"
    target = target_of(precision)
    return target if isinstance(target, str) else None


def best_precision(spec: ModelSpec) -> Literal["fp32", "bf16", "int16"]:
    """Return what a network that there is machine code for is computed in where nobody asks for a precision.

    Where the CPU does not multiply bf16, words are nearer to fp32 than that would be. AVX2 multiplies twice as many of
    them at once; AVX-512 would be left at half its width.
    """
    if why_not(spec, "bf16") is None:
        return "bf16"
    return "int16" if words_are_faster() and why_not(spec, "int16") is None else "fp32"


def words_are_faster() -> bool:
    """Say whether this CPU should compute in int16 rather than in fp32."""
    return target_of("fp32") == Target(8)
