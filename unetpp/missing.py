"""Says what a network is shown where there is no data: its mean, which it sees as 0; changes no pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fill_values(mean: Sequence[float], dtype: str) -> NDArray[Any]:
    """Return the sample (C,) per band that stands for missing pixels, in `dtype`.

    Training, evaluation and segmentation all ask here, so that a network is judged on what it will be shown.

    Args:
        mean: per band, in raw units: what the network subtracts.
        dtype: of the samples; whole numbers get the nearest that the type can hold.
    """
    values, kind = np.asarray(mean, np.float64), np.dtype(dtype)
    if kind.kind in "ui":
        values = np.rint(values).clip(np.iinfo(kind).min, np.iinfo(kind).max)
    return values.astype(kind)
