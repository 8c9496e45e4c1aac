"""Scores every head of a trained grid and names the smallest that is good enough; knows no engine and no package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unetpp.metrics import Confusion
from unetpp.model import UNetPlusPlus
from unetpp.train.loop import score
from unetpp.train.normalise import Normalise
from unetpp.train.source import Source
from unetpp.train.validate import decide, predict


@dataclass(frozen=True)
class LevelScore:
    """What one head gives on the validation images.

    Attributes:
        level: j of X^{0,j}; 0 stands for the mean of all heads' probabilities (the paper's accurate mode).
        iou: pooled, per class.
        score: the figure that compares levels (see `unetpp.train.loop.score`).
        parameters: of the network pruned to it.
    """

    level: int
    iou: tuple[float, ...]
    score: float
    parameters: int


def score_levels(network: UNetPlusPlus, source: Source, norm: Normalise, *, precision: str) -> tuple[LevelScore, ...]:
    """Return the score of every head, shallowest first, then of their mean where there are several."""
    heads = [int(j) for j in network.head_convs]
    levels = heads + ([0] if len(heads) > 1 else [])
    classes = max(2, network.config.classes)
    counts = {level: Confusion(classes) for level in levels}
    for found in predict(network, source, norm, precision=precision, every_head=True):
        outputs = [*found.logits, _mean(found.logits)] if len(heads) > 1 else found.logits
        for level, logits in zip(levels, outputs, strict=True):
            counts[level].update(found.truth.labels, decide(logits).cpu().numpy())
    full = sum(p.numel() for p in network.parameters())
    return tuple(
        LevelScore(
            level,
            tuple(map(float, counts[level].iou)),
            score(counts[level].judged_iou),
            sum(p.numel() for p in network.prune(level).parameters()) if level else full,
        )
        for level in levels
    )


def smallest_good(scores: Sequence[LevelScore], drop: float) -> int:
    """Return the smallest level whose score is at most `drop` IoU points (hundredths) below the best head's."""
    heads = [found for found in scores if found.level]
    best = max(found.score for found in heads)
    return min(found.level for found in heads if found.score >= best - drop / 100)


def _mean(logits: Sequence[Tensor]) -> Tensor:
    """Return logits whose decision is that of the heads' mean probability."""
    if len(logits[0]) == 1:
        return torch.stack([head.sigmoid() for head in logits]).mean(0).logit()
    return torch.stack([head.softmax(0) for head in logits]).mean(0).log()
