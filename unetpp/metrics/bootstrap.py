"""Says how far a figure would move with other images of the same kind; knows counts per group, not what they count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def bootstrap(
    counts: NDArray[Any],
    figure: Callable[[NDArray[Any]], ArrayLike],
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the percentile interval of a figure over resampled groups (Efron and Tibshirani 1993, chapter 13).

    Groups (images, slides, patients) are drawn with replacement, as many as there are; their counts are added and the
    figure is computed of the sum, as it is of all groups. Pixels of a group are not independent, so groups it must be.

    Args:
        counts: (G, ...) summable counts per group, such as the states of a metric.
        figure: takes summed counts (...) and returns a number or an array of numbers, such as
            `lambda state: Confusion.from_state(state).iou`.
        samples: how many times groups are drawn.
        confidence: share of the resampled figures inside the interval.
        seed: of the draws.

    Returns:
        low and high, float64 in the figure's shape. Resamples in which a figure is NaN do not count for it; it is NaN
        where all are, and where there are fewer than two groups, which cannot say how groups differ.
    """
    groups = len(counts)
    if groups < 2:
        unknown = np.full(np.shape(figure(counts.sum(0))), np.nan)
        return unknown, unknown.copy()
    flat = counts.reshape(groups, -1)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(samples):
        times = np.bincount(random.integers(groups, size=groups), minlength=groups)
        found.append(np.asarray(figure((times @ flat).reshape(counts.shape[1:])), np.float64))
    values = np.stack(found)
    tail = (1 - confidence) / 2
    bounds = np.full((2, *values.shape[1:]), np.nan)
    for index in np.ndindex(values.shape[1:]):
        column = values[(slice(None), *index)]
        column = column[~np.isnan(column)]
        if column.size:
            bounds[(slice(None), *index)] = np.quantile(column, (tail, 1 - tail))
    return bounds[0], bounds[1]
