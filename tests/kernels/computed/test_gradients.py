"""Gradients of every operation against fp64: the kernels through autograd, odd sizes, NaN around maps and results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import unetpp_kernels
from tests.kernels.computed.cases import (
    DEVICE,
    INTERPRETED,
    Function,
    assert_gradients,
    feature_map,
    guarded,
    relative,
    weights,
)
from unetpp_kernels import Resampling, definition

__all__ = ["guarded"]  # a fixture
pytestmark = [] if INTERPRETED else pytest.mark.gpu
TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("widths", "outputs", "size", "mode"),
    [
        ((32, 32), 32, (3, 50), None),
        ((5, 3), 6, (3, 7), None),
        ((32,), 32, (4, 6), "bilinear"),
        ((3,) * 8, 33, (2, 4), "nearest"),
        ((9,), 150, (2, 2), "bilinear"),
    ],
    ids=str,
)
def test_pointwise(
    widths: tuple[int, ...],
    outputs: int,
    size: tuple[int, int],
    mode: Resampling | None,
    dtype: torch.dtype,
    guarded: Callable[[], None],
) -> None:
    height, width = size
    count = len(widths)
    maps = [feature_map(2, c, height, width, dtype, seed=k) for k, c in enumerate(widths)]
    added = [feature_map(2, outputs, height // 2, width // 2, dtype, seed=9)] if mode else []
    weight = weights(outputs, sum(widths), 1, 1, dtype=torch.float32, scale=sum(widths) ** -0.5)
    bias = weights(outputs, dtype=torch.float32)

    def run(function: Function) -> Function:
        def call(w: Tensor, b: Tensor, *rest: Tensor) -> Tensor:
            low = rest[count] if mode else None
            return function(list(rest[:count]), w, b, added=low, relu=True, mode=mode or "bilinear")

        return call

    inputs = [weight, bias, *maps, *added]
    assert_gradients(run(unetpp_kernels.pointwise_conv), run(definition.pointwise_conv), inputs, dtype)
    guarded()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("channels", "size"), [(32, (5, 40)), (5, (3, 7)), (17, (1, 1))])
def test_depthwise(channels: int, size: tuple[int, int], dtype: torch.dtype, guarded: Callable[[], None]) -> None:
    inputs = [
        weights(channels, 1, 3, 3, dtype=torch.float32, scale=1 / 3),
        weights(channels, dtype=torch.float32),
        feature_map(2, channels, *size, dtype),
    ]

    def run(function: Function) -> Function:
        return lambda w, b, x: function(x, w, b, relu=True)

    assert_gradients(run(unetpp_kernels.depthwise_conv), run(definition.depthwise_conv), inputs, dtype)
    guarded()


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each program work on many tiles, as on large maps."""
    from unetpp_kernels.gpu import launch_backward

    monkeypatch.setattr(launch_backward, "_PROGRAMS", 4)


