"""Functions of one row against NumPy and torch, bit for bit, and what they leave alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tests.unetpp.native.machine import TARGETS, functions, read, stored
from unetpp.native import rows
from unetpp.native.emit import I64, POINTER, Body, Code, Number, Pointer
from unetpp.native.rows import SLACK, Sources
from unetpp.native.target import Target
from unetpp.native.weights import pack_depthwise, pack_pointwise, padded

pytestmark = pytest.mark.skipif(not TARGETS, reason="no machine code for this CPU")
CANARY = 12345.0
AROUND = 40
"""Pixels before and behind a row that must stay as they are."""
COUNTS = range(1, 41)


def small(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Return whole numbers whose sums are exact in float32, and that bf16 holds."""
    return rng.integers(-3, 4, shape).astype(np.float32)


def whole(rng: np.random.Generator, target: Target, *shape: int) -> NDArray[Any]:
    """Return what a map may hold: of whole numbers any, else small ones."""
    if target.most is None:
        return stored(target, small(rng, *shape))
    return rng.integers(0, target.most, shape, endpoint=True).astype(f"u{target.size}")


def framed(pixels: NDArray[Any], before: int = AROUND) -> NDArray[Any]:
    """Return (pixels, channels) with NaN before and behind them."""
    nothing = {"uint8": 255, "uint16": 0x7FC0}.get(pixels.dtype.name, np.nan)
    return np.pad(pixels, ((before, AROUND), (0, 0)), constant_values=nothing)


def canvas(shape: tuple[int, int], target: Target | None = None) -> NDArray[Any]:
    found = np.full(shape, CANARY, np.float32)
    return found if target is None else stored(target, found)


def untouched(part: NDArray[Any], target: Target | None = None) -> bool:
    return np.array_equal(part, canvas(part.shape, target))


def in_tiles(code: Code, sources: Sources, outputs: int) -> None:
    """Add the pointwise function as "f", with AMX's tiles made ready."""
    inner = rows.pointwise(code, sources, outputs)

    def write(body: Body, *given: Pointer | Number) -> None:
        rows.begin_tiles(body)
        body.call(inner, *given)
        rows.end_tiles(body)

    if code.target.tiles:
        code.function("f", (POINTER, POINTER, I64, POINTER, POINTER, I64), write)


