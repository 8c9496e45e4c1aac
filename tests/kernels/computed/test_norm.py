"""Moments and batch norm against fp64: alone, behind every convolution, odd sizes, channels far from 0, NaN around."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import unetpp_kernels
from tests.kernels.computed.cases import (
    DEVICE,
    INTERPRETED,
    Function,
    assert_as_good,
    assert_gradients,
    feature_map,
    guarded,
    relative,
    weights,
)
from unetpp_kernels import definition, packing

__all__ = ["guarded"]  # a fixture
pytestmark = [] if INTERPRETED else pytest.mark.gpu
OPERATORS = torch.ops.unetpp
TYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(32, (5, 70)), (7, (3, 9)), (40, (1, 1)), (96, (9, 33))]


def assert_moments(found: tuple[Tensor, Tensor], y: Tensor) -> None:
    """Compare with the moments of y in fp64: what fp32 sums of that many values can lose."""
    mean, variance = definition.moments(y.double())
    assert found[0].dtype == found[1].dtype == torch.float32
    spread = (variance + mean.square()).sqrt()
    assert float(((found[0] - mean).abs() / spread).max()) <= 4e-7
    assert float(((found[1] - variance).abs() / variance.clamp(min=1e-30)).max()) <= 4e-6


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_moments(channels: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    x = feature_map(2, channels, *size, dtype)
    assert_moments(OPERATORS.moments(x), x)


def test_moments_of_channels_far_from_zero() -> None:
    """A sum of squares would have no digit of the variance left: 3000^2 has 23 bits, and of 3000 the last is 2^-12."""
    x = feature_map(2, 32, 9, 70, torch.float32).add_(3000)
    mean, variance = definition.moments(x.double())
    found = OPERATORS.moments(x)
    assert relative(found[0], mean) <= 1e-7 and relative(found[1], variance) <= 1e-4
    taps = torch.zeros(9, 32, device=DEVICE)
    taps[4] = 1
    y, *found = OPERATORS.depthwise_moments(x, taps)
    assert torch.equal(y, x)
    assert relative(found[0], mean) <= 1e-7 and relative(found[1], variance) <= 1e-4


def test_moments_of_many_parts_are_joined_in_a_fixed_order() -> None:
    x = feature_map(1, 5, 140, 130, torch.float16)
    first, second = OPERATORS.moments(x), OPERATORS.moments(x)
    assert_moments(first, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("widths", "low", "outputs", "size"),
    [
        ((32,), 0, 32, (5, 70)),
        ((32, 32), 32, 64, (4, 6)),
        ((5, 3), 4, 6, (2, 6)),
        ((7,), 0, 140, (3, 2)),
        ((32,), 0, 160, (3, 5)),
    ],
    ids=str,
)
def test_convolutions_give_the_moments_of_what_they_store(
    widths: tuple[int, ...],
    low: int,
    outputs: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    guarded: Callable[[], None],
) -> None:
    maps = [feature_map(2, c, *size, dtype, seed=k) for k, c in enumerate(widths)]
    below = feature_map(2, low, size[0] // 2, size[1] // 2, dtype, seed=9) if low else None
    channels = sum(widths) + low
    depthwise = weights(channels, 1, 3, 3, dtype=torch.float32, scale=1 / 3)
    pointwise = weights(outputs, channels, 1, 1, dtype=torch.float32, scale=channels**-0.5)
    with unetpp_kernels.forced("triton"):
        y, *found = unetpp_kernels.depthwise_pointwise_moments(maps, below, depthwise, pointwise)
    assert_moments((found[0], found[1]), y)
    assert relative(y, definition.depthwise_pointwise(*_wide(maps, below, depthwise, pointwise))) <= 8e-3
    taps = weights(outputs, 1, 3, 3, dtype=torch.float32, scale=1 / 3)
    with unetpp_kernels.forced("triton"):
        y, *found = unetpp_kernels.pointwise_depthwise_moments(maps, below, pointwise, taps)
    assert_moments((found[0], found[1]), y)
    assert relative(y, definition.pointwise_depthwise(*_wide(maps, below, pointwise, taps))) <= 8e-3
    guarded()


def _wide(maps: list[Tensor], low: Tensor | None, *rest: Tensor) -> tuple[object, ...]:
    return [x.double() for x in maps], None if low is None else low.double(), *(w.double() for w in rest)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_normalise(
    channels: int, size: tuple[int, int], relu: bool, dtype: torch.dtype, guarded: Callable[[], None]
) -> None:
    x = feature_map(2, channels, *size, dtype)
    vectors = [weights(channels, dtype=torch.float32, seed=seed) for seed in (1, 2, 3)]
    found = OPERATORS.normalise(x, *vectors, relu)
    eager = definition.normalise(x, *(v.to(dtype) for v in vectors), relu=relu)
    assert_as_good(found, eager, definition.normalise(x.double(), *(v.double() for v in vectors), relu=relu))
    guarded()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_batch_norm(
    channels: int, size: tuple[int, int], relu: bool, dtype: torch.dtype, guarded: Callable[[], None]
) -> None:
    """The result and the gradients of input, weight and bias, those through the moments among them."""
    x = feature_map(2, channels, *size, dtype)
    if size == (1, 1):
        # Of two values per channel the gradient of the input is 0 but for rounding, which nothing can be compared with.
        x = feature_map(5, channels, *size, dtype)

    def fused(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
        count = x.numel() // x.shape[1]
        return unetpp_kernels.batch_norm(x, *unetpp_kernels.moments(x), count, w, b, relu=relu)

    assert_gradients(fused, _torchs(relu), [*_affine(channels), x], dtype, sums=2)
    guarded()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("order", ["pw_dw", "dw_pw"])
@pytest.mark.parametrize(("width", "size"), [(32, (5, 40)), (6, (3, 7))])
def test_a_unit_of_the_network(
    order: str, width: int, size: tuple[int, int], dtype: torch.dtype, guarded: Callable[[], None]
) -> None:
    """Convolutions and norm against torch's own, with every gradient; a ReLU would add what chance decides at 0."""
    pointwise = weights(width, width, 1, 1, dtype=torch.float32, scale=width**-0.5)
    depthwise = weights(width, 1, 3, 3, dtype=torch.float32, scale=1 / 3)
    both = [pointwise, depthwise] if order == "pw_dw" else [depthwise, pointwise]
    name = "pointwise_depthwise" if order == "pw_dw" else "depthwise_pointwise"

    def fused(w: Tensor, b: Tensor, first: Tensor, second: Tensor, x: Tensor) -> Tensor:
        y, mean, variance = getattr(unetpp_kernels, f"{name}_moments")([x], None, first, second)
        return unetpp_kernels.batch_norm(y, mean, variance, y.numel() // y.shape[1], w, b)

    def defined(w: Tensor, b: Tensor, first: Tensor, second: Tensor, x: Tensor) -> Tensor:
        return _torchs(False)(w, b, getattr(definition, name)([x], None, first, second))

    inputs = [*_affine(width), *both, feature_map(2, width, *size, dtype)]
    assert_gradients(fused, defined, inputs, dtype, sums=2)
    guarded()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("channels", "outputs", "size"), [(32, 32, (5, 70)), (64, 128, (3, 9)), (7, 5, (3, 9))])
