"""The numbers of one training; nothing about data or networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from unetpp.errors import ConfigError
from unetpp.losses import LossConfig


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far a training patch may differ from its source; everything is drawn per patch from the given ranges.

    Attributes:
        scale: a patch shows `scale` times more (> 1) or fewer (< 1) source pixels per side, log-uniform.
        turns: quarter turns; without them, and with rotate = 0, down stays down. Left and right are always exchanged
            half of the time.
        rotate: probability of any angle.
        elastic: standard deviation, in pixels of the image, of a smooth random displacement; `elastic_nodes` per side.
        stain: change of the amounts of haematoxylin, eosin and residual stain (RGB slides only): each is multiplied by
            1 +- stain and shifted by +- stain / 10 (optical density; Tellez et al. 2018, section 2.2).
        gamma, gain, offset: brightness curve, factor and shift, relative to full range: 255 for 8 bits, six standard
            deviations of the training images for other types (see `unetpp.span`).
        tint: factor and shift per band: the radiometry of another scene, or another lamp.
        saturation: 0 is grey, 1 unchanged.
        blur, noise: probability of a Gaussian blur of at most `blur_sigma` pixels, and of Gaussian noise of at most
            `noise_sigma` of full range.
    """

    scale: tuple[float, float] = (0.6, 1.6)
    turns: bool = True
    rotate: float = 0.5
    elastic: float = 0.0
    elastic_nodes: int = 4
    stain: float = 0.0
    gamma: float = 0.35
    gain: float = 0.25
    offset: float = 0.1
    tint: float = 0.1
    saturation: tuple[float, float] = (0.5, 1.5)
    blur: float = 0.2
    blur_sigma: float = 1.0
    noise: float = 0.2
    noise_sigma: float = 0.05

    def __post_init__(self) -> None:
        for name, least in (("scale", 1e-3), ("saturation", 0.0)):
            low, high = getattr(self, name)
            if not least <= low <= high < math.inf:
                raise ConfigError(f"{name} = [{low}, {high}]: give the smaller number first, and none below {least:g}")
        for name in ("elastic", "stain", "gamma", "gain", "offset", "tint", "blur_sigma", "noise_sigma"):
            _at_least(self, name, 0)
        for name in ("rotate", "blur", "noise"):
            _is_probability(self, name)
        _at_least(self, "elastic_nodes", 2)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Schedule, optimiser and patches.

    Attributes:
        steps: optimiser steps.
        batch, patch: patches per step over all workers, and their side in pixels.
        accumulate: parts that a batch is computed in, one after the other, to save memory.
        loss: what is minimised.
        rate, warmup: learning rate that a cosine over all steps begins at; steps of the linear warm-up it is multiplied
            by.
        decay: AdamW weight decay of convolution weights (norms and biases have none).
        clip: largest gradient norm.
        ema: decay of the averaged weights, which are what is validated and kept.
        validate_every: steps between validations; each one also writes a checkpoint.
        patience: validations without a better one after which training ends; 0 never ends it early.
        balance: strata are drawn with probability proportional to (pixels of all their images) ** balance, images of a
            stratum in proportion to their pixels: figures pooled over pixels weigh them so.
        class_aware: probability that a patch holds a pixel of a class drawn uniformly, so that rare ones occur: up to a
            quarter of its side from its middle, along both axes of the image, and further where the image ends.
        precision: "bf16" (autocast), "fp32", or "auto": bf16 where every worker's device multiplies it, else fp32.
        compile: torch.compile the network; the first step then takes minutes. It did not pay on one CPU core: 1.36 s a
            step against 0.92 (nuclei recipe, bf16, torch 2.13).
        seed: of everything random.
        threads: CPU threads; 0 leaves torch's choice. Losses on one CPU thread count are reproducible.
    """

    steps: int = 2000
    batch: int = 8
    patch: int = 128
    accumulate: int = 1
    loss: LossConfig = field(default_factory=LossConfig)
    rate: float = 2e-3
    warmup: int = 100
    decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.995
    validate_every: int = 400
    patience: int = 0
    balance: float = 1.0
    class_aware: float = 0.0
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    threads: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "patch", "accumulate", "validate_every"):
            _at_least(self, name, 1)
        for name in ("rate", "warmup", "decay", "patience", "seed", "threads"):
            _at_least(self, name, 0)
        if self.seed >= 2**63:
            raise ConfigError(f"seed = {self.seed}: give a number below 2^63, which torch's generators take")
        if not self.clip > 0:
            raise ConfigError(f"clip = {self.clip}: give a norm above 0, a large one to cut nothing off")
        _is_probability(self, "class_aware")
        if not math.isfinite(self.balance):
            raise ConfigError(f"balance = {self.balance}: give a number, such as 0 to draw all strata alike")
        if self.batch % self.accumulate:
            raise ConfigError(f"batch = {self.batch} is not a multiple of accumulate = {self.accumulate}")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"precision = {self.precision!r}: choose auto, bf16 or fp32")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema = {self.ema}: give a decay from 0 (off) to below 1")


def _at_least(config: AugmentConfig | TrainConfig, name: str, least: int) -> None:
    if not least <= getattr(config, name) < math.inf:
        raise ConfigError(f"{name} = {getattr(config, name)}: give at least {least}")


def _is_probability(config: AugmentConfig | TrainConfig, name: str) -> None:
    if not 0 <= getattr(config, name) <= 1:
        raise ConfigError(f"{name} = {getattr(config, name)}: give a probability from 0 to 1")
