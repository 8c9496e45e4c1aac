"""Counts what every threshold on a class's probability would find; knows logits and labels, draws nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetpp.errors import ShapeError
from unetpp.metrics.calibration import counted
from unetpp.metrics.counts import ratio


class PrecisionRecall:
    """Streaming precision and recall of each class against the rest, at thresholds in even steps of probability.

    `counts` (2, K, B): pixels that are not, and that are, of class k, by the bin [b / B, (b + 1) / B) of p_k.
    """

    def __init__(self, classes: int, bins: int = 64) -> None:
        self.counts: NDArray[np.int64] = np.zeros((2, classes, bins), np.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, truth: NDArray[Any]) -> None:
        """Add pixels.

        Args:
            logits: (K, ...); K = 1 is foreground against background.
            truth: (...) class indices, 255 where a pixel does not count.

        Raises:
            ShapeError: the shapes do not fit, or the logits are of more or fewer classes.
            DataError: a label is not a class of the logits.
        """
        scores, labels = counted(logits, truth)
        _, classes, bins = self.counts.shape
        if len(scores) != classes:
            raise ShapeError(f"logits of {len(scores)} classes for curves of {classes}; give as many")
        number = (scores.softmax(0) * bins).long().clamp_(0, bins - 1)
        for index in range(classes):
            place = number[index] + bins * (labels == index)
            self.counts[:, index] += torch.bincount(place, minlength=2 * bins).reshape(2, bins).cpu().numpy()

    def merge(self, other: PrecisionRecall) -> None:
        """Add the other's pixels."""
        self.counts += other.counts

    def state(self) -> NDArray[np.int64]:
        """Return `counts`; states add up."""
        return self.counts.copy()

    @classmethod
    def from_state(cls, state: NDArray[Any]) -> PrecisionRecall:
        """Return the curves that have this state, or a sum of states."""
        made = cls(*state.shape[1:])
        made.counts[:] = state
        return made

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of class k found with p_k >= b / B, (K, B); NaN where the class does not occur."""
        found = self._above()[1]
        return ratio(found, np.broadcast_to(found[:, :1], found.shape))

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the pixels with p_k >= b / B that are of class k, (K, B); NaN where there is none."""
        above = self._above()
        return ratio(above[1], above.sum(0))

    @property
    def average_precision(self) -> NDArray[np.float64]:
        """Sum over thresholds of the gain in recall times precision, (K,); NaN where the class does not occur."""
        gains = np.diff(self.recall[:, ::-1], axis=1, prepend=0.0)
        area: NDArray[np.float64] = (gains * np.nan_to_num(self.precision[:, ::-1])).sum(1)
        return area

    def _above(self) -> NDArray[np.int64]:
        return np.asarray(self.counts[..., ::-1].cumsum(-1)[..., ::-1])
