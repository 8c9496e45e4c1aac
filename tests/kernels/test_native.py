"""torch's own batch norm with moments from outside: as near to fp64 as torch's whole one, on maps of several ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unetpp_kernels import batch_norm, definition, moments, native

SHAPE = (3, 5, 47, 61)


def maps(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=draw) * torch.rand(5, 1, 1, generator=draw) + torch.randn(5, 1, 1, generator=draw)
    found = [x.to(dtype), torch.randn(SHAPE, generator=draw).to(dtype)]
    x, gradient = (value.to(memory_format=torch.channels_last) for value in found)
    return x, gradient


def gradients(x: Tensor, gradient: Tensor, parts: int) -> list[Tensor]:
    """Result and gradients of x, weight and bias of a batch norm whose moments are those of `parts` such maps."""
    x = x.clone().requires_grad_()
    weight, bias = (torch.linspace(*ends, 5, dtype=torch.float64).to(definition.sum_type(x.dtype)) for ends in
                    ((0.5, 1.5), (-1, 1)))  # fmt: skip
    weight.requires_grad_(), bias.requires_grad_()
    mean, variance = moments(x)
    total = (lambda sums: sums.mul_(parts)) if parts > 1 else None
    y = batch_norm(x, mean, variance, parts * x.numel() // 5, weight, bias, total=total)
    y.backward(gradient)
    assert x.grad is not None and weight.grad is not None and bias.grad is not None
    return [y.detach(), x.grad, weight.grad, bias.grad]


def torchs(x: Tensor, gradient: Tensor) -> list[Tensor]:
    norm = nn.BatchNorm2d(5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(gradient)
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    return [y.detach(), x.grad, norm.weight.grad, norm.bias.grad]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_results_and_gradients_are_those_of_fp64(dtype: torch.dtype, parts: int) -> None:
    """With the error that torch's own norm has of one rank, at most half as much again.

    The gradient of a half-precision map is the sum of two rounded parts: its error may be twice torch's.
    """
    x, gradient = maps(dtype)
    assert native.suits(x) and not native.suits(x.double()) and not native.suits(x, relu=True)
    found, exact = gradients(x, gradient, parts), gradients(x.double(), gradient.double(), parts)
    theirs, alone = torchs(x, gradient), gradients(x.double(), gradient.double(), 1)
    assert found[0].dtype == found[1].dtype == dtype and found[1].is_contiguous(memory_format=torch.channels_last)
    factors = (1.5, 1.5 if dtype == torch.float32 else 2, 1.5, 1.5)
    for factor, value, expected, their, their_expected in zip(factors, found, exact, theirs, alone, strict=True):
        bound = factor * (their.double() - their_expected).abs().max()
        assert (value.double() - expected).abs().max() <= bound + 1e-7


def test_small_and_empty_maps_are_left_to_the_definitions() -> None:
    assert not native.suits(torch.zeros(1, 3, 60, 60)) and not native.suits(torch.zeros(0, 3, 90, 90))
    assert native.suits(torch.zeros(1, 3, 64, 64))