def test_a_product_that_reads_through_a_norm_equals_the_two_apart(
    channels: int, outputs: int, size: tuple[int, int], dtype: torch.dtype, guarded: Callable[[], None]
) -> None:
    """To the bit: what is read is rounded as it would be stored. Pixels past the last one must not join the sums."""
    x, g = feature_map(2, channels, *size, dtype), feature_map(2, outputs, *size, dtype, seed=7)
    mean, scale, shift = (weights(channels, dtype=torch.float32, seed=seed) for seed in (1, 2, 3))
    shift = shift.abs()  # so that a pixel of zeros is not one of zeros behind the norm
    mix = weights(outputs, channels, dtype=dtype, scale=channels**-0.5)
    between = OPERATORS.normalise(x, mean, scale, shift, True)
    found = OPERATORS.normalised_pointwise([x], mean, scale, shift, mix, None, None, "bilinear")
    assert torch.equal(found, OPERATORS.pointwise([between], mix, None, None, False, False, "bilinear"))
    gradients = OPERATORS.normalised_pointwise_backward(g, [x], mean, scale, shift, mix)
    for one, other in zip(gradients, OPERATORS.pointwise_backward(g, [between], mix), strict=True):
        assert torch.equal(one, other)
    guarded()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(("widths", "outputs"), [((32, 64), 32), ((32, 32, 32), 2), ((7, 3), 5)])
