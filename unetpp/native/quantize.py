"""Weights of a network whose maps are bytes, from its batch norms alone; knows no image and no order in memory.

A byte counts steps of its channel. How long one is, the channel's batch norm says: before the ReLU, values lay around
beta with the standard deviation gamma in training (as in Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", arXiv:1906.04721). So no images are needed, and every trained model can be used.

A pointwise convolution multiplies bytes with whole weights. Its sums are exact, in steps of their own per output. The
depthwise convolution behind it is computed in float32, and has both steps in its weights: nothing is rescaled while a
network runs.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetpp.model.order import order_of
from unetpp.native.weights import Weights, folded_weights, read_weights
from unetpp.package import Package

DEVIATIONS: Final = 12
"""What a channel reaches: beta + 12 gamma. On validation images of the bundled models 8 is nearest to fp32 (0.05% and
0.5% of labels differ), but a slide stained otherwise reaches further: there 2.7% differ with 8, 1.0% with 12."""
_BYTE: Final = 255
_WEIGHT: Final = 127
_LEAST: Final = 1e-6
"""Of what a channel reaches: some never get above zero."""

Steps = NDArray[np.float64]


def byte_weights(package: Package) -> Weights:
    """Return folded weights in which those of pointwise convolutions are whole numbers from -127 to 127.

    All names are those of `folded_weights`, and `head_convs.{j}.scale` (K,): logits are scale x sums + bias.

    Raises:
        ModelPackageError: see `folded_weights`.
    """
    found, norms = dict(folded_weights(package)), read_weights(package)
    maps: dict[Any, Steps] = {}
    for step in order_of(package.spec.network, package.spec.architecture):
        first, second = (f"nodes.{step.key}.{unit}" for unit in ("first", "second"))
        between, maps[step.node] = _steps(norms, first), _steps(norms, second)
        if step.sources:
            read = [maps[name] for name in step.sources] + ([maps[step.low]] if step.low is not None else [])
            _quantize_unit(found, first, np.concatenate(read), between)
        else:
            _scale(found, f"{first}.standard", 1 / between)
            _scale(found, f"{first}.bias", 1 / between)
        _quantize_unit(found, second, between, maps[step.node])
    for name in [name for name in found if name.startswith("head_convs.") and name.endswith(".weight")]:
        head = name.removesuffix(".weight")
        j = int(head.rpartition(".")[2])
        found[name], scale = _whole(found[name], maps[(0, j)])
        found[f"{head}.scale"] = scale.astype(np.float32)
    return found


def _steps(norms: Weights, unit: str) -> Steps:
    """Return the length of a step of every channel that a unit makes."""
    gamma, beta = (norms[f"{unit}.norm.{name}"].astype(np.float64) for name in ("weight", "bias"))
    reach: Steps = np.maximum(beta + DEVIATIONS * np.abs(gamma), _LEAST)
    return reach / _BYTE


def _quantize_unit(found: Weights, unit: str, inputs: Steps, outputs: Steps) -> None:
    """Have a unit read bytes of these steps and make bytes of those."""
    name = f"{unit}.pointwise"
    found[name], sums = _whole(found[name], inputs)
    _scale(found, f"{unit}.depthwise", sums / outputs)
    _scale(found, f"{unit}.bias", 1 / outputs)


def _whole(weights: NDArray[np.float32], inputs: Steps) -> tuple[NDArray[np.float32], Steps]:
    """Return (O, C, 1, 1) whole numbers, and the steps (O,) of their sums over bytes."""
    exact = weights * inputs[:, None, None]
    largest = np.abs(exact).max(axis=(1, 2, 3))
    steps = np.where(largest > 0, largest, 1) / _WEIGHT
    return np.rint(exact / steps[:, None, None, None]).astype(np.float32), steps


def _scale(found: Weights, name: str, factors: Steps) -> None:
    value = found[name]
    found[name] = (value * factors.reshape(-1, *(1,) * (value.ndim - 1))).astype(np.float32)
