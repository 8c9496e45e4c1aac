"""Keeps short texts so that compiled code copies them eight bytes at a time; knows nothing of what they say.

A text begins at a whole word of 64 bits, its first byte lowest, and is padded to whole words. What is written behind it
takes the place of the padding: so words are copied without a look at where the text ends inside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from unetpp.finalize.outlines import Ints

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
WORD = 8
"""Bytes of a word: what is put together needs as many to spare at its end."""


class Texts:
    """Texts one behind the other; what is added returns for each its first word and its length in bytes, (n, 2)."""

    def __init__(self) -> None:
        self._parts: list[Words] = []
        self._used = 0

    def all(self, texts: Sequence[bytes]) -> Ints:
        """Add texts; none ends with a zero byte."""
        return self._add(padded(texts), [len(text) for text in texts])

    def rows(self, texts: Bytes) -> Ints:
        """Add texts (n, length)."""
        count, length = texts.shape
        words = np.zeros((count, -(-length // WORD)), "<u8")
        words.view(np.uint8)[:, :length] = texts
        return self._add(words, length)

    def numbers(self, values: npt.ArrayLike) -> Ints:
        """Add numbers to 12 digits; few of them differ."""
        found, which = np.unique(np.asarray(values, np.float64), return_inverse=True)
        return self.all([_number(value) for value in found.tolist()])[which]

    def joined(self) -> Words:
        return np.concatenate(self._parts)

    def _add(self, words: Words, lengths: npt.ArrayLike) -> Ints:
        count, width = words.shape
        places = np.empty((count, 2), np.int64)
        places[:, 0], places[:, 1] = np.arange(self._used, self._used + count * width, width), lengths
        self._parts.append(words.ravel())
        self._used += count * width
        return places


def padded(texts: Sequence[bytes]) -> Words:
    """Return texts as the rows of (n, words); none ends with a zero byte."""
    words = -(-max(map(len, texts)) // WORD)
    return np.array(texts, f"S{words * WORD}").view("<u8").reshape(len(texts), words)


@lru_cache(2**14)
def _number(value: float) -> bytes:
    """Return a number to 12 digits; most objects' areas were there before."""
    return repr(float(f"{value:.12g}")).encode()
