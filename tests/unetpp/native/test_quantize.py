"""Weights for maps of bytes: whole numbers, in units that norms give. Whole networks are compared in test_stream.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unetpp.native.machine import lively
from unetpp.native.quantize import byte_weights
from unetpp.native.weights import folded_weights
from unetpp.package import Package

MakePackage = Callable[..., Package]


def reach(package: Package, unit: str) -> Any:
    norm = package.load_model().state_dict()
    beta, gamma = (norm[f"{unit}.norm.{name}"].double().numpy() for name in ("bias", "weight"))
    return np.maximum(beta + 12 * np.abs(gamma), 1e-6) / 255


@pytest.mark.parametrize("config", [{}, {"network": "unet"}, {"filters": (4, 8, 8, 12), "level": 2}], ids=str)
def test_pointwise_weights_are_whole_and_nothing_else_is_missing(
    make_package: MakePackage, config: dict[str, Any]
) -> None:
    package = lively(make_package(**config))
    found, folded = byte_weights(package), folded_weights(package)
    heads = {name.removesuffix(".weight") for name in folded if name.startswith("head") and name.endswith(".weight")}
    assert found.keys() == folded.keys() | {f"{head}.scale" for head in heads} and heads
    for name, values in found.items():
        assert values.dtype == np.float32 and (name.endswith(".scale") or values.shape == folded[name].shape)
        if name.endswith(".pointwise") or (name.startswith("head") and name.endswith(".weight")):
            np.testing.assert_array_equal(values, np.rint(values))
            assert (np.abs(values).max((1, 2, 3)) == 127).all(), "an output does not use its weights' range"


def test_units_are_those_of_the_norms(make_package: MakePackage) -> None:
    """X^{0,1} of a depth of one, by hand: what multiplies a byte, and what a sum is worth."""
    package = lively(make_package(filters=(4, 8)))
    found, folded = byte_weights(package), folded_weights(package)
    inputs = np.concatenate([reach(package, "nodes.0_0.second"), reach(package, "nodes.1_0.second")])
    between = reach(package, "nodes.0_1.first")
    exact = folded["nodes.0_1.first.pointwise"][:, :, 0, 0] * inputs
    sums = np.abs(exact).max(1) / 127
    whole = found["nodes.0_1.first.pointwise"][:, :, 0, 0]
    assert np.abs(whole - exact / sums[:, None]).max() <= 0.5 + 1e-6
    depthwise = folded["nodes.0_1.first.depthwise"] * (sums / between)[:, None, None, None]
    np.testing.assert_allclose(found["nodes.0_1.first.depthwise"], depthwise, rtol=1e-6)
    np.testing.assert_allclose(found["nodes.0_1.first.bias"], folded["nodes.0_1.first.bias"] / between, rtol=1e-6)
    stem = reach(package, "nodes.0_0.first")
    standard = folded["nodes.0_0.first.standard"] / stem[:, None, None, None]
    np.testing.assert_allclose(found["nodes.0_0.first.standard"], standard, rtol=1e-6)
    head = folded["head_convs.1.weight"][:, :, 0, 0] * reach(package, "nodes.0_1.second")
    np.testing.assert_allclose(found["head_convs.1.scale"], np.abs(head).max(1) / 127, rtol=1e-6)


def test_channels_that_never_fire_and_outputs_without_weights(make_package: MakePackage) -> None:
    """Neither divides by zero: the first stay 0, the others are their bias."""

    def change(model: Any) -> None:
        norm = model.nodes["0_0"].second.norm
        norm.weight[1], norm.bias[1] = 0.01, -5.0
        model.nodes["1_0"].first.pointwise[3] = 0

    package = lively(make_package(filters=(4, 8)), change)
    found = byte_weights(package)
    assert all(np.isfinite(values).all() for values in found.values())
    assert not found["nodes.1_0.first.pointwise"][3].any()
    assert not found["nodes.0_1.first.pointwise"][:, 1].any(), "what is never there needs no weight"
