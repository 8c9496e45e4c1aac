"""The faults of Triton's interpreter that `mend` mends: when one of these fails, upstream has mended it itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.computed import mend


@triton.jit
def product_kernel(a, b, c, S: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, S)
    square = i[:, None] * S + i[None, :]
    tl.store(c + square, tl.dot(tl.load(a + square), tl.load(b + square)))


@triton.jit
def rounding_kernel(x, y, S: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, S)
    tl.store(y + i, tl.load(x + i).to(tl.bfloat16))


def _product_error() -> float:
    a = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    c = torch.zeros(16, 16)
    product_kernel[(1,)](a, a, c, 16)
    return float((c - a.float() @ a.float()).abs().max())


def _rounding_differs() -> bool:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(64, dtype=torch.bfloat16)
    rounding_kernel[(1,)](x, y, 64)
    return not torch.equal(y, x.bfloat16())


@pytest.mark.faulty
def test_bf16_products_are_still_wrong() -> None:
    assert _product_error() > 1


@pytest.mark.faulty
def test_rounding_to_bf16_still_cuts_off() -> None:
    assert _rounding_differs()


def test_mended() -> None:
    assert _product_error() < 1e-4
    assert not _rounding_differs()


def test_rounding_is_torchs() -> None:
    x = np.concatenate([np.random.default_rng(0).normal(size=999).astype(np.float32), [np.inf, -np.inf, 0, -0.0]])
    ours = torch.from_numpy(mend.narrow(x).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(ours, torch.from_numpy(x.astype(np.float32)).bfloat16())
