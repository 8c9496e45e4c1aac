"""Every kernel against its fp64 definition: types, odd sizes, tails of channels, NaN around inputs and results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.computed.cases import (
    DEVICE,
    INTERPRETED,
    KINDS,
    assert_as_good,
    feature_map,
    guarded,
    relative,
    weights,
    wide,
)
from unetpp_kernels import Resampling, definition, packing

__all__ = ["guarded"]  # a fixture
pytestmark = [] if INTERPRETED else pytest.mark.gpu
OPERATORS = torch.ops.unetpp


def _run_depthwise_pointwise(
    widths: tuple[int, ...],
    low_width: int,
    outputs: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    packed: bool,
    *,
    inner: bool = False,
    mode: Resampling = "bilinear",
    batch: int = 1,
) -> None:
    height, width = size
    sources = [feature_map(batch, c, height, width, dtype, seed=k) for k, c in enumerate(widths)]
    low = feature_map(batch, low_width, height // 2, width // 2, dtype) if low_width else None
    channels = sum(widths) + low_width
    depthwise = weights(channels, 1, 3, 3, dtype=dtype, scale=1 / 3)
    pointwise = weights(outputs, channels, 1, 1, dtype=dtype, scale=channels**-0.5)
    bias = weights(outputs, dtype=dtype)
    inner_bias = weights(channels, dtype=dtype) if inner else None

    def defined(convert: Callable[[Tensor], Tensor]) -> Tensor:
        return definition.depthwise_pointwise(
            [convert(s) for s in sources],
            None if low is None else convert(low),
            convert(depthwise),
            convert(pointwise),
            convert(bias),
            inner_bias=None if inner_bias is None else convert(inner_bias),
            inner_relu=inner,
            relu=True,
            mode=mode,
        )

    kind = dtype if packed else torch.float32
    found = OPERATORS.depthwise_pointwise(
        sources,
        low,
        packing.taps(depthwise, kind),
        None if low is None else packing.phases(depthwise[sum(widths) :], mode, kind),
        packing.mix(pointwise, dtype),
        bias,
        inner_bias,
        inner,
        True,
        mode,
        packed,
    )
    assert_as_good(found, defined(lambda t: t), defined(lambda t: t.double()), packed=packed)


@pytest.mark.parametrize(("dtype", "packed"), KINDS)
def test_depthwise_pointwise(dtype: torch.dtype, packed: bool, guarded: Callable[[], None]) -> None:
    """Whole blocks of channels, and one tile that touches no edge: the path without any bounds check."""
    _run_depthwise_pointwise((32,), 0, 32, (9, 130), dtype, packed)
    guarded()


@pytest.mark.parametrize(("dtype", "packed"), KINDS)
def test_depthwise_pointwise_with_an_inner_step(dtype: torch.dtype, packed: bool, guarded: Callable[[], None]) -> None:
    _run_depthwise_pointwise((32,), 0, 32, (5, 66), dtype, packed, inner=True, batch=2)
    guarded()


@pytest.mark.parametrize(("dtype", "packed"), KINDS)
def test_depthwise_pointwise_of_a_virtual_concatenation(
    dtype: torch.dtype, packed: bool, guarded: Callable[[], None]
) -> None:
    """Two sources and an upsampled one; rows and columns at each edge have other weights than those inside."""
    _run_depthwise_pointwise((32, 32), 32, 32, (10, 130), dtype, packed)
    guarded()


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(2, 2), (2, 6), (6, 4)], ids=str)
def test_upsampling_at_the_edges_of_small_images(
    size: tuple[int, int], mode: Resampling, guarded: Callable[[], None]
) -> None:
    _run_depthwise_pointwise((3,), 5, 4, size, torch.float32, False, mode=mode)
    guarded()


@pytest.mark.parametrize(
    ("widths", "low", "outputs", "size"),
    [((1,), 0, 1, (1, 1)), ((5, 3, 7), 0, 33, (3, 5)), ((40,), 9, 17, (4, 2)), ((3,) * 8, 2, 6, (2, 4))],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "packed"), [(torch.float32, False), (torch.float16, True), (torch.bfloat16, False)])
def test_depthwise_pointwise_of_odd_widths(
    widths: tuple[int, ...],
    low: int,
    outputs: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    packed: bool,
    guarded: Callable[[], None],
) -> None:
    """Channels that fill no block, one pixel, and more sources than one launch reads."""
    _run_depthwise_pointwise(widths, low, outputs, size, dtype, packed)
    guarded()


@pytest.mark.parametrize(("inner", "low"), [(False, 0), (False, 8), (True, 0)])
def test_wide_layers_take_two_steps(inner: bool, low: int) -> None:
    _run_depthwise_pointwise((24,), low, 160, (4, 6), torch.float16, False, inner=inner)


@pytest.mark.parametrize(("dtype", "packed"), KINDS)
@pytest.mark.parametrize(
    ("channels", "size", "side", "stride", "dilation"),
    [
        (32, (9, 130), 3, 1, 1),
        (5, (7, 5), 3, 1, 1),
        (8, (9, 6), 5, 2, 1),
        (32, (9, 6), 7, 1, 2),
        (33, (4, 1), 3, 2, 3),
    ],
)
def test_depthwise(
    channels: int,
    size: tuple[int, int],
    side: int,
    stride: int,
    dilation: int,
    dtype: torch.dtype,
    packed: bool,
    guarded: Callable[[], None],
) -> None:
    x = feature_map(2, channels, *size, dtype)
    weight = weights(channels, 1, side, side, dtype=dtype, scale=1 / side)
    bias = weights(channels, dtype=dtype)
    taps = packing.taps(weight, dtype if packed else torch.float32)
    found = OPERATORS.depthwise(x, taps, bias, True, stride, dilation, packed)
    settings = {"relu": True, "stride": stride, "dilation": dilation}
    truth = definition.depthwise_conv(x.double(), weight.double(), bias.double(), **settings)  # type: ignore[arg-type]
    eager = definition.depthwise_conv(x, weight, bias, **settings)  # type: ignore[arg-type]
    assert_as_good(found, eager, truth, packed=packed)
    guarded()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("widths", "outputs", "size", "pool", "mode"),
    [
        ((32, 32), 32, (6, 10), False, None),
        ((64,), 160, (5, 7), False, None),
        ((5, 3, 9), 6, (7, 9), True, None),
        ((32,), 64, (6, 8), True, None),
        ((32, 64), 32, (6, 10), False, "bilinear"),
        ((5, 3), 6, (2, 2), False, "bilinear"),
        ((3,) * 8, 7, (4, 6), False, "nearest"),
        ((1,), 1, (1, 1), False, None),
    ],
)
def test_pointwise(
    widths: tuple[int, ...],
    outputs: int,
    size: tuple[int, int],
    pool: bool,
    mode: Resampling | None,
    dtype: torch.dtype,
    guarded: Callable[[], None],
) -> None:
    height, width = size
    sources = [feature_map(2, c, height, width, dtype, seed=k) for k, c in enumerate(widths)]
    weight = weights(outputs, sum(widths), 1, 1, dtype=dtype, scale=sum(widths) ** -0.5)
    bias = weights(outputs, dtype=dtype)
    added = feature_map(2, outputs, height // 2, width // 2, dtype, seed=9) if mode else None
    found = OPERATORS.pointwise(sources, packing.mix(weight, dtype), bias, added, pool, True, mode or "bilinear")
    settings = {"pool": pool, "relu": True, "mode": mode or "bilinear"}
    truth = definition.pointwise_conv(
        [s.double() for s in sources],
        weight.double(),
        bias.double(),
        added=wide(added),
        **settings,  # type: ignore[arg-type]
    )
    eager = definition.pointwise_conv(sources, weight, bias, added=added, **settings)  # type: ignore[arg-type]
    assert_as_good(found, eager, truth)
    guarded()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("bands", "outputs", "mixed", "sample"),
    [(3, 32, 32, torch.uint8), (1, 5, None, torch.uint8), (4, 17, 9, torch.int32), (3, 80, None, torch.uint8)],
)
def test_stem(
    bands: int,
    outputs: int,
    mixed: int | None,
    sample: torch.dtype,
    dtype: torch.dtype,
    guarded: Callable[[], None],
) -> None:
    """Bytes and wider samples; more outputs than a tile holds take the plain path."""
    generator = torch.Generator().manual_seed(bands)
    limit = 256 if sample == torch.uint8 else 9000
    pixels = torch.randint(0, limit, (2, 7, 9, bands), generator=generator).to(DEVICE, sample)
    mean, std = torch.full((bands,), 120.0, device=DEVICE), torch.linspace(30, 60, bands, device=DEVICE)
    weight = weights(outputs, bands, 3, 3, dtype=dtype, scale=0.2)
    bias = weights(outputs, dtype=dtype)
    pointwise = None if mixed is None else weights(mixed, outputs, 1, 1, dtype=dtype, scale=outputs**-0.5)
    found = OPERATORS.stem(
        pixels,
        mean,
        std,
        weight.permute(2, 3, 1, 0).reshape(9 * bands, outputs).contiguous(),
        bias,
        None if pointwise is None else packing.mix(pointwise, dtype),
        True,
    )
    truth = definition.stem(
        pixels.double(), mean.double(), std.double(), weight.double(), bias.double(), wide(pointwise), relu=True
    )
    eager = definition.stem(pixels, mean, std, weight, bias, pointwise, relu=True)
    assert_as_good(found, eager, truth)
    if outputs <= 64:
        guarded()


@pytest.mark.parametrize(("dtype", "packed"), KINDS)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(("channels", "classes", "size"), [(32, 3, (6, 9)), (7, 20, (3, 2))])
def test_head(
    channels: int,
    classes: int,
    size: tuple[int, int],
    filtered: bool,
    probabilities: bool,
    dtype: torch.dtype,
    packed: bool,
) -> None:
    """Class values may differ only where two logits are closer than rounding; probabilities by one step of 1/255."""
    x = feature_map(2, channels, *size, dtype)
    weight, bias = weights(classes, channels, 1, 1, dtype=dtype, scale=0.3), weights(classes, dtype=dtype)
    values = torch.arange(classes, dtype=torch.uint8, device=DEVICE) * 3 + 1
    depthwise = weights(channels, 1, 3, 3, dtype=dtype, scale=1 / 3) if filtered else None
    inner_bias = weights(channels, dtype=dtype, seed=5) if filtered else None
    found = OPERATORS.head(
        x,
        packing.mix(weight, dtype),
        bias.float(),
        values,
        None if depthwise is None else packing.taps(depthwise, dtype if packed else torch.float32),
        inner_bias,
        True,
        probabilities,
        packed,
    )
    truth = definition.head(
        x.double(),
        weight.double(),
        bias.double(),
        values,
        depthwise=wide(depthwise),
        inner_bias=wide(inner_bias),
        inner_relu=True,
        probabilities=probabilities,
    )
    assert found.dtype == torch.uint8 and found.shape == truth.shape
    different = (found.int() - truth.int()).abs()
    limit = {torch.float32: 0.0, torch.float16: 0.01, torch.bfloat16: 0.06}[dtype] * (2 if packed else 1)
    if probabilities:
        assert int(different.max()) <= (1 if dtype != torch.bfloat16 else 6)
        assert relative(found.double(), truth.double()) <= 0.02
    else:
        assert float((different > 0).float().mean()) <= limit


def test_head_of_a_tile_that_touches_no_edge() -> None:
    test_head(32, 2, (9, 130), True, False, torch.float16, True)


def test_views_and_other_layouts_are_read_as_they_are() -> None:
    """A slice that starts off 16 bytes, a transposed map and a plain contiguous one give what their copies give."""
    weight = weights(8, 1, 3, 3, dtype=torch.float16, scale=1 / 3)
    taps = packing.taps(weight, torch.float32)
    base = feature_map(2, 9, 6, 5, torch.float16)
    for x in (base[:, 1:], base[:, :8].transpose(2, 3), base[:, :8].contiguous(), base[1:, :8]):
        found = OPERATORS.depthwise(x, taps, None, False, 1, 1, False)
        assert torch.equal(found, OPERATORS.depthwise(x.clone(), taps, None, False, 1, 1, False))
        assert relative(found, definition.depthwise_conv(x.double(), weight.double())) < 1e-3


def test_relu_keeps_nan() -> None:
    """As torch does: a NaN in an image must not turn into a confident class."""
    x = torch.full((1, 4, 2, 2), torch.nan, device=DEVICE)
    found = OPERATORS.depthwise(x, torch.ones(9, 4, device=DEVICE), None, True, 1, 1, False)
    assert bool(found.isnan().all())


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    """The last rows of a map of 2.2e9 elements are those of a copy of them; needs 14 GB on the device."""
    side, channels = 8256, 32
    x = torch.zeros(1, side, side, channels, dtype=torch.float16, device=DEVICE).permute(0, 3, 1, 2)
    tail = torch.randn(1, channels, 16, side, device=DEVICE).half()
    x[:, :, -16:] = tail
    weight = weights(channels, 1, 3, 3, dtype=torch.float16, scale=1 / 3)
    mix = weights(channels, channels, dtype=torch.float16, scale=channels**-0.5)
    taps = packing.taps(weight, torch.float16)
    settings = (taps, None, mix, None, None, False, False, "bilinear", True)
    small = OPERATORS.depthwise_pointwise([tail], None, *settings)[:, :, 1:]
    assert torch.equal(OPERATORS.depthwise_pointwise([x], None, *settings)[:, :, -15:], small)
    small = OPERATORS.pointwise([tail], mix, None, tail[:, :, ::2, ::2].contiguous(), False, False, "nearest")
    low = torch.zeros(1, side // 2, side // 2, channels, dtype=torch.float16, device=DEVICE).permute(0, 3, 1, 2)
    low[:, :, -8:] = tail[:, :, ::2, ::2]
    assert torch.equal(OPERATORS.pointwise([x], mix, None, low, False, False, "nearest")[:, :, -16:], small)
