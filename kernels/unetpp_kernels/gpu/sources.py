"""Virtual concatenation: which tensor a block of channels comes from; knows pointers and widths, no pixels.

The channels of `cat(sources)` are walked in blocks that never cross from one source to the next. The walk is a few
scalar selections per block, so that no kernel is compiled per number of sources and nothing is ever concatenated.
"""

import triton
import triton.language as tl

MOST = 6
"""Sources one launch can read; callers concatenate what is beyond (a network of depth 6 has that many skips)."""


@triton.jit
def pick(index, a, b, c, d, e, f):
    """Return one of six scalars (pointers or widths)."""
    found = a
    found = tl.where(index == 1, b, found)
    found = tl.where(index == 2, c, found)
    found = tl.where(index == 3, d, found)
    found = tl.where(index == 4, e, found)
    return tl.where(index == 5, f, found)


@triton.jit
def sixteens(size):
    """Return `size`, a multiple of 16, so that the compiler sees that it is one and moves 16 bytes at a time."""
    return (size // 16) * 16
