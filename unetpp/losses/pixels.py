"""Logits and labels as the terms of a loss read them, without the pixels that do not count; knows no term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unetpp.errors import ConfigError, ShapeError

IGNORE = 255


@dataclass(frozen=True)
class Truth:
    """What is true of a batch; one logit is one channel, the foreground, and K logits are K channels.

    Attributes:
        labels: (N, H, W) int64, 0 where a pixel does not count.
        valid: (N, H, W) bool, where a pixel counts.
        masks: per channel, where it is true, (N, H, W) bool.
        weight: (N, H, W) float32 weight of each pixel in mean values over pixels; 0 where it does not count.
    """

    labels: Tensor
    valid: Tensor
    masks: tuple[Tensor, ...]
    weight: Tensor

    @classmethod
    def of(cls, target: Tensor, like: Tensor, class_weights: Sequence[float] | None, more: Tensor | None) -> Truth:
        """Read labels (N, H, W), for logits (N, C, H, W).

        Args:
            class_weights: of a pixel by its label.
            more: (N, H, W) factor of the weights.

        Raises:
            ShapeError: the labels are not of the logits' pixels.
            ConfigError: not one class weight per class.
        """
        channels, shape = like.shape[1], (like.shape[0], *like.shape[2:])
        if target.shape != shape:
            # Spread over the batch, one image's labels would be taken for every image's.
            raise ShapeError(f"target has shape {tuple(target.shape)}; logits {tuple(like.shape)} need {shape}")
        valid = target != IGNORE
        labels = torch.where(valid, target, 0).long()
        weight = valid.float()
        if class_weights is not None:
            if len(class_weights) != max(2, channels):
                raise ConfigError(f"class_weights has {len(class_weights)} numbers: give {max(2, channels)}")
            weight = weight * torch.tensor(class_weights, dtype=torch.float32, device=target.device)[labels]
        if more is not None:
            weight = weight * more
        # A mask per class rather than one-hot sums: deterministic on every device, and no (N, K, H, W) copy.
        shown = range(1, 2) if channels == 1 else range(channels)
        return cls(labels, valid, tuple((labels == k) & valid for k in shown), weight)


@dataclass(frozen=True)
class Scores:
    """What one head says of a batch, in float32 (float64 stays), with gradients.

    Attributes:
        probability: (N, C, H, W) per channel, 0 where a pixel does not count.
        log_at_label: (N, H, W) logarithm of the true class's probability, 0 where a pixel does not count.
    """

    probability: Tensor
    log_at_label: Tensor

    @classmethod
    def of(cls, logits: Tensor, truth: Truth) -> Scores:
        """Read logits (N, C, H, W); what they are where a pixel does not count changes nothing, be it NaN."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        counted = truth.valid[:, None]
        # Before anything is computed: 0 * NaN would still be NaN, forward and backward.
        kept = wide.masked_fill(~counted, 0.0)
        if logits.shape[1] == 1:
            score = kept[:, 0]
            entropy = F.binary_cross_entropy_with_logits(score, truth.labels.to(score.dtype), reduction="none")
            return cls(kept.sigmoid() * counted, -entropy * truth.valid)
        log_probability = kept.log_softmax(1)
        at_label = log_probability.gather(1, truth.labels[:, None])[:, 0]
        return cls(log_probability.exp() * counted, at_label * truth.valid)
