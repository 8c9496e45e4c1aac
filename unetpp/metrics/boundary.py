"""Scores where classes meet, with a tolerance in pixels; knows label arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.metrics.counts import IGNORE, check_classes, ratio, same_shape


class BoundaryF1:
    """Streaming boundary F1 per class (Csurka et al. 2013, "What is a good evaluation measure", section 3).

    A class's boundary is made of its pixels that have a pixel of another class above, below, left or right of them; the
    image's edge is no boundary. A boundary pixel is matched when a boundary pixel of the same class lies on the other
    side at a Euclidean distance of at most `tolerance`. Pixels where the truth or the prediction is 255 have no class,
    and boundary pixels within `tolerance` of them do not count, because what would match them may be unknown.

    `counts` (4, K): matched and all true boundary pixels, matched and all predicted ones. Pooled over images.
    """

    def __init__(self, classes: int, tolerance: int = 2) -> None:
        self.tolerance = tolerance
        self.counts: NDArray[np.int64] = np.zeros((4, classes), np.int64)

    def update(self, truth: NDArray[Any], prediction: NDArray[Any]) -> None:
        """Add one whole image (of a part, boundaries just outside are not seen).

        Args:
            truth, prediction: (H, W) class indices, 255 where a pixel does not count.

        Raises:
            ShapeError: the shapes differ.
            DataError: an index is not a class.
        """
        same_shape(truth, prediction)
        nothing = (truth == IGNORE) | (prediction == IGNORE)
        a, b = (np.where(nothing, IGNORE, labels) for labels in (truth, prediction))
        classes = self.counts.shape[1]
        check_classes(classes, a[~nothing], b[~nothing])
        sides = [np.where(_boundary(labels), labels, IGNORE) for labels in (a, b)]
        for row, (own, other) in enumerate((sides, sides[::-1])):
            found, near = self._match(own, other, nothing)
            self.counts[2 * row] += np.bincount(found[near], minlength=classes)
            self.counts[2 * row + 1] += np.bincount(found, minlength=classes)

    def merge(self, other: BoundaryF1) -> None:
        """Add the other's images."""
        self.counts += other.counts

    def state(self) -> NDArray[np.int64]:
        """Return `counts`; states add up."""
        return self.counts.copy()

    @classmethod
    def from_state(cls, state: NDArray[Any], tolerance: int = 2) -> BoundaryF1:
        """Return the score that has this state, or a sum of states."""
        made = cls(state.shape[1], tolerance)
        made.counts[:] = state
        return made

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of the true boundary that was found, per class; NaN where there is none."""
        return ratio(self.counts[0], self.counts[1])

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the predicted boundary that is right, per class; NaN where there is none."""
        return ratio(self.counts[2], self.counts[3])

    @property
    def f1(self) -> NDArray[np.float64]:
        """2 P R / (P + R) per class; 0 where nothing is matched, NaN where there is nothing to match.

        Also NaN where the one side's boundary is matched and all of the other's lies beside pixels without a class.
        """
        found, true, right, predicted = self.counts
        # P and R over their common denominator, so that neither needs to exist.
        product = 2 * found.astype(np.float64) * right
        f1 = ratio(product, found * predicted.astype(np.float64) + right * true.astype(np.float64))
        return np.where((found == 0) & (right == 0) & (true + predicted > 0), 0.0, f1)

    def _match(
        self, own: NDArray[Any], other: NDArray[Any], nothing: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the classes (P,) of one side's boundary pixels that count, and which are matched."""
        reach = self.tolerance
        other, unknown = np.pad(other, reach, constant_values=IGNORE), np.pad(nothing, reach)
        y, x = np.nonzero(own != IGNORE)
        classes = own[y, x].astype(np.int64)
        near, counted = np.zeros(len(y), bool), np.ones(len(y), bool)
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                if dy * dy + dx * dx <= reach * reach:
                    at = y + reach + dy, x + reach + dx
                    near |= other[at] == classes
                    counted &= ~unknown[at]
        return classes[counted], near[counted]


def _boundary(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which pixels have a neighbour of another class; 255 is none."""
    found = np.zeros(labels.shape, bool)
    for a, b in (((slice(1, None),), (slice(-1),)), ((slice(None), slice(1, None)), (slice(None), slice(-1)))):
        differ = (labels[a] != labels[b]) & (labels[a] != IGNORE) & (labels[b] != IGNORE)
        found[a] |= differ
        found[b] |= differ
    return found
