"""Weights of a network whose maps are whole numbers, from its batch norms alone; knows no image and no order in memory.

A map counts steps of its channel. How long one is, the channel's batch norm says: before the ReLU, values lay around
beta with the standard deviation gamma in training (as in Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", arXiv:1906.04721). So no images are needed, and every trained model can be used.

A pointwise convolution multiplies maps with whole weights. Its sums are exact, in steps of their own per output. The
depthwise convolution behind it is computed in float32, and has both steps in its weights: nothing is rescaled while a
network runs.

How far channels reach is a choice between short steps and values beyond the end of the scale. Bytes reach to beta + 12
gamma: on validation images of the bundled models 8 is nearest to fp32 (0.05% and 0.5% of labels differ), but a slide
stained otherwise reaches further: there 2.7% differ with 8, 1.0% with 12. Words have steps to spare: of that slide's
labels 0.54% differ with 12 gamma in 14 bits, 0.02% with 24 in 14 or 48 in 15 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetpp.model.order import order_of
from unetpp.native.target import MOST_BYTE, MOST_WORD
from unetpp.native.weights import Weights, folded_weights, read_weights
from unetpp.package import Package

_LEAST: Final = 1e-6
"""Of what a channel reaches: some never get above zero."""
_MOST_SUM: Final = (1 << 31) - 1

Steps = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Whole numbers of a kind.

    Attributes:
        deviations: a channel reaches beta + deviations x gamma.
        map, weight: the largest numbers of each; those of maps are positive.
    """

    deviations: float
    map: int
    weight: int


_SCALES: Final = {"int16": _Scale(48, MOST_WORD, MOST_WORD), "int8": _Scale(12, MOST_BYTE, 127)}


def whole_weights(package: Package, stored: str) -> Weights:
    """Return folded weights for maps of "int16" or "int8"; those of pointwise convolutions are whole numbers.

    They are as large as a word (15 bits and a sign) or a byte (7 and a sign) and sums of 31 bits allow. All names are
    those of `folded_weights`, and `head_convs.{j}.scale` (K,): logits are scale x sums + bias.

    Raises:
        ModelPackageError: see `folded_weights`.
    """
    found, norms, scale = dict(folded_weights(package)), read_weights(package), _SCALES[stored]
    maps: dict[Any, Steps] = {}
    for step in order_of(package.spec.network, package.spec.architecture):
        first, second = (f"nodes.{step.key}.{unit}" for unit in ("first", "second"))
        between, maps[step.node] = _steps(norms, first, scale), _steps(norms, second, scale)
        if step.sources:
            read = [maps[name] for name in step.sources] + ([maps[step.low]] if step.low is not None else [])
            _quantize_unit(found, first, np.concatenate(read), between, scale)
        else:
            _multiply(found, f"{first}.standard", 1 / between)
            _multiply(found, f"{first}.bias", 1 / between)
        _quantize_unit(found, second, between, maps[step.node], scale)
    for name in [name for name in found if name.startswith("head_convs.") and name.endswith(".weight")]:
        head = name.removesuffix(".weight")
        j = int(head.rpartition(".")[2])
        found[name], sums = _whole(found[name], maps[(0, j)], scale)
        found[f"{head}.scale"] = sums.astype(np.float32)
    return found


def _steps(norms: Weights, unit: str, scale: _Scale) -> Steps:
    """Return the length of a step of every channel that a unit makes."""
    gamma, beta = (norms[f"{unit}.norm.{name}"].astype(np.float64) for name in ("weight", "bias"))
    reach: Steps = np.maximum(beta + scale.deviations * np.abs(gamma), _LEAST)
    return reach / scale.map


def _quantize_unit(found: Weights, unit: str, inputs: Steps, outputs: Steps, scale: _Scale) -> None:
    """Have a unit read maps of these steps and make maps of those."""
    name = f"{unit}.pointwise"
    found[name], sums = _whole(found[name], inputs, scale)
    _multiply(found, f"{unit}.depthwise", sums / outputs)
    _multiply(found, f"{unit}.bias", 1 / outputs)


def _whole(weights: NDArray[np.float32], inputs: Steps, scale: _Scale) -> tuple[NDArray[np.float32], Steps]:
    """Return (O, C, 1, 1) whole numbers, and the steps (O,) of their sums over maps.

    No sum passes 31 bits, though on the way it may: integers come round again. The largest one has every map of a
    positive weight at its end and all others at zero, or the other way round; rounding adds a half to each weight.
    """
    exact = weights * inputs[:, None, None]
    sums = [np.maximum(sign * exact, 0).sum(axis=(1, 2, 3)) for sign in (1, -1)]
    most = _MOST_SUM / scale.map - exact.shape[1] / 2
    steps = np.maximum(np.abs(exact).max(axis=(1, 2, 3)) / scale.weight, np.maximum(*sums) / most)
    steps = np.where(steps > 0, steps, 1)
    return np.rint(exact / steps[:, None, None, None]).astype(np.float32), steps


def _multiply(found: Weights, name: str, factors: Steps) -> None:
    value = found[name]
    found[name] = (value * factors.reshape(-1, *(1,) * (value.ndim - 1))).astype(np.float32)
