"""Gradients as autograd sees them: gradcheck, opcheck, checkpointing, autocast, compile and a training run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unetpp_kernels
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.model.config import Conv
from unetpp_kernels import Map, Resampling, forced, packing

OPERATORS = torch.ops.unetpp


def _wide(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def _functions() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    a, b, low = _wide(1, 3, 4, 6), _wide(1, 2, 4, 6), _wide(1, 2, 2, 3)
    functions: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "inner step": (
            lambda a, b, d, p, o, i: unetpp_kernels.depthwise_pointwise(
                [a, b], None, d, p, o, inner_bias=i, inner_relu=True
            ),
            (a, b, _wide(5, 1, 3, 3), _wide(4, 5, 1, 1), _wide(4), _wide(5)),
        ),
        "pooled": (
            lambda a, b, p, o: unetpp_kernels.pointwise_conv([a, b], p, o, pool=True),
            (a, b, _wide(4, 5, 1, 1), _wide(4)),
        ),
        "large filter": (
            lambda a, d, p: unetpp_kernels.depthwise_pointwise([a], None, d, p, stride=2, dilation=2),
            (a, _wide(3, 1, 5, 5), _wide(2, 3, 1, 1)),
        ),
    }
    for relu in (False, True):
        functions[f"batch norm, ReLU {relu}"] = (
            lambda a, w, o, r=relu: unetpp_kernels.batch_norm(a, *unetpp_kernels.moments(a), 24, w, o, relu=r),
            (a, _wide(3), _wide(3)),
        )
    functions["dw_pw and its norm"] = (
        lambda a, b, low, d, p: unetpp_kernels.batch_norm(
            *unetpp_kernels.depthwise_pointwise_moments([a, b], low, d, p), 24
        ),
        (a, b, low, _wide(7, 1, 3, 3), _wide(4, 7, 1, 1)),
    )
    functions["pw_dw and its norm"] = (
        lambda a, b, low, p, d: unetpp_kernels.batch_norm(
            *unetpp_kernels.pointwise_depthwise_moments([a, b], low, p, d), 24
        ),
        (a, b, low, _wide(4, 7, 1, 1), _wide(4, 1, 3, 3)),
    )

    def affine(channels: int) -> tuple[Tensor, Tensor]:
        return _wide(channels), _wide(channels)

    functions["dw_pw behind norms"] = (
        lambda a, w, o, low, v, s, d, p: unetpp_kernels.depthwise_pointwise_moments(
            [_normalised(a, w, o)], _normalised(low, v, s), d, p
        )[0],
        (_wide(1, 2, 4, 2), *affine(2), _wide(1, 1, 2, 1), *affine(1), _wide(3, 1, 3, 3), _wide(2, 3, 1, 1)),
    )
    functions["pooling behind a norm"] = (
        lambda a, w, o: unetpp_kernels.max_pool(_normalised(a, w, o)),
        (a, _wide(3), _wide(3)),
    )
    modes: tuple[Resampling, ...] = ("bilinear", "nearest")
    for mode in modes:
        functions[f"dw_pw {mode}"] = (
            lambda a, b, low, d, p, o, m=mode: unetpp_kernels.depthwise_pointwise(
                [a, b], low, d, p, o, relu=True, mode=m
            ),
            (a, b, low, _wide(7, 1, 3, 3), _wide(4, 7, 1, 1), _wide(4)),
        )
        functions[f"pw_dw {mode}"] = (
            lambda a, b, low, p, d, o, m=mode: unetpp_kernels.pointwise_depthwise(
                [a, b], low, p, d, o, relu=True, mode=m
            ),
            (a, b, low, _wide(4, 7, 1, 1), _wide(4, 1, 3, 3), _wide(4)),
        )
    return functions


def _normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Map:
    return unetpp_kernels.normalised(x, *unetpp_kernels.moments(x), x.numel() // x.shape[1], weight, bias)


@pytest.mark.parametrize("name", _functions())
def test_gradcheck(name: str) -> None:
    function, inputs = _functions()[name]
    with forced("triton"):
        assert torch.autograd.gradcheck(function, inputs)


def test_opcheck_of_the_gradients() -> None:
    x, g = torch.randn(2, 6, 4, 5), torch.randn(2, 3, 4, 5)
    mix, taps = torch.randn(3, 12), torch.randn(9, 12)
    torch.library.opcheck(OPERATORS.pointwise_backward.default, (g, [x, x], mix))
    torch.library.opcheck(OPERATORS.depthwise_backward.default, (x, x, torch.randn(9, 6)))
    torch.library.opcheck(OPERATORS.depthwise_pointwise_backward.default, (g, [x, x], taps, torch.randn(12), mix, True))
    for mode in ("bilinear", "nearest"):
        torch.library.opcheck(OPERATORS.upsample_backward.default, (torch.randn(2, 3, 4, 6), mode))


def test_opcheck_of_batch_norm() -> None:
    x, taps, mix = torch.randn(2, 6, 4, 5), torch.randn(9, 6), torch.randn(3, 6)
    low, wide = torch.randn(2, 4, 2, 2), torch.randn(9, 10)
    vectors = (torch.randn(6), torch.randn(6), torch.randn(6))
    torch.library.opcheck(OPERATORS.depthwise_moments.default, (x, taps))
    torch.library.opcheck(OPERATORS.depthwise_pointwise_moments.default, ([x], None, taps, None, mix, "bilinear", []))
    phases = packing.phases(wide[:, 6:].t().reshape(-1, 1, 3, 3), "nearest", torch.float32)
    maps = [torch.randn(2, 6, 4, 4)]
    for norm in ([], [torch.randn(10) for _ in range(3)]):
        arguments = (maps, low, wide, phases, torch.randn(3, 10), "nearest", norm)
        torch.library.opcheck(OPERATORS.depthwise_pointwise_moments.default, arguments)
    torch.library.opcheck(OPERATORS.moments.default, (x,))
    for relu in (False, True):
        torch.library.opcheck(OPERATORS.normalise.default, (x, *vectors, relu))
        torch.library.opcheck(OPERATORS.normalise_sums.default, (x, x + 1, *vectors, relu))
        torch.library.opcheck(OPERATORS.normalise_backward.default, (x, x + 1, *vectors, torch.randn(2, 6), relu))
    torch.library.opcheck(OPERATORS.normalised_max_pool.default, (x, *vectors))
    torch.library.opcheck(OPERATORS.normalised_max_pool_backward.default, (torch.randn(2, 6, 2, 2), x, *vectors))
    g, maps, mix = torch.randn(2, 3, 4, 6), [torch.randn(2, c, 4, 6) for c in (2, 4)], torch.randn(3, 6)
    for bias, added in ((None, None), (torch.randn(3), torch.randn(2, 3, 2, 3))):
        arguments = (maps, *vectors, mix, bias, added, "nearest")
        torch.library.opcheck(OPERATORS.normalised_pointwise.default, arguments)
    torch.library.opcheck(OPERATORS.normalised_pointwise_backward.default, (g, maps, *vectors, mix))


@pytest.mark.parametrize("name", ["pointwise", "depthwise and its norm"])
def test_a_second_gradient_is_refused(name: str) -> None:
    x, weight = _wide(1, 2, 4, 4), _wide(3, 2, 1, 1)
    with forced("triton"):
        y = unetpp_kernels.pointwise_conv([x], weight)
        if name != "pointwise":
            found = unetpp_kernels.pointwise_depthwise_moments([x], None, weight, _wide(3, 1, 3, 3))
            y = unetpp_kernels.batch_norm(*found, 16)
        (first,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()  # type: ignore[no-untyped-call]


def test_weights_keep_fp32_gradients_under_autocast() -> None:
    """Their gradients are sums over pixels in fp32; torch's own convolutions would round them to bf16."""
    x = torch.randn(1, 4, 6, 6).bfloat16()
    weight = torch.randn(3, 4, 1, 1, requires_grad=True)
    with forced("triton"), torch.autocast("cpu", torch.bfloat16):
        y = unetpp_kernels.pointwise_conv([x], weight)
    assert y.dtype == torch.bfloat16
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and weight.grad.dtype == torch.float32


