"""The plain-torch definitions against direct sums and against their unfactored form, outputs and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unetpp_kernels import Resampling, depthwise_pointwise, pointwise_depthwise, upsample2x

SIZES = [(2, 2), (6, 10), (14, 4)]


def _case(height: int, width: int, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
    """Two sources, a low source and the weights of a 5+3+4 -> 6 channel unit, in fp64 with gradients."""
    g = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)

    sources = [make(2, 5, height, width), make(2, 3, height, width)]
    return sources, make(2, 4, height // 2, width // 2), make(6, 12, 1, 1), make(6, 1, 3, 3), make(6)


def _cat(sources: list[Tensor], low: Tensor, mode: Resampling) -> Tensor:
    return torch.cat([*sources, upsample2x(low, mode)], 1)


@pytest.mark.parametrize("height,width", SIZES)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_pointwise_commutes_with_upsampling(height: int, width: int, mode: Resampling) -> None:
    """The factored form equals mixing the upsampled tensor, in value and in every gradient."""
    sources, low, pointwise, depthwise, bias = _case(height, width)
    inputs = [*sources, low, pointwise, depthwise, bias]
    ours = pointwise_depthwise(sources, low, pointwise, depthwise, bias, mode=mode)
    plain = F.conv2d(F.conv2d(_cat(sources, low, mode), pointwise), depthwise, bias, padding=1, groups=6)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ours)
    for name, a, b in zip(
        ("source 0", "source 1", "low", "pointwise", "depthwise", "bias"),
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((plain * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=lambda text, n=name: f"gradient of {n}: {text}")


@pytest.mark.parametrize("side", [1, 3, 5])
def test_depthwise_pointwise_is_the_direct_sum(side: int) -> None:
    """Every output value equals the sum written out by hand over channels and taps, zero outside the image."""
    g = torch.Generator().manual_seed(side)
    x = torch.randn(1, 3, 4, 5, generator=g, dtype=torch.float64)
    depthwise = torch.randn(3, 1, side, side, generator=g, dtype=torch.float64)
    pointwise = torch.randn(2, 3, 1, 1, generator=g, dtype=torch.float64)
    bias = torch.randn(2, generator=g, dtype=torch.float64)
    ours = depthwise_pointwise([x], None, depthwise, pointwise, bias, relu=True)
    r = side // 2
    for o in range(2):
        for y in range(4):
            for col in range(5):
                total = float(bias[o])
                for c in range(3):
                    for dy in range(-r, r + 1):
                        for dx in range(-r, r + 1):
                            if 0 <= y + dy < 4 and 0 <= col + dx < 5:
                                tap = depthwise[c, 0, dy + r, dx + r] * pointwise[o, c, 0, 0]
                                total += float(tap * x[0, c, y + dy, col + dx])
                assert float(ours[0, o, y, col]) == pytest.approx(max(total, 0.0), abs=1e-12)


def test_bilinear_upsampling_has_half_pixel_centres() -> None:
    """Quarter-pixel weights 3/4 and 1/4 inside, the edge value repeated outside."""
    x = torch.tensor([0.0, 4.0, 8.0]).view(1, 1, 1, 3)
    expected = torch.tensor([0.0, 1.0, 3.0, 5.0, 7.0, 8.0])
    assert torch.equal(upsample2x(x)[0, 0, 0], expected)
    assert torch.equal(upsample2x(x)[0, 0, 1], expected)


def test_gradcheck() -> None:
    sources, low, pointwise, depthwise, bias = _case(4, 6)
    textbook = torch.randn(12, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    mix = torch.randn(6, 12, 1, 1, dtype=torch.float64, requires_grad=True)

    def first(a: Tensor, b: Tensor, c: Tensor, p: Tensor, d: Tensor, e: Tensor) -> Tensor:
        return pointwise_depthwise([a, b], c, p, d, e)

    def second(a: Tensor, b: Tensor, c: Tensor, p: Tensor, d: Tensor, e: Tensor) -> Tensor:
        return depthwise_pointwise([a, b], c, d, p, e)

    assert torch.autograd.gradcheck(first, (*sources, low, pointwise, depthwise, bias), fast_mode=True)
    assert torch.autograd.gradcheck(second, (*sources, low, mix, textbook, bias), fast_mode=True)
