"""Mean and standard deviation of valid pixels, patch by patch, whatever the order; knows numbers only.

Whole numbers are summed exactly and divided once. Fractions are summed per patch in float64, and the patches' results
are joined by `math.fsum`, which rounds once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sums:
    """Of one patch: valid pixels, and per band their sum and the sum of squares (whole numbers) or of squared
    differences from the patch's mean (fractions)."""

    count: int
    total: tuple[float, ...]
    squares: tuple[float, ...]

    @classmethod
    def of(cls, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> Self:
        """Sum the valid pixels of (h, w, C)."""
        values = pixels[valid]
        if pixels.dtype.kind == "f":
            values = values.astype(np.float64)
            mean = values.mean(0) if len(values) else np.zeros(pixels.shape[-1])
            squares = ((values - mean) ** 2).sum(0)
            return cls(len(values), tuple(map(float, values.sum(0))), tuple(map(float, squares)))
        if pixels.dtype.itemsize > 2:
            columns = [[int(v) for v in column] for column in values.T]
            return cls(len(values), tuple(map(sum, columns)), tuple(sum(v * v for v in c) for c in columns))
        total, squares = [], []
        for band in values.T:
            # Exact and several times faster than sums of 64-bit copies.
            amounts = np.bincount(band.astype(np.int64) - (low := int(band.min()) if len(band) else 0))
            levels = np.arange(len(amounts), dtype=np.int64) + low
            total.append(int(amounts @ levels))
            squares.append(int(amounts @ (levels * levels)))
        return cls(len(values), tuple(total), tuple(squares))


class Statistics:
    """Joins the sums of patches; what comes out does not depend on their order.

    Args:
        whole: pixels are whole numbers.
    """

    def __init__(self, bands: int, *, whole: bool) -> None:
        self._bands, self._whole, self._count = bands, whole, 0
        self._total, self._squares = [0] * bands, [0] * bands
        self._parts: list[tuple[float, ...]] = []

    def add(self, part: Sums) -> None:
        if not part.count:
            return
        self._count += part.count
        if self._whole:
            self._total = [a + int(b) for a, b in zip(self._total, part.total, strict=True)]
            self._squares = [a + int(b) for a, b in zip(self._squares, part.squares, strict=True)]
        else:
            self._parts.append((part.count, *part.total, *part.squares))

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation (of the population) per band; 0 and 1 where nothing is valid.

        A band that is constant has deviation 1, for pixels are divided by it.
        """
        if not self._count:
            return (0.0,) * self._bands, (1.0,) * self._bands
        found = [self._exact(band) if self._whole else self._rounded(band) for band in range(self._bands)]
        return tuple(mean for mean, _ in found), tuple(math.sqrt(variance) or 1.0 for _, variance in found)

    def _exact(self, band: int) -> tuple[float, float]:
        total, squares, count = self._total[band], self._squares[band], self._count
        return float(Fraction(total, count)), float(Fraction(squares * count - total * total, count * count))

    def _rounded(self, band: int) -> tuple[float, float]:
        counts, totals, squares = (np.array([p[k] for p in self._parts]) for k in (0, 1 + band, 1 + self._bands + band))
        mean = math.fsum(totals) / self._count
        between = counts * (totals / counts - mean) ** 2
        return mean, math.fsum(np.concatenate([squares, between])) / self._count
