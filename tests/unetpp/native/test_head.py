"""Logits and class values of a row of a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unetpp.native.machine import TARGETS, functions, read, stored
from unetpp.native import head
from unetpp.native.head import SLOTS
from unetpp.native.rows import SLACK, Sources
from unetpp.native.target import Target
from unetpp.native.weights import pack_pointwise, padded

pytestmark = pytest.mark.skipif(not TARGETS, reason="no machine code for this CPU")
CHANNELS, ROWS, WIDTH, PIXELS = 20, 3, 40, 33
"""Of the map, of the rows that it keeps, and of the part that is wanted."""


def run(
    call: Callable[..., None], what: str, target: Target, classes: int, maps: NDArray[Any], weights: NDArray[Any],
    scale: NDArray[Any], bias: NDArray[Any],
) -> NDArray[Any]:  # fmt: skip
    """Return what a head makes of rows 4 to 6 and columns 3 to 36, in the middle of a larger array."""
    wide, made = target.padded(CHANNELS), head.outputs(target, classes)
    ring = np.full((ROWS * WIDTH + SLACK, wide), {1: 255, 2: 0x7FC0, 4: np.nan}[target.size], maps.dtype)
    for y in (4, 5):
        ring[y % ROWS * WIDTH :][:WIDTH] = maps[y - 4]
    labels = what == head.LABELS
    found = np.full((8, 50) if labels else (classes, 8, 50), 99, np.uint8 if labels else np.float32)
    values = np.arange(10, 266).astype(np.uint8)
    scratch = np.zeros(head.scratch_bytes(target, classes, PIXELS), np.uint8)
    packed = pack_pointwise(weights, target, made, Sources(wide, wide * target.size), CHANNELS)
    known = {
        "map": ring.ctypes.data, "pitch": ring[:WIDTH].nbytes, "rows": ROWS, "first": 4, "end": 6, "fresh": 0,
        "left": 3, "right": 3 + PIXELS,
        "weights": packed.ctypes.data, "scale": scale.ctypes.data, "bias": bias.ctypes.data,
        "values": values.ctypes.data,
        "to": found.ctypes.data, "to_pitch": found.strides[-2], "plane": found.strides[0],
        "scratch": scratch.ctypes.data,
    }  # fmt: skip
    call(what, np.array([known[name] for name in SLOTS], np.int64))
    part: NDArray[Any] = found[..., 4:6, 3 : 3 + PIXELS].copy()
    found[..., 4:6, 3 : 3 + PIXELS] = 99
    assert (found == 99).all(), "something else was written"
    return part


@pytest.mark.parametrize("classes", [1, 2, 5, 17, 255])
@pytest.mark.parametrize("name", TARGETS)
def test_logits_and_labels(name: str, classes: int) -> None:
    """Numbers are whole and few, so that logits are exact and many are equal: of those the first class wins."""
    target, rng = TARGETS[name], np.random.default_rng(classes)
    call = functions(target, lambda code: head.head(code, target.padded(CHANNELS), classes))
    maps = stored(target, padded(rng.integers(0, 3, (2, WIDTH, CHANNELS)).astype(np.float32), target.padded(CHANNELS)))
    weights = rng.integers(-1, 2, (classes, CHANNELS)).astype(np.float32)
    bias = rng.integers(-2, 3, classes).astype(np.float32)
    scale = 2.0 ** (np.arange(classes, dtype=np.float32) % 3)
    if classes > 1:
        weights[-1], scale[-1], bias[-1] = weights[0], scale[0], bias[0]
        weights[0, 1] += 1  # equal where this channel is 0
    logits = run(call, head.LOGITS, target, classes, maps, weights, scale, bias)
    x = read(target, maps)[:, 3 : 3 + PIXELS, :CHANNELS]
    expected = np.moveaxis(x @ weights.T * scale + bias, -1, 0)
    np.testing.assert_array_equal(logits, expected)
    ranks = (expected[0] > 0).astype(int) if classes == 1 else expected.argmax(0)
    ordered = np.sort(expected, 0)
    assert (expected == 0).any() if classes == 1 else (ordered[-1] == ordered[-2]).any(), "no two are equal"
    labels = run(call, head.LABELS, target, classes, maps, weights, scale, bias)
    np.testing.assert_array_equal(labels, (ranks + 10).astype(np.uint8))


@pytest.mark.parametrize("classes", [1, 3])
def test_what_is_not_a_number_is_the_first_class(classes: int) -> None:
    target = Target(8)
    call = functions(target, lambda code: head.head(code, target.padded(CHANNELS), classes))
    maps = np.ones((2, WIDTH, target.padded(CHANNELS)), np.float32)
    maps[0, 5, 2] = np.nan
    weights, bias = np.ones((classes, CHANNELS), np.float32), np.arange(classes, dtype=np.float32)
    scale = np.ones(classes, np.float32)
    logits = run(call, head.LOGITS, target, classes, maps, weights, scale, bias)
    assert np.argwhere(np.isnan(logits)).tolist() == [[k, 0, 2] for k in range(classes)]
    labels = run(call, head.LABELS, target, classes, maps, weights, scale, bias)
    assert labels[0, 2] == 10 and (np.delete(labels, 2) == 10 + max(1, classes - 1)).all()
