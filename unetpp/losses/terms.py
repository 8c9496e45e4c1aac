"""The terms of a loss, each as sums over pixels and a function of the sums; knows no logits and no other workers.

The split is what makes a term computable by several workers: they add their sums, then all compute the same function.
Classes that do not occur in the batch have no overlap to improve and do not count in means over classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from unetpp.errors import ConfigError
from unetpp.losses.config import LossConfig
from unetpp.losses.lovasz import lovasz_jaccard
from unetpp.losses.pixels import Scores, Truth
from unetpp.losses.skeleton import soft_skeleton

# Keeps small objects' gradients finite; 1 pixel, as in the UNet++ authors' Dice.
_SMOOTH = 1.0


class Term(Protocol):
    """One term for one truth; many heads may be scored against it."""

    def sums(self, scores: Scores) -> Tensor:
        """Return what this worker's pixels add, (m,) or (m, channels)."""

    def value(self, sums: Tensor) -> Tensor:
        """Return the scalar term of the whole batch's sums; 0 where no pixel counts."""


@dataclass(frozen=True)
class PixelMean:
    """Weighted mean over pixels of -(1 - p)^gamma log p, p being the true class's probability.

    gamma = 0 is cross-entropy, gamma > 0 the focal loss (Lin et al. 2017, eq. 4). The weights' sum divides, so weights
    say how pixels compare and do not change the size of the loss.
    """

    truth: Truth
    gamma: float = 0.0

    def sums(self, scores: Scores) -> Tensor:
        loss = -scores.log_at_label
        if self.gamma:
            # Not below 1e-6: for gamma < 1 the slope is infinite at 0.
            loss = loss * (-scores.log_at_label.expm1()).clamp(min=1e-6).pow(self.gamma)
        return torch.stack([(loss * self.truth.weight).sum(), self.truth.weight.sum().to(loss.dtype)])

    def value(self, sums: Tensor) -> Tensor:
        total, weight = sums
        mean: Tensor = total / torch.where(weight > 0, weight, 1)
        return mean


@dataclass(frozen=True)
class Tversky:
    """Mean over classes of 1 - (I + s) / (I + alpha (P - I) + beta (T - I) + s), over the whole batch.

    I, P and T are the sums over pixels of p t, p and t (Salehi et al. 2017). alpha = beta = 1/2 with s = 1/2 is
    the Dice term 1 - (2 I + 1) / (P + T + 1).
    """

    truth: Truth
    alpha: float
    beta: float
    smooth: float = _SMOOTH

    def sums(self, scores: Scores) -> Tensor:
        masks, channels = self.truth.masks, scores.probability.unbind(1)
        overlap = torch.stack([(p * mask).sum() for p, mask in zip(channels, masks, strict=True)])
        count = torch.stack([mask.sum() for mask in masks]).to(overlap.dtype)
        return torch.stack([overlap, scores.probability.sum((0, 2, 3)), count])

    def value(self, sums: Tensor) -> Tensor:
        overlap, predicted, count = sums
        wrong = self.alpha * (predicted - overlap) + self.beta * (count - overlap)
        return _mean(1 - (overlap + self.smooth) / (overlap + wrong + self.smooth), count)


@dataclass(frozen=True)
class ClDice:
    """Mean over classes of 1 - 2 p s / (p + s): soft-clDice (Shit et al. 2021, eqs. 1 and 2, Algorithm 2).

    p is the share of the predicted skeleton inside the truth, s the share of the true skeleton inside the prediction.
    """

    truth: Truth
    steps: int
    channels: Sequence[int]

    @cached_property
    def _true(self) -> tuple[Tensor, Tensor]:
        masks = torch.stack([self.truth.masks[k] for k in self.channels], 1).float()
        return masks, soft_skeleton(masks, self.steps)

    def sums(self, scores: Scores) -> Tensor:
        mask, true_skeleton = self._true
        channels = scores.probability.unbind(1)
        probability = torch.stack([channels[k] for k in self.channels], 1)
        skeleton = soft_skeleton(probability, self.steps)
        parts = skeleton * mask, skeleton, true_skeleton * probability, true_skeleton, mask
        return torch.stack([part.sum((0, 2, 3)).to(probability.dtype) for part in parts])

    def value(self, sums: Tensor) -> Tensor:
        inside, skeleton, found, true_skeleton, count = sums
        precision = (inside + _SMOOTH) / (skeleton + _SMOOTH)
        sensitivity = (found + _SMOOTH) / (true_skeleton + _SMOOTH)
        return _mean(1 - 2 * precision * sensitivity / (precision + sensitivity), count)


@dataclass(frozen=True)
class Lovasz:
    """Mean over classes of the Lovász extension of 1 - IoU at the probabilities' errors (Berman et al. 2018).

    The order of all errors cannot be had from sums: each worker sorts its own pixels, and the term is the mean over
    the workers that have any pixel that counts.
    """

    truth: Truth

    def sums(self, scores: Scores) -> Tensor:
        masks, channels = self.truth.masks, scores.probability.unbind(1)
        losses = [
            lovasz_jaccard((mask.to(p.dtype) - p).abs().flatten(), mask.flatten())
            for p, mask in zip(channels, masks, strict=True)
        ]
        loss = _mean(torch.stack(losses), torch.stack([mask.sum() for mask in masks]))
        return torch.stack([loss, self.truth.valid.any().to(loss.dtype)])

    def value(self, sums: Tensor) -> Tensor:
        total, workers = sums
        mean: Tensor = total / workers.clamp(min=1)
        return mean


def make_terms(config: LossConfig, truth: Truth) -> list[tuple[float, Term]]:
    """Return weights and terms."""
    made: list[tuple[float, Term]] = []
    for name, weight in config.terms:
        term: Term
        if name == "ce":
            term = PixelMean(truth)
        elif name == "focal":
            term = PixelMean(truth, config.focal_gamma)
        elif name == "dice":
            term = Tversky(truth, 0.5, 0.5, _SMOOTH / 2)
        elif name == "tversky":
            term = Tversky(truth, *config.tversky)
        elif name == "cldice":
            term = ClDice(truth, config.cldice_steps, _thin(config, len(truth.masks)))
        else:
            term = Lovasz(truth)
        made.append((weight, term))
    return made


def _thin(config: LossConfig, channels: int) -> Sequence[int]:
    """Return the channels of the thin classes."""
    if channels == 1:
        return (0,)
    chosen = range(1, channels) if config.cldice_classes is None else config.cldice_classes
    if not chosen or not all(0 <= k < channels for k in chosen):
        raise ConfigError(f"cldice_classes = {tuple(chosen)}: give classes from 0 to {channels - 1}")
    return chosen


def _mean(values: Tensor, count: Tensor) -> Tensor:
    """Return the mean over the classes that occur."""
    present = (count > 0).to(values.dtype)
    return (values * present).sum() / present.sum().clamp(min=1)
