"""Averages what a network says of an image in several orientations (test-time augmentation); knows tensors alone.

Slides and scenes from above have no up: the class of a pixel does not change when the image is turned, a network's
output does, a little. The mean of its probabilities over the orientations does not, except for rounding. (Photos of
streets have an up: there only "mirror" is right.) It equals the mean over
networks whose 3x3 kernels are turned instead of the image, so halo and tiles stay what they are: tiles whose sides are
multiples of the network's are pooled at the same places in every orientation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unetpp.model.orientations import Tta, Turn, turns

_LEAST = 1e-30
"""Probability that stands for 0 where its logarithm is taken."""


def averaged(run: Callable[[Tensor], Tensor], x: Tensor, tta: Tta, axes: tuple[int, int] = (-2, -1)) -> Tensor:
    """Return the logits whose probabilities are the mean over all orientations of an image.

    Args:
        run: image -> logits (..., K, h, w), K = 1 for a single logit. What it leaves out of the image's edges must be
            the same on all four sides.
        x: an image whose sides are multiples of the network's: padding belongs to one orientation.
        tta: which orientations; with "none" this is `run(x)`.
        axes: of height and width in `x`.

    Returns:
        (..., K, h, w); float32 logarithms of the mean probabilities, or of their ratio where K = 1.
    """
    if tta == "none":
        return run(x)
    first, *others = turns(tta)
    logits = _seen(run, x, first, axes)
    single = logits.shape[-3] == 1
    total = _probabilities(logits)
    del logits  # a tile's are tens of megabytes, which nobody reads while the other orientations are computed
    for turn in others:
        total += _probabilities(_seen(run, x, turn, axes))
    logs = total.div_(1 + len(others)).clamp_min_(_LEAST).log_()
    return logs[..., 1:, :, :] - logs[..., :1, :, :] if single else logs


def _seen(run: Callable[[Tensor], Tensor], x: Tensor, turn: Turn, axes: tuple[int, int]) -> Tensor:
    """Return what `run` says of `x` in one orientation, in the orientation of `x`."""
    return turn.undone(run(turn.of(x, axes).contiguous()), (-2, -1))


def _probabilities(logits: Tensor) -> Tensor:
    """Return (..., max(K, 2), h, w) float32; the first of two classes has logit 0 where there is a single one."""
    logits = logits.float()
    if logits.shape[-3] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], -3)
    return logits.softmax(-3)
