"""Says which networks and CPUs there is machine code for, without making any."""

from __future__ import annotations

from importlib.util import find_spec

from unetpp.native.target import target_of
from unetpp.package import ModelSpec

MOST_SOURCES = 16
"""Of one node at its own resolution."""

SAMPLES = ("uint8", "uint16", "float32")


def why_not(spec: ModelSpec, precision: str) -> str | None:
    """Return why this network cannot run as machine code on this CPU in "fp32", "bf16" or "int8", or None."""
    config = spec.architecture
    if config.conv != "pw_dw":
        return f"its convolutions are {config.conv}, not pw_dw"
    if config.upsample == "deconv":
        return "it upsamples by deconvolution"
    if spec.dtype not in SAMPLES:
        return f"it reads samples of type {spec.dtype}"
    if precision == "int8" and config.norm != "batch":
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
