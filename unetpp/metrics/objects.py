"""Scores objects against true objects; knows two arrays of object numbers, not classes or how objects were found."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unetpp.metrics.counts import ratio, same_shape

# IoUs are summed in whole units of 2^-30, so that the order of images does not change the sum.
_UNIT = 1 << 30


class ObjectQuality:
    """Streaming panoptic quality and aggregated Jaccard index of one class of objects, pooled over images.

    A predicted and a true object match where their IoU is above 1/2; no object can then have two matches (Kirillov et
    al. 2019, section 4.1). As there, pixels that do not count are taken out of both sides, and an unmatched predicted
    object most of which lay in them is not an error.

    `counts` (6,): matches, unmatched predicted and unmatched true objects, sum of the matches' IoUs in units of 2^-30,
    and the aggregated intersection and union in pixels.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(6, np.int64)

    def update(self, truth: NDArray[Any], prediction: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> None:
        """Add one whole image (parts would cut objects).

        Args:
            truth, prediction: (H, W) integers, the number of the object at each pixel, 0 for none.
            valid: (H, W), where a pixel counts; None: everywhere.

        Raises:
            ShapeError: the shapes differ.
        """
        same_shape(truth, prediction)
        found = _overlaps(truth, prediction, valid)
        iou = found.shared / found.union
        match = 2 * found.shared > found.union
        unmatched = found.judged.copy()
        unmatched[found.predicted[match]] = False
        matches = int(match.sum())
        units = np.rint(iou[match] * _UNIT).astype(np.int64).sum()
        self.counts[:4] += [matches, unmatched.sum(), len(found.true_areas) - matches, units]
        self.counts[4:] += _aggregate(found, iou)

    def merge(self, other: ObjectQuality) -> None:
        """Add the other's images."""
        self.counts += other.counts

    def state(self) -> NDArray[np.int64]:
        """Return `counts`; states add up."""
        return self.counts.copy()

    @classmethod
    def from_state(cls, state: NDArray[Any]) -> ObjectQuality:
        """Return the quality that has this state, or a sum of states."""
        made = cls()
        made.counts[:] = state
        return made

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matches; NaN without any."""
        return _share(self.counts[3], self.counts[0] * _UNIT)

    @property
    def f1(self) -> float:
        """F1 of objects at IoU 1/2, which is the recognition quality RQ; NaN where there is no object."""
        return _share(2 * self.counts[0], 2 * self.counts[0] + self.counts[1] + self.counts[2])

    @property
    def pq(self) -> float:
        """Panoptic quality SQ * RQ (Kirillov et al. 2019, eq. 1); NaN where there is no object."""
        matches, false, missed, units, *_ = self.counts
        return _share(2 * units, (2 * matches + false + missed) * _UNIT)

    @property
    def aji(self) -> float:
        """Aggregated Jaccard index (Kumar et al. 2017, Algorithm 1), of all images' objects; NaN if there are none."""
        return _share(self.counts[4], self.counts[5])


class _Overlaps(NamedTuple):
    """Objects of one image, numbered from 0 on each side, and the pairs that share pixels.

    Attributes:
        true_areas, predicted_areas: pixels that count.
        judged: whether a predicted object is an error when it has no match.
        true, predicted, shared, union: of each pair, sorted by true, then by predicted.
    """

    true_areas: NDArray[np.int64]
    predicted_areas: NDArray[np.int64]
    judged: NDArray[np.bool_]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    shared: NDArray[np.int64]
    union: NDArray[np.int64]


def _overlaps(truth: NDArray[Any], prediction: NDArray[Any], valid: NDArray[np.bool_] | None) -> _Overlaps:
    names, full = np.unique(prediction[prediction != 0], return_counts=True)
    if valid is not None:
        truth, prediction = truth[valid], prediction[valid]
    t, p = truth.ravel(), prediction.ravel()
    true_names, true_areas = np.unique(t[t != 0], return_counts=True)
    predicted_areas = np.bincount(np.searchsorted(names, p[p != 0]), minlength=len(names))
    both = (t != 0) & (p != 0)
    pairs = np.searchsorted(true_names, t[both]) * len(names) + np.searchsorted(names, p[both])
    pairs, shared = np.unique(pairs, return_counts=True)
    true, predicted = np.divmod(pairs, max(1, len(names)))
    union = true_areas[true] + predicted_areas[predicted] - shared
    return _Overlaps(true_areas, predicted_areas, 2 * predicted_areas >= full, true, predicted, shared, union)


def _aggregate(found: _Overlaps, iou: NDArray[np.float64]) -> tuple[int, int]:
    """Return intersection and union of AJI.

    Every true object brings in the predicted one with which it has the largest IoU, even if another one did before, and
    adds their intersection and union, or its own area where it has none. Predicted objects that no one brought in add
    their area to the union.
    """
    # Sorted by true object and within it by falling IoU (then by number): its first pair is its best.
    order = np.lexsort((found.predicted, -iou, found.true))
    true, first = np.unique(found.true[order], return_index=True)
    best = order[first]
    alone = np.ones(len(found.true_areas), bool)
    alone[true] = False
    unused = found.judged.copy()
    unused[found.predicted[best]] = False
    union = found.union[best].sum() + found.true_areas[alone].sum() + found.predicted_areas[unused].sum()
    return int(found.shared[best].sum()), int(union)


def _share(part: Any, whole: Any) -> float:
    return float(ratio(np.asarray([part]), np.asarray([whole]))[0])