def also_slow(*fast: object) -> list[Any]:
    """Every type, those not named as slow tests: the interpreter takes 20 s for one of these maps."""
    return [pytest.param(dtype, marks=[] if dtype in fast else pytest.mark.slow, id=str(dtype)) for dtype in TYPES]


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("dtype", also_slow(torch.float32, torch.float16))
@pytest.mark.parametrize("size", [(27, 100), (3, 70), (17, 20)], ids=str)
def test_depthwise_inside_and_at_edges(size: tuple[int, int], dtype: torch.dtype, guarded: Callable[[], None]) -> None:
    """Maps with tiles that touch no edge, with rows or columns of tiles that all do, and several tiles a program."""
    inputs = [weights(16, 1, 3, 3, dtype=torch.float32, scale=1 / 3), feature_map(2, 16, *size, dtype)]

    def run(function: Function) -> Function:
        return lambda w, x: function(x, w)

    assert_gradients(run(unetpp_kernels.depthwise_conv), run(definition.depthwise_conv), inputs, dtype)
    guarded()


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("dtype", also_slow(torch.float32))
@pytest.mark.parametrize("inner", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_depthwise_pointwise_inside_and_at_edges(inner: bool, dtype: torch.dtype, guarded: Callable[[], None]) -> None:
    inputs = [
        weights(32, 1, 3, 3, dtype=torch.float32, scale=1 / 3),
        weights(32, 32, 1, 1, dtype=torch.float32, scale=32**-0.5),
        *([weights(32, dtype=torch.float32, seed=3)] if inner else []),
        feature_map(2, 32, 8, 200, dtype),  # three rows of tiles at least, of which one is inside
    ]

    def run(function: Function) -> Function:
        def call(w: Tensor, p: Tensor, *rest: Tensor) -> Tensor:
            bias = rest[0] if inner else None
            return function([rest[-1]], None, w, p, inner_bias=bias, inner_relu=False)

        return call

    assert_gradients(run(unetpp_kernels.depthwise_pointwise), run(definition.depthwise_pointwise), inputs, dtype)
    guarded()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("widths", "low", "outputs", "size", "inner", "mode"),
    [
        ((32,), 0, 32, (3, 70), True, "bilinear"),
        ((32,), 32, 32, (4, 6), False, "bilinear"),
        ((5, 3), 4, 6, (2, 6), False, "nearest"),
        ((7,), 0, 140, (3, 2), True, "bilinear"),
        ((33,), 0, 5, (1, 1), False, "bilinear"),
    ],
    ids=str,
)
def test_depthwise_pointwise(
    widths: tuple[int, ...],
    low: int,
    outputs: int,
    size: tuple[int, int],
    inner: bool,
    mode: Resampling,
    dtype: torch.dtype,
    guarded: Callable[[], None],
) -> None:
    height, width = size
    count, channels = len(widths), sum(widths) + low
    maps = [feature_map(2, c, height, width, dtype, seed=k) for k, c in enumerate(widths)]
    maps += [feature_map(2, low, height // 2, width // 2, dtype, seed=9)] if low else []
    inputs = [
        weights(channels, 1, 3, 3, dtype=torch.float32, scale=1 / 3),
        weights(outputs, channels, 1, 1, dtype=torch.float32, scale=channels**-0.5),
        weights(outputs, dtype=torch.float32),
        *([weights(channels, dtype=torch.float32, seed=3)] if inner else []),
        *maps,
    ]

    def run(function: Function) -> Function:
        def call(w: Tensor, p: Tensor, b: Tensor, *rest: Tensor) -> Tensor:
            inner_bias, rest = (rest[0], rest[1:]) if inner else (None, rest)
            below = rest[count] if low else None
            settings = {"inner_bias": inner_bias, "inner_relu": inner, "mode": mode}
            return function(list(rest[:count]), below, w, p, b, **settings)

        return call

    assert_gradients(run(unetpp_kernels.depthwise_pointwise), run(definition.depthwise_pointwise), inputs, dtype)
    guarded()


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 1), (5, 4)], ids=str)
def test_upsampling_gathers_its_gradient(size: tuple[int, int], mode: Resampling, guarded: Callable[[], None]) -> None:
    """At edges and corners too, where the clamped neighbour's share falls to the pixel itself."""
    g = feature_map(2, 5, 2 * size[0], 2 * size[1], torch.float32)
    x = torch.zeros(2, 5, *size, dtype=torch.float64, device=DEVICE, requires_grad=True)
    definition.upsample2x(x, mode).backward(g.double())  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert relative(torch.ops.unetpp.upsample_backward(g, mode), x.grad) <= 2e-7
    guarded()


def test_two_runs_give_the_same_bits() -> None:
    maps = [feature_map(2, 32, 6, 70, torch.float16), feature_map(2, 32, 6, 70, torch.float16, seed=1)]
    g = feature_map(2, 32, 6, 70, torch.float16, seed=2)
    mix = weights(32, 64, dtype=torch.float16, scale=0.1)
    first, second = (torch.ops.unetpp.pointwise_backward(g, maps, mix) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
