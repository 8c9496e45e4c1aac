"""Which terms a loss has and how they weigh; nothing about tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from unetpp.errors import ConfigError

TERMS = ("ce", "dice", "focal", "tversky", "lovasz", "cldice")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """A weighted sum of terms; the default is cross-entropy + Dice, both with weight 1.

    Attributes:
        terms: (name, weight) of "ce", "dice", "focal", "tversky", "lovasz" or "cldice"; see `unetpp.losses.terms`.
        class_weights: weight of a pixel in ce and focal by its true class; background and foreground for one logit.
        touching: how much more pixels between two objects weigh in ce and focal, such as 4; 0 needs no objects.
        touching_radius: a pixel is between objects where the square of this many pixels around it sees two of them.
        focal_gamma: how fast well-classified pixels lose weight (Lin et al. 2017, gamma).
        tversky: weights of false positives and false negatives (Salehi et al. 2017, alpha and beta).
        cldice_steps: erosions of the soft skeleton; at least half the width, in pixels, of the widest structure.
        cldice_classes: classes that are networks of thin structures; None: all but class 0.

    Raises:
        ConfigError: an unknown term, or a number out of range.
    """

    terms: tuple[tuple[str, float], ...] = (("ce", 1.0), ("dice", 1.0))
    class_weights: tuple[float, ...] | None = None
    touching: float = 0.0
    touching_radius: int = 2
    focal_gamma: float = 2.0
    tversky: tuple[float, float] = (0.3, 0.7)
    cldice_steps: int = 10
    cldice_classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, count in Counter(name for name, _ in self.terms).items():
            if name not in TERMS:
                raise ConfigError(f"loss term {name!r} is unknown: choose from {', '.join(TERMS)}")
            if count > 1:
                raise ConfigError(f"loss term {name!r} occurs {count} times: give it once")
        weights = [weight for _, weight in self.terms]
        if not weights or not _weigh(weights):
            raise ConfigError(f"terms = {self.terms}: give at least one term, and weights that are not negative")
        for name, least in (("touching", 0), ("touching_radius", 1), ("focal_gamma", 0), ("cldice_steps", 1)):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: give at least {least}")
        if len(self.tversky) != 2 or not _weigh(self.tversky):
            raise ConfigError(f"tversky = {self.tversky}: give two weights that are not negative, one above 0")
        if self.class_weights is not None and not _weigh(self.class_weights):
            raise ConfigError(f"class_weights = {self.class_weights}: give weights that are not negative, one above 0")


def _weigh(weights: Sequence[float]) -> bool:
    """Say whether these are finite weights, none negative and not all 0; with a NaN neither comparison holds."""
    return all(weight >= 0 for weight in weights) and 0 < sum(weights) < math.inf
