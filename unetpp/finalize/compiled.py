"""Compiles loops over pixels and vertices to machine code; knows Numba, not what the loops do.

Compiled code runs without Python's lock, so that threads work at once. It is kept on the disk, beside the module or in
the user's cache, so that only a machine's first call waits some seconds for it; where no folder can be written, every
process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
ZERO = cast("int", np.int64(0))
"""0 for compiled code: of a plain one Numba makes a type of its own, and compiles again what it is given to."""


def compiled(function: Function) -> Function:
    """Compile a function of arrays and numbers at its first call for each combination of their types."""
    try:
        return cast("Function", numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no place for the cache
        return cast("Function", numba.njit(nogil=True)(function))
