"""Compares probabilities with how often they come true; knows logits and labels.

Sums are kept in whole units of 2^-20, each pixel's value rounded to one: any order of any parts gives the same sum, and
2^33 pixels fit the whole numbers of a float64, in which workers may add them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetpp.errors import ShapeError
from unetpp.metrics.counts import IGNORE, check_classes, ratio

_UNIT = 1 << 20
_PIECE = 1 << 15


class CalibrationError:
    """Streaming expected calibration error of the most probable class (Guo et al. 2017, eqs. 2 and 3).

    Bin m of M holds pixels whose confidence is in ((m - 1) / M, m / M].

    `counts` (3, M): pixels, right pixels, sum of confidences in units of 2^-20.
    """

    def __init__(self, bins: int = 15) -> None:
        self.counts: NDArray[np.int64] = np.zeros((3, bins), np.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, truth: NDArray[Any]) -> None:
        """Add pixels; computed on the logits' device in float64.

        Args:
            logits: (K, ...); K = 1 is foreground against background.
            truth: (...) class indices, 255 where a pixel does not count.

        Raises:
            ShapeError: the shapes do not fit.
            DataError: a label is not a class of the logits.
        """
        scores, labels = counted(logits, truth)
        confidence, decided = scores.softmax(0).max(0)
        units = (confidence * _UNIT).round().long()
        bins = self.counts.shape[1]
        # In whole numbers, so that a confidence on a bin's edge is in one bin on every machine.
        number = (units * bins - 1).div(_UNIT, rounding_mode="floor").clamp(0, bins - 1).cpu().numpy()
        right = (decided == labels).cpu().numpy()
        sums = np.zeros(bins, np.int64)
        np.add.at(sums, number, units.cpu().numpy())
        self.counts += np.stack([np.bincount(number, minlength=bins), np.bincount(number[right], minlength=bins), sums])

    def merge(self, other: CalibrationError) -> None:
        """Add the other's pixels."""
        self.counts += other.counts

    def state(self) -> NDArray[np.int64]:
        """Return `counts`; states add up."""
        return self.counts.copy()

    @classmethod
    def from_state(cls, state: NDArray[Any]) -> CalibrationError:
        """Return the error that has this state, or a sum of states."""
        made = cls(state.shape[1])
        made.counts[:] = state
        return made

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of right pixels per bin; NaN where a bin is empty."""
        return ratio(self.counts[1], self.counts[0])

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Mean confidence per bin; NaN where a bin is empty."""
        return ratio(self.counts[2], self.counts[0] * _UNIT)

    @property
    def ece(self) -> float:
        """Mean over pixels of |accuracy - confidence| of their bin; NaN when no pixel counted."""
        gap = np.abs(self.counts[1] * _UNIT - self.counts[2]).sum()
        return float(ratio(gap[None], self.counts[0].sum()[None] * _UNIT)[0])


class Temperature:
    """Streaming search for the T that minimises the mean of -log softmax(logits / T) (Guo et al. 2017, section 4.2).

    The sums are kept for a fixed grid of T, four per octave from 1/4 to 16, so that one pass over the images is enough
    and workers' sums add up.

    `counts` (1 + 25,): pixels, then for each T the sum of -log p in units of 2^-20.
    """

    grid: NDArray[np.float64] = 2.0 ** (np.arange(-8, 17) / 4)

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(1 + len(self.grid), np.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, truth: NDArray[Any]) -> None:
        """Add pixels; arguments and errors as for `CalibrationError.update`."""
        scores, labels = counted(logits, truth)
        sums = torch.zeros(len(self.grid), dtype=torch.int64, device=scores.device)
        # In pieces that stay in a CPU's cache: four times faster than all pixels at once.
        for piece, names in zip(torch.split(scores, _PIECE, 1), torch.split(labels, _PIECE), strict=True):
            below = piece - piece.max(0).values
            own = below.gather(0, names[None])[0]
            for index, cold in enumerate((1 / self.grid).tolist()):
                loss = (below * cold).exp_().sum(0).log_() - own * cold
                sums[index] += (loss * _UNIT).round_().long().sum()
        self.counts += np.concatenate([[len(labels)], sums.cpu().numpy()])

    def merge(self, other: Temperature) -> None:
        """Add the other's pixels."""
        self.counts += other.counts

    def state(self) -> NDArray[np.int64]:
        """Return `counts`; states add up."""
        return self.counts.copy()

    @classmethod
    def from_state(cls, state: NDArray[Any]) -> Temperature:
        """Return the search that has this state, or a sum of states."""
        made = cls()
        made.counts[:] = state
        return made

    @property
    def loss(self) -> NDArray[np.float64]:
        """Mean of -log p for each T of `grid`; NaN when no pixel counted."""
        sums = self.counts[1:]
        return ratio(sums, np.full(sums.shape, self.counts[0] * _UNIT))

    @property
    def best(self) -> float:
        """The best T: the minimum of the parabola through the three best neighbours in log T.

        At an end of the grid it is that end: labels that all are right ask for T = 0. NaN when no pixel counted.
        """
        if not self.counts[0]:
            return float("nan")
        k = int(np.argmin(self.counts[1:]))
        if k in (0, len(self.grid) - 1):
            return float(self.grid[k])
        left, here, right = self.loss[k - 1 : k + 2]
        bend = left - 2 * here + right
        step = (left - right) / (2 * bend) if bend > 0 else 0.0
        return float(self.grid[k] * 2 ** (step / 4))


def counted(logits: Tensor, truth: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Return scores (K, P) float64 of at least two classes and labels (P,) int64 of the pixels that count.

    Raises:
        ShapeError: the shapes do not fit.
        DataError: a label is not a class of the logits.
    """
    if tuple(logits.shape[1:]) != truth.shape:
        raise ShapeError(f"logits have shape {tuple(logits.shape)}, truth {truth.shape}; give (K, H, W) and (H, W)")
    counted, known = torch.from_numpy(truth != IGNORE).to(logits.device), truth[truth != IGNORE].astype(np.int64)
    check_classes(max(2, len(logits)), known)
    labels = torch.from_numpy(known).to(logits.device)
    scores = logits[:, counted].double()
    return (torch.cat([torch.zeros_like(scores), scores]) if len(scores) == 1 else scores), labels
