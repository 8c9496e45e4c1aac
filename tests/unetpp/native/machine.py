"""Targets that this CPU has, machine code of single functions, and networks in float64 to compare with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from unetpp.model.order import order_of
from unetpp.native import build
from unetpp.native.emit import F32, I64, Code
from unetpp.native.target import Target, target_of
from unetpp.native.weights import to_bf16
from unetpp.package import Package, save_package


def _targets() -> dict[str, Target]:
    """Return those of this CPU, with AVX-512 also what smaller CPUs have."""
    best = [target_of(precision) for precision in ("fp32", "bf16", "int16", "int8")]
    found = [target for target in best if isinstance(target, Target)]
    if any(target.lanes == 16 for target in found):
        found.append(Target(8))
    if any(target.tiles for target in found):
        found.append(Target(16, "bf16"))
    return {
        f"{t.lanes} lanes {t.stored}{' tiles' * t.tiles}": t
        for t in sorted(found, key=lambda t: (-t.size, t.lanes, t.tiles))
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
    """Return numbers as maps hold them; whole ones from 0 to the largest, which stands for what is not a number."""
    values = np.ascontiguousarray(values, np.float32)
    if target.most is not None:
        whole = np.where(np.isnan(values), target.most, np.rint(values).clip(0, target.most))
        return whole.astype(f"u{target.size}")
    return to_bf16(values) if target.stored == "bf16" else values


def read(target: Target, values: NDArray[Any]) -> NDArray[np.float32]:
    """Return what a map holds as float32."""
    if target.most is not None:
        return values.astype(np.float32)
    return (values.astype(np.uint32) << 16).view(np.float32) if target.stored == "bf16" else values


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


def definition_of_whole(package: Package, image: NDArray[Any], stored: str) -> NDArray[np.float64]:
    """Return the same of a network whose maps and weights are rounded to whole numbers, as it is written down.

    Of each channel of a map int8 has 256 values, from 0 to its batch norm's beta + 12 gamma, int16 32,768 to beta + 48
    gamma. The largest weight of a pointwise convolution's output is 127 or 32,767, or what lets no sum pass 31 bits.
    """
    deviations, most, factor = {"int8": (12, 255, 127), "int16": (48, 32767, 32767)}[stored]
    model: Any = package.load_model().double()
    maps: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
    config = model.config

    def rounded(unit: Any, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps = (unit.norm.bias + deviations * unit.norm.weight.abs()).clamp(min=1e-6) / most
        across = steps[:, None, None]
        return (unit.norm(values).relu() / across).round().clamp(0, most) * across, steps

    def product(weights: torch.Tensor, inputs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        steps = torch.cat([steps for _, steps in inputs])[:, None, None]
        exact = weights * steps
        largest = exact.abs().amax((1, 2, 3), keepdim=True) / factor
        sums = torch.maximum(*((sign * exact).clamp(min=0).sum((1, 2, 3), keepdim=True) for sign in (1, -1)))
        unit = torch.maximum(largest, sums / ((2**31 - 1) / most - exact.shape[1] / 2))
        unit = torch.where(unit > 0, unit, 1)
        return F.conv2d(torch.cat([values for values, _ in inputs], 1), (exact / unit).round() * unit / steps)

    def depthwise(unit: Any, values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(values, unit.depthwise, padding=1, groups=len(unit.depthwise))

    pixels = (image.astype(np.float64) - package.spec.mean) / package.spec.std
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.no_grad():
        for step in order_of(package.spec.network, config):
            node = model.nodes[step.key]
            if not step.sources:
                between = rounded(node.first, F.conv2d(x, node.first.standard, padding=1))
            else:
                inputs = [maps[name] for name in step.sources]
                if step.pooled:
                    inputs = [(F.max_pool2d(values, 2), steps) for values, steps in inputs]
                if step.low is not None:
                    values, steps = maps[step.low]
                    how: dict[str, Any] = {"mode": config.upsample}
                    how |= {"align_corners": False} if config.upsample == "bilinear" else {}
                    inputs.append((F.interpolate(values, scale_factor=2, **how), steps))
                between = rounded(node.first, depthwise(node.first, product(node.first.pointwise, inputs)))
            second = node.second
            maps[step.node] = rounded(second, depthwise(second, product(second.pointwise, [between])))
        heads = [
            product(conv.weight, [maps[0, int(j)]]) + conv.bias[:, None, None] for j, conv in model.head_convs.items()
        ]
    found: NDArray[np.float64] = torch.cat(heads).numpy()
    return found


def picture(shape: Sequence[int], kind: str = "uint8", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, tuple(shape)).astype(kind)
