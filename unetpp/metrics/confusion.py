"""Counts classes of pixels against the truth; knows label arrays, not objects, boundaries or probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import ShapeError
from unetpp.metrics.counts import IGNORE, check_classes, ratio


def judged_iou(iou: Sequence[float], shown: Sequence[bool]) -> float:
    """Return the figure that networks are compared by.

    Args:
        iou: per class; NaN where neither truth nor prediction has it.
        shown: per class, whether the truth has it.

    Returns:
        The second class's IoU of two (the first is the background), the mean over those that the truth has of three and
        more; NaN where there is none, as of an image without foreground in which none was found. Of three and more, a
        class that the truth lacks is left out even where it was predicted: those pixels are missed by the classes that
        they are of, and a mean over one class more, at 0, for one such pixel would decide between networks.
    """
    if len(iou) == 2:
        return iou[1]
    judged = [value for value, there in zip(iou, shown, strict=True) if there and not math.isnan(value)]
    return float(np.mean(judged)) if judged else math.nan


class Confusion:
    """Streaming confusion matrix over class indices 0..K-1; `matrix[t, p]` counts pixels of truth t predicted as p.

    Pixels whose truth is 255, or whose prediction is 255 (no data), do not count.
    """

    def __init__(self, classes: int) -> None:
        self.matrix: NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def update(self, truth: NDArray[Any], prediction: NDArray[Any]) -> None:
        """Add pixels; both arrays hold class indices and have one shape.

        Raises:
            ShapeError: the shapes differ.
            DataError: an index is not a class.
        """
        if truth.shape != prediction.shape:
            raise ShapeError(f"truth has shape {truth.shape}, prediction {prediction.shape}; they must be equal")
        classes = len(self.matrix)
        counted = (truth != IGNORE) & (prediction != IGNORE)
        t, p = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
        check_classes(classes, t, p)
        self.matrix += np.bincount(t * classes + p, minlength=classes * classes).reshape(classes, classes)

    def merge(self, other: Confusion) -> None:
        """Add the other's pixels."""
        self.matrix += other.matrix

    def state(self) -> NDArray[np.int64]:
        """Return the matrix (K, K); states add up."""
        return self.matrix.copy()

    @classmethod
    def from_state(cls, state: NDArray[Any]) -> Confusion:
        """Return the confusion that has this state, or a sum of states."""
        made = cls(len(state))
        made.matrix[:] = state
        return made

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class, pooled over all pixels; NaN for a class that occurs nowhere."""
        hit, truth, predicted = self._sums()
        return ratio(hit, truth + predicted - hit)

    @property
    def judged_iou(self) -> float:
        """What networks are compared by; see `judged_iou`."""
        return judged_iou(tuple(map(float, self.iou)), (self.matrix.sum(1) > 0).tolist())

    @property
    def dice(self) -> NDArray[np.float64]:
        """2 |A and B| / (|A| + |B|) per class; NaN as for `iou`."""
        hit, truth, predicted = self._sums()
        return ratio(2 * hit, truth + predicted)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the predicted pixels that are right, per class; NaN where nothing was predicted."""
        hit, _, predicted = self._sums()
        return ratio(hit, predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of the true pixels that were found, per class; NaN where the class does not occur."""
        hit, truth, _ = self._sums()
        return ratio(hit, truth)

    @property
    def accuracy(self) -> float:
        """Share of all counted pixels that are right; NaN when none counted."""
        return float(ratio(np.trace(self.matrix)[None], self.matrix.sum()[None])[0])

    def _sums(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        return np.diag(self.matrix), self.matrix.sum(1), self.matrix.sum(0)