@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw"])
def test_checkpointing_and_compile_give_the_same_gradients(conv: str) -> None:
    model = _network(conv)
    image = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    plain = _gradients(model, lambda m, x: m(x), image)
    with forced("triton"):
        fused = _gradients(model, lambda m, x: m(x), image)
        kept = _gradients(model, lambda m, x: checkpoint(m, x, use_reentrant=False), image)
        step = torch.compile(lambda m, x: m(x), fullgraph=True, backend="aot_eager")
        compiled = _gradients(model, step, image)
    for name, truth in plain.items():
        for found in (fused, kept, compiled):
            torch.testing.assert_close(found[name], truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv", ["pw_dw", pytest.param("dw_pw", marks=pytest.mark.slow)])
def test_fifty_steps_of_training_follow_plain_torch(conv: str) -> None:
    """Same data, same start: the loss curves of both ways agree while rounding has not grown, and both fall."""
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    target = (image.mean(1) > 0).long()
    curves = {}
    for name in ("torch", "triton"):
        model = _network(conv)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(50):
            with forced(name):  # type: ignore[arg-type]
                loss = nn.functional.cross_entropy(model(image), target)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss))
        curves[name] = torch.tensor(losses)
    torch.testing.assert_close(curves["triton"][:10], curves["torch"][:10], rtol=1e-3, atol=1e-4)
    assert float((curves["triton"] - curves["torch"]).abs().max()) < 0.05
    assert curves["triton"][-1] < 0.75 * curves["triton"][0]


def _network(conv: str) -> UNetPlusPlus:
    torch.manual_seed(0)
    return UNetPlusPlus(GridConfig(filters=(6, 8), conv=conv, deep_supervision=False))  # type: ignore[arg-type]


def _gradients(model: nn.Module, call: Callable[[nn.Module, Tensor], Any], image: Tensor) -> dict[str, Tensor]:
    model = copy.deepcopy(model).train()
    call(model, image).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("conv", "of_a_node", "of_the_stem"), [("pw_dw", 4, 3), ("dw_pw", 2, 2)])
def test_maps_behind_norms_are_not_kept(conv: Conv, of_a_node: int, of_the_stem: int) -> None:
    """Of a whole network in training: of a node the inputs of both norms, and with pw_dw both products.

    The stem has no first product.
    """
    network = UNetPlusPlus(GridConfig(filters=(8, 24, 40), conv=conv)).train()
    image = torch.randn(2, 3, 16, 24)
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.data_ptr()] = value.numel()
        return value

    with forced("triton"), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        heads = network.heads(image)
    assert len(heads) == 2
    for level, nodes in enumerate((3, 2, 1)):
        size = 2 * (8, 24, 40)[level] * (16 >> level) * (24 >> level)
        expected = of_a_node * nodes if level else of_a_node * (nodes - 1) + of_the_stem
        assert list(kept.values()).count(size) == expected, level
