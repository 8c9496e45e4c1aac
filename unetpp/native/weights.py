"""Reads a package's weights without torch and orders them as the machine code reads them; knows no image.

Names and shapes are those of `unetpp.model`; batch norms are folded as `unetpp.model.fold` does.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import ModelPackageError
from unetpp.model.order import order_of
from unetpp.native.memory import aligned
from unetpp.native.rows import Sources, on_tiles, vectors_at_once
from unetpp.native.target import Target
from unetpp.package import ModelSpec, Package, package_digest

Weights = dict[str, NDArray[np.float32]]
_EPSILON: Final = 1e-5
"""Of `unetpp.model.batch_norm.BatchNorm2d`."""
_KINDS: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_UNUSED: Final = ".num_batches_tracked"
"""What training counts."""


def read_weights(package: Package) -> Weights:
    """Return the weights of every unit and norm, by the names of `unetpp.model`, as float32.

    Raises:
        ModelPackageError: they are damaged, do not fit the network, or changed since the package was opened.
    """
    from unetpp.package import WEIGHTS

    path = package.folder / WEIGHTS
    try:
        found = _read(path.read_bytes())
        changed = package_digest(package.folder) != package.digest
    except (OSError, ValueError) as error:
        raise ModelPackageError(f"{path} cannot be read: {error}") from error
    if changed:
        raise ModelPackageError(f"{package.folder} changed since it was opened; run the command again")
    expected = expected_shapes(package.spec)
    for name in sorted(expected.keys() ^ found.keys()):
        where = "is missing" if name in expected else "is none of the network's"
        raise ModelPackageError(f"{path} does not fit model.json: {name} {where}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ModelPackageError(f"{path} does not fit model.json: {name} is {found[name].shape}, expected {shape}")
    return found


def folded_weights(package: Package) -> Weights:
    """Return the weights of every unit without its norm; errors: `read_weights`, and those that are not finite."""
    from unetpp.package import WEIGHTS

    found = read_weights(package)
    folded = _fold(found) if package.spec.architecture.norm == "batch" else found
    for name, values in (*found.items(), *folded.items()):
        if not np.isfinite(values).all():
            where = package.folder / WEIGHTS
            raise ModelPackageError(f"{where}: {name} is not finite; its training diverged, train at a smaller rate")
    return folded


def _read(content: bytes) -> Weights:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    found = {}
    for name, facts in tensors:
        if name.endswith(_UNUSED):
            continue
        if facts["dtype"] not in _KINDS:
            raise ValueError(f"{name} is of type {facts['dtype']}, none of {', '.join(_KINDS)}")
        values = np.frombuffer(facts["data"], _KINDS[facts["dtype"]]).reshape(facts["shape"])
        if facts["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # what becomes infinite is found later
            found[name] = values.astype(np.float32)
    return found


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the weights of a `pw_dw` network with their shapes."""
    config, shapes = spec.architecture, dict[str, tuple[int, ...]]()

    def unit(name: str, inputs: int, outputs: int, standard: bool) -> None:
        if standard:
            shapes[f"{name}.standard"] = (outputs, inputs, 3, 3)
        else:
            shapes[f"{name}.pointwise"] = (outputs, inputs, 1, 1)
            shapes[f"{name}.depthwise"] = (outputs, 1, 3, 3)
        if config.norm == "batch":
            shapes.update({f"{name}.norm.{key}": (outputs,) for key in _NORM})
        else:
            shapes[f"{name}.bias"] = (outputs,)

    heads = set()
    for step in order_of(spec.network, config):
        i, j = step.node
        outputs = config.filters[i]
        if j == 0:
            inputs = config.bands if i == 0 else config.filters[i - 1]
        else:
            inputs = outputs * len(step.sources) + config.filters[i + 1]
        unit(f"nodes.{step.key}.first", inputs, outputs, step.node == (0, 0))
        unit(f"nodes.{step.key}.second", outputs, outputs, False)
        if i == 0 and j > 0 and (config.deep_supervision or j == config.last):
            heads.add(j)
    for j in heads:
        shapes[f"head_convs.{j}.weight"] = (config.classes, config.filters[0], 1, 1)
        shapes[f"head_convs.{j}.bias"] = (config.classes,)
    return shapes


_NORM: Final = ("weight", "bias", "running_mean", "running_var")


def _fold(found: Weights) -> Weights:
    """Return weights without norms: w' = s w and bias = beta - s mean, with s = gamma / sqrt(variance + epsilon)."""
    folded = {name: value for name, value in found.items() if ".norm." not in name}
    for name in (name.removesuffix(".norm.weight") for name in found if name.endswith(".norm.weight")):
        gamma, beta, mean, variance = (found[f"{name}.norm.{key}"] for key in _NORM)
        with np.errstate(invalid="ignore", divide="ignore"):  # a variance below 0: the caller says so
            scale = gamma / np.sqrt(variance + np.float32(_EPSILON))
        last = f"{name}.standard" if f"{name}.standard" in found else f"{name}.depthwise"
        folded[last] = found[last] * scale[:, None, None, None]
        folded[f"{name}.bias"] = beta - mean * scale
    return folded


def pack_pointwise(
    weights: NDArray[np.float32], target: Target, outputs: int, sources: Sources, channels: int
) -> NDArray[Any]:
    """Return the weights of a pointwise convolution in the order of `rows.pointwise`.

    Args:
        weights: (O, sources x C); whole numbers, where maps are.
        outputs: O, padded.
        sources: what is read; its channels are C, padded.
        channels: C.
    """
    count = weights.shape[1] // channels
    full = np.zeros((count, sources.channels, outputs), np.float32)
    full[:, :channels, : weights.shape[0]] = weights.reshape(-1, count, channels).transpose(1, 2, 0)
    if on_tiles(target, sources, outputs):
        # (block of outputs, source, step, pair of inputs, output, which of the pair)
        tiles = full.reshape(count, sources.channels // 32, 16, 2, outputs // 32, 32).transpose(4, 0, 1, 2, 5, 3)
        return aligned(to_bf16(tiles).ravel())
    block = vectors_at_once(target, outputs) * target.lanes
    together = target.together if sources.stored else 1
    # (block of outputs, source, step, output, which of those that are summed together)
    packed = full.reshape(count, sources.channels // together, together, outputs // block, block)
    packed = packed.transpose(3, 0, 1, 4, 2).ravel()
    if together == 1:
        return aligned(packed)
    return aligned(to_bf16(packed) if target.stored == "bf16" else packed.astype(f"i{target.size}"))


def pack_depthwise(weights: NDArray[np.float32], outputs: int) -> NDArray[Any]:
    """Return (O, 1, 3, 3) as (9, O padded)."""
    return aligned(padded(weights.reshape(len(weights), 9).T, outputs))


def padded(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return values with zeros behind them along the last axis."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, size - values.shape[-1])])


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of float32 numbers rounded to bf16, to the even one of two that are equally near."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
