"""Targets that this CPU has, machine code of single functions, and networks in float64 to compare with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from unetpp.native import build
from unetpp.native.emit import F32, I64, Code
from unetpp.native.target import Target, target_of
from unetpp.native.weights import to_bf16
from unetpp.package import Package, save_package


def _targets() -> dict[str, Target]:
    """Return those of this CPU, with AVX-512 also what smaller CPUs have."""
    found = [target for target in (target_of("fp32"), target_of("bf16")) if isinstance(target, Target)]
    if any(target.lanes == 16 for target in found):
        found.append(Target(8))
    if any(target.tiles for target in found):
        found.append(Target(16, bf16=True))
    return {
        f"{t.lanes} lanes{' bf16' * t.bf16}{' tiles' * t.tiles}": t
        for t in sorted(found, key=lambda t: (t.bf16, t.lanes))
    }


TARGETS: Final = _targets()


def functions(target: Target, write: Callable[[Code], None]) -> Callable[..., None]:
    """Compile what `write` adds to a module; returns call(name, *arguments) for arrays, numbers and float32 shares."""
    code = Code(target)
    write(code)
    with build._lock:
        build._start_llvm()
        machine = build.Machine(build._compiled(code))
    kinds = {function.name: [argument.type for argument in function.args] for function in code.module.functions}

    def call(name: str, *arguments: Any) -> None:
        types = [{I64: ctypes.c_int64, F32: ctypes.c_float}.get(kind, ctypes.c_void_p) for kind in kinds[name]]
        values = [value.ctypes.data if isinstance(value, np.ndarray) else value for value in arguments]
        ctypes.CFUNCTYPE(None, *types)(machine.address(name))(*values)

    return call


def stored(target: Target, values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as maps hold them."""
    values = np.ascontiguousarray(values, np.float32)
    return to_bf16(values) if target.bf16 else values


def read(target: Target, values: NDArray[Any]) -> NDArray[np.float32]:
    """Return what a map holds as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32) if target.bf16 else values


def lively(package: Package, change: Callable[[torch.nn.Module], None] | None = None) -> Package:
    """Return the package with random biases and norms, which are 0 and 1 in a new network."""
    model = package.load_model()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        if change is not None:
            change(model)
    folder = Path(f"{package.folder}-lively")
    return save_package(folder, model, package.spec, "")


def definition(package: Package, image: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logits (L, K, H, W) of every head in float64, deepest last."""
    pixels = (image.astype(np.float64) - package.spec.mean) / package.spec.std
    with torch.no_grad():
        heads = package.load_model().double().heads(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    found: NDArray[np.float64] = torch.cat(heads).numpy()
    return found


def picture(shape: Sequence[int], kind: str = "uint8", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, tuple(shape)).astype(kind)
