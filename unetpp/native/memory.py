"""Memory for machine code, whose pieces begin at multiples of 64 bytes; knows nothing of what lies in it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_LINE: Final = 64
"""Bytes of a line of the cache, and of the widest register."""


def rounded(size: int) -> int:
    """Return the bytes that a piece of this size takes."""
    return -(-size // _LINE) * _LINE


def empty(size: int) -> NDArray[np.uint8]:
    """Return zeroed bytes that begin at a multiple of 64, rounded up to one."""
    size = rounded(size)
    raw = np.zeros(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size]


def aligned(values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy that begins at a multiple of 64 bytes."""
    values = np.ascontiguousarray(values)
    found = empty(values.nbytes).view(values.dtype)[: values.size].reshape(values.shape)
    found[...] = values
    return found


class Arena:
    """Many pieces of memory in one: given back as a whole, they leave no holes between what stays.

    Args:
        size: sum of the sizes that will be taken, each rounded up.
    """

    def __init__(self, size: int) -> None:
        self._memory = empty(size)
        self._used = 0

    def take(self, size: int) -> int:
        """Return the address of the next piece, zeroed; it lives as long as this does."""
        start, self._used = self._used, self._used + rounded(size)
        assert self._used <= self._memory.size
        return int(self._memory.ctypes.data) + start

    @property
    def left(self) -> int:
        """Return the bytes that are not taken."""
        return int(self._memory.size) - self._used
