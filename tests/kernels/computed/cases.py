"""Feature maps surrounded by NaN, guarded results and the error measure of the kernel tests; knows no kernel."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unetpp_kernels import forced

Function = Callable[..., Tensor]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
GUARD = 64
KINDS = [
    pytest.param(torch.float32, False, id="fp32"),
    pytest.param(torch.float16, False, id="fp16"),
    pytest.param(torch.float16, True, id="fp16-packed"),
    pytest.param(torch.bfloat16, False, id="bf16"),
    pytest.param(torch.bfloat16, True, id="bf16-packed"),
]


def feature_map(n: int, channels: int, height: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return a channels_last map that lies inside a buffer of NaN: whatever is read outside it shows."""
    generator = torch.Generator().manual_seed(seed + 31 * channels)
    values = torch.randn(n, height, width, channels, generator=generator).to(DEVICE, dtype)
    room = GUARD * max(1, width * channels)
    buffer = torch.full((values.numel() + 2 * room,), torch.nan, dtype=dtype, device=DEVICE)
    inner = buffer[room : room + values.numel()].view(n, height, width, channels)
    inner.copy_(values)
    return inner.permute(0, 3, 1, 2)


def weights(*shape: int, dtype: torch.dtype, scale: float = 1.0, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype)


def wide(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.double()


def relative(found: Tensor, truth: Tensor) -> float:
    """Return the Frobenius norm of the error over that of the truth."""
    return float((found.double() - truth).norm() / truth.norm())


def assert_as_good(found: Tensor, eager: Tensor, truth: Tensor, *, packed: bool = False) -> None:
    """Compare with the fp64 truth: not above 1.5 times the error of torch's own kernels in the same type.

    Packed sums round after each of nine taps instead of once (and the interpreter rounds product and sum apart, which
    a GPU fuses), so that their bound is 4 times; what that costs is written down in the README.
    """
    assert found.shape == truth.shape and found.dtype == eager.dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert bool(torch.isfinite(found).all()), "a value was left unwritten, or was made of pixels outside the image"
    # What rounding alone does: of the result, and in fp32, which nothing narrower hides, of weights and sums as well.
    # The interpreter rounds products and sums apart, which processors fuse, and how near torch comes depends on its
    # processor: with AVX2 and without AVX-512, two cases were 1% beyond 1.5 times half a unit.
    share = 0.25 if found.dtype != torch.float32 else 0.75 if INTERPRETED else 0.5
    floor = torch.finfo(found.dtype).eps * share
    ours, theirs = relative(found, truth), max(relative(eager, truth), floor)
    assert ours <= (4 if packed else 1.5) * theirs, f"error {ours:.2e}, torch's own {theirs:.2e}"


def assert_gradients(
    fused: Function, defined: Function, inputs: list[Tensor], dtype: torch.dtype, *, sums: int = 1
) -> None:
    """Compare each input's gradient with fp64: error at most 1.5 times that of torch's own kernels in the same type.

    Maps (4-d, not weights) come in `dtype`, weights are fp32 masters: torch's own kernels get them rounded to `dtype`.
    sums: how many sums over pixels follow each other.
    """

    def gradients(function: Function, convert: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        leaves = [convert(t).detach().requires_grad_() for t in inputs]
        y = function(*leaves)
        generator = torch.Generator().manual_seed(5)
        g = torch.randn(y.shape, generator=generator).to(DEVICE, dtype).to(y.dtype)
        return list(torch.autograd.grad(y, leaves, g)), y

    truth, y64 = gradients(defined, lambda t: t.double())
    eager, _ = gradients(defined, lambda t: t.to(dtype))
    with forced("triton"):
        ours, y = gradients(fused, lambda t: t)
    assert y.dtype == dtype and relative(y.detach(), y64.detach()) <= 4 * torch.finfo(dtype).eps
    # What rounding alone does; in fp32 the order of a sum over pixels decides as much as its last bit.
    floor = torch.finfo(dtype).eps * (sums if dtype == torch.float32 else 0.25)
    for k, (found, theirs, right) in enumerate(zip(ours, eager, truth, strict=True)):
        assert found.shape == right.shape and found.dtype == inputs[k].dtype
        assert bool(torch.isfinite(found).all()), f"input {k}: a gradient was left unwritten, or read outside the image"
        error, limit = relative(found, right), 1.5 * max(relative(theirs, right), floor)
        assert error <= limit, f"input {k}: error {error:.2e}, allowed {limit:.2e}"


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let launches write into NaN with a guard on both sides; the returned function checks that guards are whole."""
    from unetpp_kernels.gpu import arguments

    buffers: list[tuple[Tensor, int]] = []

    def empty(like: Tensor, n: int, channels: int, height: int, width: int) -> Tensor:
        count = n * channels * height * width
        room = GUARD * max(1, width * channels)
        buffer = torch.full((count + 2 * room,), torch.nan, dtype=like.dtype, device=like.device)
        buffers.append((buffer, room))
        return buffer[room : room + count].view(n, height, width, channels).permute(0, 3, 1, 2)

    def check() -> None:
        assert buffers
        for buffer, room in buffers:
            assert bool(buffer[:room].isnan().all()) and bool(buffer[-room:].isnan().all()), "written out of bounds"

    monkeypatch.setattr(arguments, "empty_map", empty)
    return check
