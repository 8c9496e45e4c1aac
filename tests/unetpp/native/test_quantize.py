"""Weights for maps of whole numbers, in units that norms give. Whole networks are compared in test_stream.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unetpp.native.machine import lively
from unetpp.native.quantize import whole_weights
from unetpp.native.support import WHOLE
from unetpp.native.weights import folded_weights
from unetpp.package import Package

MakePackage = Callable[..., Package]
MOST = {"int16": 32767, "int8": 255}
FACTOR = {"int16": 32767, "int8": 127}
SUMS = 2**31 - 1


def reach(package: Package, unit: str, stored: str) -> Any:
    norm = package.load_model().state_dict()
    beta, gamma = (norm[f"{unit}.norm.{name}"].double().numpy() for name in ("bias", "weight"))
    return np.maximum(beta + {"int16": 48, "int8": 12}[stored] * np.abs(gamma), 1e-6) / MOST[stored]


def products(found: dict[str, Any]) -> list[str]:
    return [name for name in found if name.endswith(".pointwise") or (name[:4] == "head" and name[-7:] == ".weight")]


def sums(weights: Any, stored: str) -> Any:
    """Return the largest sums, of either sign, that maps can lead to."""
    return MOST[stored] * np.maximum(np.maximum(weights, 0).sum((1, 2, 3)), np.maximum(-weights, 0).sum((1, 2, 3)))


@pytest.mark.parametrize("stored", WHOLE)
@pytest.mark.parametrize("config", [{}, {"network": "unet"}, {"filters": (4, 8, 8, 12), "level": 2}], ids=str)
def test_pointwise_weights_are_whole_and_nothing_else_is_missing(
    make_package: MakePackage, config: dict[str, Any], stored: str
) -> None:
    package = lively(make_package(**config))
    found, folded = whole_weights(package, stored), folded_weights(package)
    heads = {name.removesuffix(".weight") for name in folded if name.startswith("head") and name.endswith(".weight")}
    assert found.keys() == folded.keys() | {f"{head}.scale" for head in heads} and heads
    for name, values in found.items():
        assert values.dtype == np.float32 and (name.endswith(".scale") or values.shape == folded[name].shape)
    for name in products(found):
        values = found[name].astype(np.float64)
        np.testing.assert_array_equal(values, np.rint(values))
        largest, most = np.abs(values).max((1, 2, 3)), sums(values, stored)
        assert (largest <= FACTOR[stored]).all() and (most <= SUMS).all()
        slack = MOST[stored] * values.shape[1]  # half of it for rounding, half for what rounding may take
        assert ((largest == FACTOR[stored]) | (most >= SUMS - slack)).all(), "an output does not use its weights' range"


def test_sums_of_words_fill_31_bits(make_package: MakePackage) -> None:
    """With so many inputs weights must be smaller than words can be. Those of bytes never need to."""
    package = lively(make_package(filters=(64, 96)))
    for stored, fills in (("int16", True), ("int8", False)):
        wide = whole_weights(package, stored)["nodes.0_1.first.pointwise"].astype(np.float64)
        assert (sums(wide, stored) > 0.95 * SUMS).all() == fills
        assert (np.abs(wide).max((1, 2, 3)) < FACTOR[stored]).all() == fills


@pytest.mark.parametrize("stored", WHOLE)
def test_units_are_those_of_the_norms(make_package: MakePackage, stored: str) -> None:
    """X^{0,1} of a depth of one, by hand: what multiplies a step, and what a sum is worth."""
    package = lively(make_package(filters=(4, 8)))
    found, folded = whole_weights(package, stored), folded_weights(package)
    inputs = np.concatenate([reach(package, f"nodes.{node}.second", stored) for node in ("0_0", "1_0")])
    between = reach(package, "nodes.0_1.first", stored)

    def unit(exact: Any) -> Any:
        least = np.maximum(np.maximum(exact, 0).sum(1), np.maximum(-exact, 0).sum(1))
        return np.maximum(
            np.abs(exact).max(1) / FACTOR[stored], least / (SUMS / MOST[stored] - exact.shape[1] / 2)
        )  # fmt: skip

    exact = folded["nodes.0_1.first.pointwise"][:, :, 0, 0] * inputs
    whole = found["nodes.0_1.first.pointwise"][:, :, 0, 0]
    assert np.abs(whole - exact / unit(exact)[:, None]).max() <= 0.5 + 1e-6
    depthwise = folded["nodes.0_1.first.depthwise"] * (unit(exact) / between)[:, None, None, None]
    np.testing.assert_allclose(found["nodes.0_1.first.depthwise"], depthwise, rtol=1e-6)
    np.testing.assert_allclose(found["nodes.0_1.first.bias"], folded["nodes.0_1.first.bias"] / between, rtol=1e-6)
    stem = reach(package, "nodes.0_0.first", stored)
    standard = folded["nodes.0_0.first.standard"] / stem[:, None, None, None]
    np.testing.assert_allclose(found["nodes.0_0.first.standard"], standard, rtol=1e-6)
    head = folded["head_convs.1.weight"][:, :, 0, 0] * reach(package, "nodes.0_1.second", stored)
    np.testing.assert_allclose(found["head_convs.1.scale"], unit(head), rtol=1e-6)


@pytest.mark.parametrize("stored", WHOLE)
def test_channels_that_never_fire_and_outputs_without_weights(make_package: MakePackage, stored: str) -> None:
    """Neither divides by zero: the first stay 0, the others are their bias."""

    def change(model: Any) -> None:
        norm = model.nodes["0_0"].second.norm
        norm.weight[1], norm.bias[1] = 0.01, -5.0
        model.nodes["1_0"].first.pointwise[3] = 0

    package = lively(make_package(filters=(4, 8)), change)
    found = whole_weights(package, stored)
    assert all(np.isfinite(values).all() for values in found.values())
    assert not found["nodes.1_0.first.pointwise"][3].any()
    assert not found["nodes.0_1.first.pointwise"][:, 1].any(), "what is never there needs no weight"
