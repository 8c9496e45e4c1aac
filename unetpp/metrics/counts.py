"""What all metrics share: the label that does not count, fixed-point numbers, ratios of counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import DataError, ShapeError

IGNORE = 255


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return part / whole; NaN where whole is 0."""
    out: NDArray[np.float64] = np.full(part.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def same_shape(truth: NDArray[Any], prediction: NDArray[Any]) -> None:
    """Raise `ShapeError` unless both are (H, W)."""
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise ShapeError(f"truth has shape {truth.shape}, prediction {prediction.shape}; give two (H, W) of one size")


def check_classes(classes: int, *indices: NDArray[Any]) -> None:
    """Raise `DataError` unless all indices, without those that do not count, are of classes."""
    for found in indices:
        # A negative one would be counted as another class, or end in numpy's words.
        for index in (int(found.min()), int(found.max())) if found.size else ():
            if not 0 <= index < classes:
                raise DataError(
                    f"class index {index} is outside 0..{classes - 1}; give as many classes as there are, and {IGNORE} "
                    "where a pixel does not count"
                )