def test_a_node_that_reads_several_norms_equals_norms_and_product_apart(
    widths: tuple[int, ...], outputs: int, mode: str, dtype: torch.dtype, guarded: Callable[[], None]
) -> None:
    """To the bit, with a bias, and what is added from the level below; the last widths fit no row."""
    sources = [feature_map(2, width, 4, 34, dtype, seed=seed) for seed, width in enumerate(widths)]
    added, g = feature_map(2, outputs, 2, 17, dtype, seed=7), feature_map(2, outputs, 4, 34, dtype, seed=8)
    mean, scale, shift = (weights(sum(widths), dtype=torch.float32, seed=seed) for seed in (1, 2, 3))
    mix, bias = weights(outputs, sum(widths), dtype=dtype, scale=0.1), weights(outputs, dtype=torch.float32)
    own = zip(*(torch.split(vector, widths) for vector in (mean, scale, shift.abs())), strict=True)
    between = [OPERATORS.normalise(x, *(v.clone() for v in three), True) for x, three in zip(sources, own, strict=True)]
    found = OPERATORS.normalised_pointwise(sources, mean, scale, shift.abs(), mix, bias, added, mode)
    assert torch.equal(found, OPERATORS.pointwise(between, mix, bias, added, False, False, mode))
    gradients = OPERATORS.normalised_pointwise_backward(g, sources, mean, scale, shift.abs(), mix)
    for one, other in zip(gradients, OPERATORS.pointwise_backward(g, between, mix), strict=True):
        assert torch.equal(one, other)
    guarded()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("widths", "low", "outputs", "size", "mode"),
    [
        ((32,), 0, 32, (9, 130), "bilinear"),
        ((32, 64), 32, 64, (6, 10), "bilinear"),
        ((32,), 64, 128, (6, 6), "nearest"),
        ((5, 3), 4, 6, (2, 6), "nearest"),
        ((32,), 32, 160, (2, 4), "bilinear"),
    ],
    ids=str,
)
def test_a_pair_that_reads_through_norms_equals_norms_and_pair_apart(
    widths: tuple[int, ...],
    low: int,
    outputs: int,
    size: tuple[int, int],
    mode: str,
    dtype: torch.dtype,
    guarded: Callable[[], None],
) -> None:
    """To the bit: of tiles inside and at edges, where a pixel outside is 0 and not what the norm makes of 0.

    The last two fit no row. Where the blocks are others, moments are joined of other parts.
    """
    channels = sum(widths) + low
    sources = [feature_map(1, width, *size, dtype, seed=seed) for seed, width in enumerate(widths)]
    below = feature_map(1, low, size[0] // 2, size[1] // 2, dtype, seed=9) if low else None
    mean, scale, shift = (weights(channels, dtype=torch.float32, seed=seed) for seed in (1, 2, 3))
    depthwise, mix = weights(channels, 1, 3, 3, dtype=torch.float32), weights(outputs, channels, dtype=dtype, scale=0.1)
    taps = packing.taps(depthwise, torch.float32)
    phases = packing.phases(depthwise[sum(widths) :], mode, torch.float32) if low else None  # type: ignore[arg-type]
    vectors, maps = (mean, scale, shift.abs()), [*sources, *([] if below is None else [below])]
    own = zip(*(torch.split(vector, [*widths, *([low] if low else [])]) for vector in vectors), strict=True)
    stored = [OPERATORS.normalise(x, *(v.clone() for v in three), True) for x, three in zip(maps, own, strict=True)]
    found = OPERATORS.depthwise_pointwise_moments(sources, below, taps, phases, mix, mode, vectors)
    stored_low = stored.pop() if low else None
    expected = OPERATORS.depthwise_pointwise_moments(stored, stored_low, taps, phases, mix, mode, [])
    assert torch.equal(found[0], expected[0])
    assert_moments((found[1], found[2]), found[0])
    guarded()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("order", "width", "low", "size"),
    [("pw_dw", 32, 0, (5, 40)), ("pw_dw", 6, 0, (3, 7)), ("dw_pw", 32, 32, (4, 6)), ("dw_pw", 6, 4, (2, 6))],
)
def test_the_edge_between_two_units(
    order: str, width: int, low: int, size: tuple[int, int], dtype: torch.dtype, guarded: Callable[[], None]
) -> None:
    """Norms, ReLUs and the next pair of convolutions with every gradient, those through the moments among them."""
    pointwise = weights(width, width + low, 1, 1, dtype=torch.float32, scale=(width + low) ** -0.5)
    depthwise = weights(width if order == "pw_dw" else width + low, 1, 3, 3, dtype=torch.float32, scale=1 / 3)
    both = [pointwise, depthwise] if order == "pw_dw" else [depthwise, pointwise]
    name = "pointwise_depthwise" if order == "pw_dw" else "depthwise_pointwise"
    maps = [feature_map(2, width, *size, dtype)]
    maps += [feature_map(2, low, size[0] // 2, size[1] // 2, dtype, seed=9)] if low else []

    def fused(first: Tensor, second: Tensor, *rest: Tensor) -> Tensor:
        sources: list[unetpp_kernels.Map] = []
        for w, b, x in by_map(rest):
            statistics = *unetpp_kernels.moments(x), x.numel() // x.shape[1]
            sources.append(unetpp_kernels.normalised(x, *statistics, w, b))
        assert all(isinstance(source, unetpp_kernels.Normalised) for source in sources)
        below = sources.pop() if low else None
        found: Tensor = getattr(unetpp_kernels, f"{name}_moments")(sources, below, first, second)[0]
        return found

    def defined(first: Tensor, second: Tensor, *rest: Tensor) -> Tensor:
        sources = [_torchs(True)(w, b, x) for w, b, x in by_map(rest)]
        below = sources.pop() if low else None
        found: Tensor = getattr(definition, name)(sources, below, first, second)
        return found

    def by_map(rest: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [rest[k : k + 3] for k in range(0, len(rest), 3)]  # type: ignore[misc]

    inputs = [*both, *(leaf for x in maps for leaf in (*_affine(x.shape[1]), x))]
    assert_gradients(fused, defined, inputs, dtype, sums=2)
    guarded()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("channels", "size"), [(32, (6, 70)), (7, (5, 9)), (40, (2, 2)), (32, (3, 4))])
def test_pooling_through_a_norm_equals_norm_and_pooling_apart(
    channels: int, size: tuple[int, int], dtype: torch.dtype, guarded: Callable[[], None]
) -> None:
    """To the bit, forward and backward, negative scales among them, and equals both above 0 and, behind the ReLU, at 0.

    An odd map's last row and column belong to no window.
    """
    x, g = coarse(feature_map(2, channels, *size, dtype)), feature_map(2, channels, *(s // 2 for s in size), dtype)
    vectors = [weights(channels, dtype=torch.float32, seed=seed) for seed in (1, 2, 3)]
    between = OPERATORS.normalise(x, *vectors, True).requires_grad_()
    expected = F.max_pool2d(between, 2)
    assert torch.equal(OPERATORS.normalised_max_pool(x, *vectors), expected)
    (gradient,) = torch.autograd.grad(expected, between, g)
    assert torch.equal(OPERATORS.normalised_max_pool_backward(g, x, *vectors), gradient)
    guarded()


def test_pooling_what_is_no_number() -> None:
    """A gradient of it goes where torch's goes."""
    x, g = feature_map(1, 5, 6, 6, torch.float32), feature_map(1, 5, 3, 3, torch.float32)
    x[0, :, :, ::3] = torch.nan
    vectors = [torch.zeros(5, device=DEVICE), torch.ones(5, device=DEVICE), torch.ones(5, device=DEVICE)]
    between = OPERATORS.normalise(x, *vectors, True).requires_grad_()
    expected = F.max_pool2d(between, 2)
    torch.testing.assert_close(OPERATORS.normalised_max_pool(x, *vectors), expected, equal_nan=True, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(expected, between, g)
    assert torch.equal(OPERATORS.normalised_max_pool_backward(g, x, *vectors), gradient)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("channels", "size"), [(32, (5, 20)), (6, (3, 7))])
def test_a_pooled_unit(channels: int, size: tuple[int, int], dtype: torch.dtype, guarded: Callable[[], None]) -> None:
    """Norm, ReLU and pooling with every gradient: what pooling sends to a pixel at 0 the ReLU drops."""

    def fused(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
        statistics = *unetpp_kernels.moments(x), x.numel() // x.shape[1]
        return unetpp_kernels.max_pool(unetpp_kernels.normalised(x, *statistics, w, b))

    def defined(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return definition.max_pool(_torchs(True)(w, b, x))

    x = coarse(feature_map(2, channels, *size, dtype))
    assert_gradients(fused, defined, [*_affine(channels), x], dtype, sums=2)
    guarded()


def coarse(x: Tensor) -> Tensor:
    """Return x in steps of 1/2, in its memory: many equals, and no others that rounding could make so."""
    return x.copy_((x * 2).round() / 2)


def test_a_wider_filter_behind_a_norm() -> None:
    """The gradient kernels are for 3x3."""
    x, affine = feature_map(2, 6, 7, 5, torch.float32), _affine(6)
    both = weights(4, 6, 1, 1, dtype=torch.float32), weights(4, 1, 5, 5, dtype=torch.float32)
    leaves = [x, *affine, *both]
    for leaf in leaves:
        leaf.requires_grad_()
    statistics = *unetpp_kernels.moments(x.detach()), x.numel() // 6
    with unetpp_kernels.forced("triton"):
        source = unetpp_kernels.normalised(x, *statistics, *affine)
        y, *found = unetpp_kernels.pointwise_depthwise_moments([source], None, *both)
    assert_moments((found[0].detach(), found[1].detach()), y.detach())
    expected = definition.pointwise_depthwise([_torchs(True)(*affine, x)], None, *both)
    assert relative(y, expected.double()) <= 1e-6
    direction = torch.randn(y.shape)
    for ours, theirs in zip(
        torch.autograd.grad(y, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True
    ):
        assert relative(ours, theirs.double()) <= 1e-5


def _affine(channels: int) -> list[Tensor]:
    return [weights(channels, dtype=torch.float32) + 2, weights(channels, dtype=torch.float32, seed=4)]


def _torchs(relu: bool) -> Function:
    def call(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
        y = F.batch_norm(x, None, None, w, b, training=True)
        return F.relu(y) if relu else y

    return call


def test_two_runs_give_the_same_bits() -> None:
    x, g = feature_map(2, 32, 9, 70, torch.float16), feature_map(2, 32, 9, 70, torch.float16, seed=1)
    vectors = [weights(32, dtype=torch.float32, seed=seed) for seed in (1, 2, 3)]
    first, second = (OPERATORS.normalise_sums(g, x, *vectors, True) for _ in range(2))
    assert torch.equal(first, second)
