"""Memory that ends, or begins, where the process may not read or write: a step outside of it ends the process."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Edge = Literal["end", "start"]
POISON = 0xFF
"""Of all bytes that nobody has written yet: NaN as float32 and bf16, an address that is none, -1 as a number."""
_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guard:
    """Makes arrays with a forbidden page next to one of their edges."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge

    def bytes(self, size: int) -> NDArray[np.uint8]:
        """Return so many poisoned bytes; the array keeps its memory."""
        pages = max(1, -(-size // _PAGE)) * _PAGE
        whole = np.frombuffer(mmap.mmap(-1, pages + 2 * _PAGE), np.uint8)
        for place in (0, pages + _PAGE):
            if _libc.mprotect(whole.ctypes.data + place, _PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        start = _PAGE if self.edge == "start" else _PAGE + pages - size
        found = whole[start : start + size]
        found[...] = POISON
        return found

    def array(self, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        return self.bytes(size).view(kind).reshape(shape)

    def copy(self, values: NDArray[Any]) -> NDArray[Any]:
        found = self.array(values.shape, values.dtype)
        found[...] = values
        return found