@pytest.mark.parametrize("begun", [False, True], ids=["from null", "from sums"])
@pytest.mark.parametrize(("channels", "outputs", "count"), [(16, 16, 1), (20, 40, 3), (40, 20, 2), (64, 64, 1)])
@pytest.mark.parametrize("name", TARGETS)
def test_pointwise(name: str, channels: int, outputs: int, count: int, begun: bool) -> None:
    target, rng = TARGETS[name], np.random.default_rng(1)
    wide, made = target.padded(channels), target.padded(outputs)
    sources = Sources(wide, wide * target.size)
    weights = small(rng, outputs, count * channels)
    if target.most is not None:  # bytes have 7 bits; words as many as 31 are enough for
        most = min(127 if target.size == 1 else 32767, (1 << 31) // (count * channels * target.most))
        weights = rng.integers(-most, most, weights.shape, endpoint=True).astype(np.float32)
    packed = pack_pointwise(weights, target, made, sources, channels)
    call = functions(target, lambda code: in_tiles(code, sources, made) or rows.pointwise(code, sources, made))
    function = "f" if target.tiles else f"pointwise_{wide}_{wide * target.size}_stored_{made}"
    for pixels in COUNTS:
        # Behind a row lies what was never written.
        inputs = [framed(padded(whole(rng, target, pixels, channels), wide)) for _ in range(count)]
        pointers = np.array([row[AROUND:].ctypes.data for row in inputs])
        start = framed(padded(small(rng, pixels, outputs), made))
        to = canvas((AROUND + pixels + SLACK + AROUND, made))
        call(function, to[AROUND:], start[AROUND:] if begun else None, count, pointers, packed, pixels)
        across = np.concatenate([read(target, row)[AROUND:][:pixels, :channels] for row in inputs], 1)
        sums = (across.astype(np.float64) @ weights.T).astype(np.float32)  # rounded once, where they pass 24 bits
        expected = sums + start[AROUND:][:pixels, :outputs] if begun else sums
        np.testing.assert_array_equal(to[AROUND:][:pixels, :outputs], expected)
        assert not to[AROUND:][:pixels, outputs:].any() or begun
        assert untouched(to[:AROUND]) and untouched(to[AROUND + pixels + SLACK :]), pixels


@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize("name", TARGETS)
def test_pointwise_of_an_image(name: str, bands: int) -> None:
    """Three rows whose pixels overlap: each is its neighbours, too. Sums are float32 whatever maps are."""
    target, rng = TARGETS[name], np.random.default_rng(2)
    sources = Sources(3 * bands, 4 * bands, stored=False)
    kernel = small(rng, 20, bands, 3, 3)
    made = target.padded(20)
    packed = pack_pointwise(kernel.transpose(0, 2, 3, 1).reshape(20, -1), target, made, sources, 3 * bands)
    call = functions(target, lambda code: rows.pointwise(code, sources, made))
    for pixels in (1, 11, 12, 13, 40):
        image = rng.integers(-2000, 2000, (3, pixels + 2, bands)).astype(np.float32)  # bf16 would round these
        lines = [framed(row, 0) for row in image]
        to = canvas((AROUND + pixels + SLACK + AROUND, made))
        pointers = np.array([line.ctypes.data for line in lines])
        call(f"pointwise_{3 * bands}_{4 * bands}_plain_{made}", to[AROUND:], None, 3, pointers, packed, pixels)
        expected = F.conv2d(torch.from_numpy(image).permute(2, 0, 1)[None].double(), torch.from_numpy(kernel).double())
        np.testing.assert_array_equal(to[AROUND:][:pixels, :20], expected[0, :, 0].T.numpy())
        assert untouched(to[:AROUND]) and untouched(to[AROUND + pixels + SLACK :])


@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize("name", TARGETS)
def test_depthwise(name: str, channels: int) -> None:
    target, rng = TARGETS[name], np.random.default_rng(3)
    weights, bias = small(rng, channels, 1, 3, 3), small(rng, channels)
    call = functions(target, lambda code: rows.depthwise(code, channels))
    packed = pack_depthwise(weights, channels)
    for pixels in COUNTS:
        lines = small(rng, 3, pixels + 2, channels)
        to = canvas((AROUND + pixels + AROUND, channels), target)
        above, row, below = (framed(line, 0) for line in lines)
        call(f"depthwise_{channels}", above, row, below, packed, bias, to[AROUND:], pixels)
        x = torch.from_numpy(lines).permute(2, 0, 1)[None].double()
        expected = F.conv2d(x, torch.from_numpy(weights).double(), torch.from_numpy(bias).double(), groups=channels)
        np.testing.assert_array_equal(read(target, to[AROUND:][:pixels]), expected.relu()[0, :, 0].T.numpy())
        assert untouched(to[:AROUND], target) and untouched(to[AROUND + pixels :], target), pixels


@pytest.mark.parametrize("name", TARGETS)
def test_depthwise_keeps_what_is_not_a_number(name: str) -> None:
    """In every pixel that reads it, as torch's convolution and ReLU do, and in no other. Whole ones are the largest."""
    target = TARGETS[name]
    lines = np.ones((3, 14, 16), np.float32)
    lines[1, 5, 3] = np.nan
    to = canvas((12, 16), target)
    call = functions(target, lambda code: rows.depthwise(code, 16))
    call("depthwise_16", *lines, np.ones((9, 16), np.float32), np.zeros(16, np.float32), to, 12)
    found = read(target, to)
    lost = np.isnan(found) if target.most is None else found == target.most
    assert np.argwhere(lost).tolist() == [[3, 3], [4, 3], [5, 3]]


@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize("name", TARGETS)
def test_bias_relu(name: str, channels: int) -> None:
    target, rng = TARGETS[name], np.random.default_rng(4)
    bias = small(rng, channels)
    call = functions(target, lambda code: rows.bias_relu(code, channels))
    for pixels in (1, 2, 7):
        sums = small(rng, pixels, channels)
        sums[0, 1] = np.nan
        to = canvas((AROUND + pixels + AROUND, channels), target)
        call(f"bias_relu_{channels}", framed(sums, 0), bias, to[AROUND:], pixels)
        expected = stored(target, torch.from_numpy(sums + bias).relu().numpy())
        np.testing.assert_array_equal(read(target, to[AROUND:][:pixels]), read(target, expected))
        assert untouched(to[:AROUND], target) and untouched(to[AROUND + pixels :], target)


@pytest.mark.parametrize("nearest", [False, True], ids=["bilinear", "nearest"])
@pytest.mark.parametrize("name", TARGETS)
def test_upsample(name: str, nearest: bool) -> None:
    target, rng = TARGETS[name], np.random.default_rng(6)
    call = functions(target, lambda code: rows.upsample(code, 32, nearest))
    for pixels, share in itertools.product((1, 2, 4, 5, 33), (0.25, 0.75)):
        above, below = (16 * small(rng, pixels, 32) for _ in range(2))
        to = canvas((AROUND + 2 * pixels + AROUND, 32))
        ends = [np.pad(row, ((1, 1), (0, 0)), "edge") for row in (above, below)]
        call(f"upsample_32_{'nearest' if nearest else 'bilinear'}", *ends, share, to[AROUND:], pixels)
        x = torch.from_numpy(above if nearest else share * above + (1 - share) * below).T[None]
        expected = (
            F.interpolate(x, scale_factor=2)
            if nearest
            else F.interpolate(x, scale_factor=2, mode="linear", align_corners=False)
        )
        np.testing.assert_array_equal(to[AROUND:][: 2 * pixels], expected[0].T.numpy())
        assert untouched(to[:AROUND]) and untouched(to[AROUND + 2 * pixels :])


@pytest.mark.parametrize("channels", [16, 48, 64])
@pytest.mark.parametrize("name", TARGETS)
def test_pool(name: str, channels: int) -> None:
    """Of what passed a ReLU: NaN too, of either sign, which x86 gives the NaN that it makes of inf - inf."""
    target, rng = TARGETS[name], np.random.default_rng(7)
    call = functions(target, lambda code: rows.pool(code, channels))
    for pixels in (1, 2, 3, 20):
        lines = np.abs(rng.normal(size=(2, 2 * pixels, channels))).astype(np.float32) * 10.0 ** rng.integers(-9, 9)
        lines[0, 0, :6] = np.inf, np.nan, -np.nan, 0, -0.0, 1e-42
        lines[1, 1, 6:9] = np.inf, np.nan, -np.nan
        both = [stored(target, line) for line in lines]
        if target.most is not None:
            both = [whole(rng, target, *line.shape) for line in lines]
        else:
            assert both[0].view(np.int16 if target.size == 2 else np.int32)[0, 2] < 0, "no NaN has a sign"
        to = canvas((AROUND + pixels + AROUND, channels), target)
        call(f"pool_{channels}", *(framed(line, 0) for line in both), to[AROUND:], pixels)
        x = torch.from_numpy(np.stack([read(target, line) for line in both])).permute(2, 0, 1)[None]
        np.testing.assert_array_equal(read(target, to[AROUND:][:pixels]), F.max_pool2d(x, 2)[0, :, 0].T.numpy())
        assert untouched(to[:AROUND], target) and untouched(to[AROUND + pixels :], target)


@pytest.mark.parametrize("kind", rows.RAW)
@pytest.mark.parametrize("name", TARGETS)
def test_normalise(name: str, kind: str) -> None:
    """Samples begin anywhere, rows are of any length, and each number is rounded as NumPy's float32 is."""
    target, rng = TARGETS[name], np.random.default_rng(8)
    call = functions(target, lambda code: rows.normalise(code, kind))
    mean, std = (np.tile(values, 20).astype(np.float32) for values in ((123.675, 7.1, -3), (58.395, 0.3, 11)))
    for numbers in (*COUNTS, 57):
        if kind == "float32":
            raw = rng.normal(0, 1e4, numbers).astype(kind)
            raw[0] = np.nan
        else:
            raw = rng.integers(0, np.iinfo(kind).max, numbers, endpoint=True).astype(kind)
            raw[-1] = np.iinfo(kind).max
        apart = np.frombuffer(b"\0" * (numbers % 5) + raw.tobytes() + b"\xff" * 64, np.uint8)[numbers % 5 :]
        to = canvas((AROUND + numbers + AROUND, 1))
        call(f"normalise_{kind}", apart, to[AROUND:], mean, std, numbers)
        expected = (raw.astype(np.float32) - mean[:numbers]) / std[:numbers]
        np.testing.assert_array_equal(to[AROUND:][:numbers, 0], expected)
        assert untouched(to[:AROUND]) and untouched(to[AROUND + numbers :]), numbers
