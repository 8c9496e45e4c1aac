"""The operators as torch sees them: opcheck, shapes, choice, autocast; what kernels compute is tested elsewhere."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import unetpp_kernels
import unetpp_kernels.operations
from unetpp_kernels import definition, forced, packing

OPERATORS = torch.ops.unetpp


def _map(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, height, width, generator=generator).contiguous(memory_format=torch.channels_last)


def _calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return one call of each operator by name."""
    x, low = _map(2, 6, 8, 10), _map(2, 4, 4, 5)
    depthwise, mix = torch.randn(10, 1, 3, 3), torch.randn(5, 10)
    taps, phases = packing.taps(depthwise, torch.float32), packing.phases(depthwise[6:], "bilinear", torch.float32)
    pixels = torch.randint(0, 256, (2, 8, 10, 3), dtype=torch.uint8)
    mean, std = torch.full((3,), 120.0), torch.full((3,), 50.0)
    values = torch.tensor([0, 1, 4, 7, 9], dtype=torch.uint8)
    return {
        "depthwise_pointwise": (
            OPERATORS.depthwise_pointwise.default,
            ([x], low, taps, phases, mix, torch.randn(5), None, False, True, "bilinear", False),
        ),
        "pointwise": (OPERATORS.pointwise.default, ([x, x], torch.randn(7, 12), None, None, True, True, "nearest")),
        "pointwise added": (
            OPERATORS.pointwise.default,
            ([x], torch.randn(4, 6), torch.randn(4), low, False, False, "bilinear"),
        ),
        "depthwise": (OPERATORS.depthwise.default, (x, torch.randn(25, 6), torch.randn(6), True, 2, 1, False)),
        "stem": (OPERATORS.stem.default, (pixels, mean, std, torch.randn(27, 8), torch.randn(8), None, True)),
        "head": (
            OPERATORS.head.default,
            (x, torch.randn(5, 6), torch.randn(5), values, torch.randn(9, 6), torch.randn(6), True, False, False),
        ),
        "head probabilities": (
            OPERATORS.head.default,
            (x, torch.randn(5, 6), torch.randn(5), values, None, None, True, True, False),
        ),
    }


@pytest.mark.parametrize("name", _calls())
def test_opcheck(name: str) -> None:
    operator, arguments = _calls()[name]
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("name", _calls())
def test_results_are_channels_last_and_new(name: str) -> None:
    operator, arguments = _calls()[name]
    found = operator(*arguments)
    if "head" not in name:
        assert found.is_contiguous(memory_format=torch.channels_last)
    inputs = [a for a in arguments if isinstance(a, Tensor)]
    assert all(found.data_ptr() != a.data_ptr() for a in inputs)


def test_wrong_widths_are_named() -> None:
    with torch.device("meta"), pytest.raises(RuntimeError, match="6 channels in, weights for 7"):
        OPERATORS.pointwise([torch.empty(1, 6, 4, 4)], torch.empty(3, 7), None, None, False, False, "bilinear")


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_packed_weights_give_the_public_operations(mode: unetpp_kernels.Resampling) -> None:
    """The operators' own weights (taps, phases, mix) and the plain ones describe the same function."""
    sources, low = [_map(2, 5, 6, 8, 1), _map(2, 3, 6, 8, 2)], _map(2, 4, 3, 4, 3)
    depthwise, pointwise, bias = torch.randn(12, 1, 3, 3), torch.randn(6, 12, 1, 1), torch.randn(6)
    arguments = (sources, low, depthwise, pointwise, bias)
    with forced("triton"):
        ours = unetpp_kernels.depthwise_pointwise(*arguments, relu=True, mode=mode)
    torch.testing.assert_close(ours, definition.depthwise_pointwise(*arguments, relu=True, mode=mode))
    other = (sources, low, pointwise, torch.randn(6, 1, 3, 3), bias)
    with forced("triton"):
        ours = unetpp_kernels.pointwise_depthwise(*other, relu=True, mode=mode)
    torch.testing.assert_close(ours, definition.pointwise_depthwise(*other, relu=True, mode=mode))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(2, 2), (2, 8), (10, 4)], ids=str)
