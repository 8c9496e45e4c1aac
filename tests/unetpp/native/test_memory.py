"""Pieces of memory: where they begin, that they do not overlap, and that there are no more than asked for."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from unetpp.native.memory import Arena, aligned, rounded


def test_pieces_lie_behind_each_other_at_multiples_of_64() -> None:
    sizes = [1, 64, 65, 0, 200]
    arena = Arena(sum(map(rounded, sizes)))
    starts = [arena.take(size) for size in sizes]
    assert all(start % 64 == 0 for start in starts)
    assert np.diff(starts).tolist() == [64, 64, 128, 0]
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        assert ctypes.string_at(start, size) == bytes(size)
        ctypes.memset(start, number + 1, size)
    assert [ctypes.string_at(start, size) for start, size in zip(starts, sizes, strict=True)] == [
        bytes([number + 1]) * size for number, size in enumerate(sizes)
    ]
    assert arena.left == 0
    with pytest.raises(AssertionError):
        arena.take(1)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_aligned_copies_begin_at_multiples_of_64(dtype: type) -> None:
    values = np.arange(30, dtype=dtype).reshape(5, 6)[:, ::2]
    found = aligned(values)
    assert found.ctypes.data % 64 == 0 and found.flags.c_contiguous and found.dtype == dtype
    assert np.array_equal(found, values) and not np.shares_memory(found, values)
