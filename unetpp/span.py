"""Says where a source's samples lie, so that "a tenth brighter" means as much for any type; changes no sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SPREAD = 3.0
"""Standard deviations to either side. 8-bit photographs and slides have a deviation near 255 / 6."""


@dataclass(frozen=True)
class Span:
    """The range of samples in whose width colours are varied, and what samples cannot leave.

    Few types are used to the full: 12 bits of a sensor fill a sixteenth of uint16, decibels and heights lie far outside
    0..1. So only 8 bits are taken at their word.

    Attributes:
        low, high: per band, in raw units, high > low: 0 and 255 of uint8; 0 and mean + 3 deviations of other unsigned
            types, whose 0 is darkness; else mean -+ 3 deviations.
        least, most: what the type can hold; infinite for floats.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    least: float
    most: float

    @classmethod
    def of(cls, dtype: str, mean: Sequence[float], std: Sequence[float]) -> Span:
        """Return the span of samples of a type with these means and standard deviations per band."""
        kind = np.dtype(dtype)
        if kind == np.uint8:
            return cls((0.0,) * len(mean), (255.0,) * len(mean), 0.0, 255.0)
        whole = kind.kind in "ui"
        least, most = (float(np.iinfo(kind).min), float(np.iinfo(kind).max)) if whole else (-math.inf, math.inf)
        # A band of one value has no width; any will do.
        reach = [_SPREAD * float(s) or 1.0 for s in std]
        low = [0.0 if kind.kind == "u" else m - r for m, r in zip(mean, reach, strict=True)]
        high = [min(most, m + r) for m, r in zip(mean, reach, strict=True)]
        return cls(tuple(map(float, low)), tuple(map(float, high)), least, most)