def test_phases_are_upsampling_and_filter_in_one(mode: unetpp_kernels.Resampling, size: tuple[int, int]) -> None:
    """Applied as their documentation says, pixel by pixel, in fp64."""
    height, width = size
    low = torch.randn(1, 2, height // 2, width // 2, dtype=torch.float64)
    depthwise = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    truth = definition.depthwise_conv(definition.upsample2x(low, mode), depthwise)
    phases = packing.phases(depthwise, mode, torch.float64)

    def phase(position: int, last: int) -> int:
        return 2 if position == 0 else 3 if position == last else position % 2

    for y in range(height):
        for x in range(width):
            total = torch.zeros(2, dtype=torch.float64)
            for r in range(3):
                for s in range(3):
                    i = min(max(y // 2 + r - 1, 0), height // 2 - 1)
                    j = min(max(x // 2 + s - 1, 0), width // 2 - 1)
                    total += phases[phase(y, height - 1), phase(x, width - 1), r, s] * low[0, :, i, j]
            torch.testing.assert_close(total, truth[0, :, y, x], rtol=1e-12, atol=1e-12)


def test_other_filters_take_two_operators() -> None:
    x, depthwise, pointwise = _map(1, 4, 9, 7), torch.randn(4, 1, 5, 5), torch.randn(3, 4, 1, 1)
    with forced("triton"):
        ours = unetpp_kernels.depthwise_pointwise([x], None, depthwise, pointwise, stride=2, dilation=2)
    truth = definition.depthwise_pointwise([x], None, depthwise, pointwise, stride=2, dilation=2)
    torch.testing.assert_close(ours, truth)


def test_a_source_may_be_upsampled_alone() -> None:
    low, depthwise, pointwise = _map(1, 4, 3, 5), torch.randn(4, 1, 3, 3), torch.randn(3, 4, 1, 1)
    with forced("triton"):
        ours = unetpp_kernels.depthwise_pointwise([], low, depthwise, pointwise)
    torch.testing.assert_close(ours, definition.depthwise_pointwise([], low, depthwise, pointwise))


def test_autocast_reaches_the_kernels() -> None:
    x, weight = _map(1, 4, 6, 6), torch.randn(8, 4, 1, 1)
    with torch.autocast("cpu", torch.bfloat16), forced("triton"):
        assert unetpp_kernels.pointwise_conv([x], weight).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert unetpp_kernels.pointwise_conv([x], weight).dtype == torch.bfloat16


def test_the_choice_is_told() -> None:
    assert unetpp_kernels.device_implementation(torch.device("cpu")) == ("torch", "no CUDA device")
    x = _map(1, 4, 6, 6)
    assert unetpp_kernels.implementation([x, None]) == "torch"
    with forced("triton"):
        assert unetpp_kernels.implementation([x]) == "triton"
        with forced("torch"):
            assert unetpp_kernels.implementation([x]) == "torch"
    assert unetpp_kernels.implementation([x]) == "torch"


def test_training_takes_the_definition_until_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device with kernels: inference uses them, gradients only with UNETPP_KERNELS=triton."""
    monkeypatch.setattr(unetpp_kernels.operations, "device_implementation", lambda device: ("triton", "a device"))
    x, weight = _map(1, 4, 6, 6), torch.randn(4, 1, 3, 3, requires_grad=True)
    found = {}
    for asked in ("", "triton", "torch"):
        monkeypatch.setenv("UNETPP_KERNELS", asked)
        found[asked] = (unetpp_kernels.implementation([x]), unetpp_kernels.implementation([x, weight]))
    assert found == {"": ("triton", "torch"), "triton": ("triton", "triton"), "torch": ("torch", "torch")}


def test_importing_needs_no_triton() -> None:
    """A machine without Triton (macOS, Windows) runs the definitions."""
    code = "import sys; sys.modules['triton'] = None; import unetpp_kernels, unetpp.model"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw"])
def test_compiled_units_keep_one_node_per_operator(conv: str) -> None:
    from unetpp.model import GridConfig, UNetPlusPlus
    from unetpp.model.fold import fold

    network = fold(UNetPlusPlus(GridConfig(filters=(4, 6), conv=conv)))  # type: ignore[arg-type]
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad(), forced("triton"):
        compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
        torch.testing.assert_close(compiled(image), network(image))
