"""Which networks and CPUs are refused, and in which words."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from unetpp.native import support
from unetpp.native.rows import RAW
from unetpp.native.support import SAMPLES, why_no_cpu, why_not
from unetpp.native.target import Target
from unetpp.package import Package


@pytest.fixture
def any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "target_of", lambda precision: Target(16))


@pytest.mark.usefixtures("any_cpu")
@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({}, None),
        ({"network": "unet", "upsample": "nearest", "norm": "none"}, None),
        ({"conv": "dw_pw"}, "dw_pw"),
        ({"conv": "standard"}, "standard"),
        ({"upsample": "deconv"}, "deconvolution"),
    ],
)
def test_networks(make_package: Callable[..., Package], config: dict[str, Any], word: str | None) -> None:
    reason = why_not(make_package(**config).spec, "fp32")
    assert reason is None if word is None else word in str(reason)


@pytest.mark.usefixtures("any_cpu")
def test_a_node_has_places_for_sixteen_sources(make_package: Callable[..., Package]) -> None:
    spec = make_package().spec
    for depth, fits in ((16, True), (17, False)):
        deep = dataclasses.replace(spec.architecture, filters=(1,) * (depth + 1))
        assert (why_not(dataclasses.replace(spec, architecture=deep), "fp32") is None) is fits


@pytest.mark.usefixtures("any_cpu")
def test_sample_types(make_package: Callable[..., Package]) -> None:
    """A package may name another type, which nobody checks when it is read."""
    assert set(SAMPLES) == set(RAW)
    spec = make_package().spec
    other: Any = "int16"
    assert "int16" in str(why_not(dataclasses.replace(spec, dtype=other), "fp32"))
    for kind in SAMPLES:
        known: Any = kind
        assert why_not(dataclasses.replace(spec, dtype=known), "fp32") is None


def test_cpus(monkeypatch: pytest.MonkeyPatch, make_package: Callable[..., Package]) -> None:
    monkeypatch.setattr(support, "target_of", lambda precision: f"no {precision} here")
    assert why_no_cpu("bf16") == "no bf16 here" == why_not(make_package().spec, "bf16")
    find = importlib.util.find_spec
    monkeypatch.setattr(support, "find_spec", lambda name: None if name == "llvmlite" else find(name))
    assert "llvmlite" in str(why_no_cpu("fp32"))
