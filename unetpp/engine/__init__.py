"""Chooses the engine that runs a model on this machine; knows what is installed, not how each engine computes."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import cast

import numpy as np

from unetpp.engine.base import Engine, Precision
from unetpp.errors import EngineError
from unetpp.model.orientations import TTAS, Tta
from unetpp.native.support import WHOLE, best_precision, why_no_cpu, why_not, words_are_faster
from unetpp.package import ModelSpec, Package
from unetpp.processor import cpu_has_bf16

__all__ = ["Engine", "Precision", "choose_engine", "engine_reasons", "torch_is_for_gpus"]

log = logging.getLogger(__name__)

ENGINES = ("triton", "native", "openvino", "torch")
PRECISIONS = ("fp32", "fp16", "bf16", *WHOLE)


def choose_engine(
    package: Package,
    *,
    name: str = "auto",
    precision: str = "auto",
    threads: int = 1,
    tta: Tta = "none",
    tile_shape: tuple[int, int] | None = None,
) -> Engine:
    """Return the engine for this machine, or the one asked for.

    "auto" is the fused kernels on CUDA where there is a device that runs them (torch on an older one, and where they
    fail or disagree with torch), else machine code made for this CPU where there is any for the network, else OpenVINO
    where it is installed, else torch on the CPU; and fp16 for the fused kernels, bf16 where other hardware has it, else
    fp32, in whose place machine code takes int16 where that is faster. Only machine code has int16 and int8, which
    therefore choose it. `tta` costs as many times as it has orientations, 2, 4 or 8; see `unetpp.model.turned`. With
    `tile_shape` the engine runs once, on zeros, so that the calling thread's first tile of that shape costs as much as
    the next.

    Raises:
        EngineError: an engine or precision that is unknown or not available here.
    """
    if name not in ("auto", *ENGINES):
        raise EngineError(f"engine {name!r} is unknown; choose auto, {', '.join(ENGINES)}")
    if precision not in ("auto", *PRECISIONS):
        raise EngineError(f"precision {precision!r} is unknown; choose auto, {', '.join(PRECISIONS)}")
    if tta not in TTAS:
        raise EngineError(f"tta {tta!r} is unknown; choose {', '.join(TTAS)}")
    if threads < 1:
        raise EngineError(f"threads={threads}: an engine needs at least one thread")
    if precision in WHOLE and (reason := _why_not_whole(name, package.spec, precision)) is not None:
        raise EngineError(f"{precision} cannot be used here: {reason}; use --precision auto")
    chosen, device = _available(name, package.spec, precision)
    if precision == "fp16" and chosen != "triton":
        raise EngineError(f"the {chosen} engine has no fp16; use --precision bf16 or fp32")
    if chosen == "openvino" and precision == "bf16" and not cpu_has_bf16():
        raise EngineError("this CPU does not multiply bf16 and OpenVINO does not emulate it; use --precision fp32")
    try:
        engine = _build(package, chosen, device, _precision(precision, chosen, device, package.spec), threads, tta)
    except (EngineError, RuntimeError, ImportError, OSError) as error:
        if name != "auto" or precision in ("fp16", *WHOLE) or chosen not in ("triton", "native"):
            raise
        log.warning("the %s engine is left out: %s", chosen, error)
        chosen = "openvino" if chosen == "native" and _openvino_version() else "torch"
        engine = _build(package, chosen, device, _precision(precision, chosen, device, package.spec), threads, tta)
    if tile_shape is not None:
        engine.labels(np.zeros((*tile_shape, len(package.spec.bands)), package.spec.dtype))
    return engine


def engine_reasons() -> list[tuple[str, bool, str]]:
    """Return (engine, available, why) in the order in which "auto" tries them."""
    gpu = _cuda_device()
    kernels, why = _kernels()
    openvino = _openvino_version()
    bf16 = "bf16 in hardware" if cpu_has_bf16() else "no bf16 in hardware"
    native = why_no_cpu("bf16" if cpu_has_bf16() else "fp32")
    whole = "".join(f", {name} {_when(name)}" for name in WHOLE if why_no_cpu(name) is None)
    return [
        ("triton", kernels, f"fused kernels: {why}"),
        ("torch on CUDA", gpu is not None, gpu or "torch sees no CUDA device"),
        ("native", native is None, native or f"machine code for this CPU by LLVM, {bf16}{whole}"),
        ("openvino", openvino is not None, f"version {openvino}, CPU with {bf16}" if openvino else "not installed"),
        ("torch on the CPU", True, "always; the plain definition, several times slower than openvino"),
    ]


def torch_is_for_gpus() -> bool:
    """Say whether it is worth a look: a torch for CPUs says so in its version, and is not imported just to be asked."""
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:  # built in place
        return True


def _when(whole: str) -> str:
    return "in place of fp32" if whole == "int16" and words_are_faster() else "on request"


def _why_not_whole(name: str, spec: ModelSpec, precision: str) -> str | None:
    return why_not(spec, precision) if name in ("auto", "native") else f"the {name} engine has none"


def _available(name: str, spec: ModelSpec, precision: str) -> tuple[str, str]:
    """Return the engine to use and its device."""
    if name == "openvino":
        if _openvino_version() is None:
            raise EngineError("OpenVINO is not installed; install openvino or use --engine torch")
        return "openvino", "cpu"
    if name == "native" or precision in WHOLE:
        return "native", "cpu"
    kernels, why = _kernels()
    if name == "triton" and not kernels:
        raise EngineError(f"the fused kernels do not run here: {why}; use --engine openvino or torch")
    if kernels and name != "torch":
        return "triton", "cuda"
    if _cuda_device() is not None:
        return "torch", "cuda"
    # A CPU may multiply bf16 in other ways than ours; OpenVINO knows more of them.
    wanted = "bf16" if precision == "bf16" or (precision == "auto" and cpu_has_bf16()) else "fp32"
    if name == "auto" and why_not(spec, wanted) is None:
        return "native", "cpu"
    return ("openvino", "cpu") if name == "auto" and _openvino_version() else ("torch", "cpu")


def _openvino_version() -> str | None:
    from unetpp.engine.openvino import openvino_version  # not for the native engine, which is asked for first

    return openvino_version()


def _kernels() -> tuple[bool, str]:
    """Say whether the fused kernels run on this machine's CUDA device, and why or why not."""
    if not torch_is_for_gpus():
        return False, "torch sees no CUDA device"
    import torch

    from unetpp_kernels import device_implementation

    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device"
    chosen, why = device_implementation(torch.device("cuda"))
    return chosen == "triton", why


def _precision(precision: str, engine: str, device: str, spec: ModelSpec) -> Precision:
    if precision == "auto":
        if engine == "triton":
            return "fp16"
        if engine == "native":
            return best_precision(spec)
        return "bf16" if device == "cuda" or cpu_has_bf16() else "fp32"
    return cast("Precision", precision)


def _build(package: Package, name: str, device: str, precision: Precision, threads: int, tta: Tta) -> Engine:
    if name == "triton":
        from unetpp.engine.triton import TritonEngine

        return TritonEngine(package, precision=precision, threads=threads, tta=tta)
    if name == "native":
        from unetpp.engine.native import NativeEngine

        return NativeEngine(package, precision=precision, threads=threads, tta=tta)
    if name == "openvino":
        from unetpp.engine.openvino import OpenVinoEngine

        return OpenVinoEngine(package, precision=precision, threads=threads, tta=tta)
    from unetpp.engine.torch import TorchEngine

    return TorchEngine(package, precision=precision, threads=threads, device=device, tta=tta)


def _cuda_device() -> str | None:
    if not torch_is_for_gpus():
        return None
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
