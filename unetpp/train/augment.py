"""Draws augmented training patches from samples; knows arrays and random numbers, not networks or files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unetpp.losses import IGNORE
from unetpp.train.config import AugmentConfig, TrainConfig
from unetpp.train.data import Sample

FULL = 255.0
"""Full range of the 8-bit samples; colours are changed in units of it."""


class PatchSource:
    """An endless stream of batches; its whole state is one random generator, so a checkpoint can continue it."""

    def __init__(self, samples: Sequence[Sample], config: TrainConfig) -> None:
        self.samples = samples
        self.config = config
        self.random = np.random.default_rng(config.seed)
        members: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            members.setdefault(sample.group, []).append(index)
        self._members = [members[group] for group in sorted(members)]
        pixels = [np.array([samples[i].labels.size for i in group], np.float64) for group in self._members]
        self._chances = [group / group.sum() for group in pixels]
        weights = np.array([group.sum() for group in pixels]) ** config.balance
        self._weights = weights / weights.sum()
        self._classes = _pixels_by_class(samples) if config.class_aware else {}

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return pixels (N, C, S, S) float32 in 0..255 and labels (N, S, S) int64 with 255 where none counts."""
        patches, labels = zip(*(self._patch() for _ in range(self.config.batch)), strict=True)
        return recolour(torch.cat(patches), self.config.augment, self.random), torch.cat(labels)

    def _patch(self) -> tuple[Tensor, Tensor]:
        config, random = self.config, self.random
        side = config.patch
        scale = math.exp(random.uniform(*np.log(config.augment.scale)))
        quarter = random.integers(4) * math.pi / 2
        angle = random.uniform(0, 2 * math.pi) if random.random() < config.augment.rotate else quarter
        mirror = -1.0 if random.random() < 0.5 else 1.0
        sample, (y, x) = self._centre(side * scale / 2)
        return warp(sample, side, y, x, scale, angle, mirror)

    def _centre(self, half: float) -> tuple[Sample, tuple[float, float]]:
        """Choose an image and where a patch that shows `half` source pixels on each side is centred."""
        random = self.random
        if self._classes and random.random() < self.config.class_aware:
            holders = self._classes[int(random.choice(sorted(self._classes)))]
            index, points = holders[int(random.integers(len(holders)))]
            y, x = points[int(random.integers(len(points)))]
            return self.samples[index], (float(y) + random.uniform(-half, half) / 2, float(x))
        group = int(random.choice(len(self._members), p=self._weights))
        sample = self.samples[int(random.choice(self._members[group], p=self._chances[group]))]
        height, width = sample.labels.shape
        y = random.uniform(min(half, height / 2), max(height - half, height / 2))
        x = random.uniform(min(half, width / 2), max(width - half, width / 2))
        return sample, (y, x)


def warp(
    sample: Sample, side: int, y: float, x: float, scale: float, angle: float, mirror: float
) -> tuple[Tensor, Tensor]:
    """Cut a turned, scaled, mirrored square around (y, x); beyond the image it is reflected.

    Returns:
        pixels (1, C, side, side) float32, bilinear; labels (1, side, side) int64, nearest.
    """
    reach = int(side * scale / 2 * 1.4143) + 2
    height, width = sample.labels.shape
    y, x = min(max(y, 0.0), float(height)), min(max(x, 0.0), float(width))
    top, left = max(0, int(y) - reach), max(0, int(x) - reach)
    bottom, right = min(height, int(y) + reach + 1), min(width, int(x) + reach + 1)
    pixels = torch.from_numpy(np.ascontiguousarray(sample.pixels[top:bottom, left:right]))
    labels = torch.from_numpy(np.ascontiguousarray(sample.labels[top:bottom, left:right]))
    h, w = labels.shape
    cos, sin = math.cos(angle) * scale * side, math.sin(angle) * scale * side
    theta = [
        [cos * mirror / w, -sin / w, 2 * (x - left) / w - 1],
        [sin * mirror / h, cos / h, 2 * (y - top) / h - 1],
    ]
    grid = F.affine_grid(torch.tensor([theta], dtype=torch.float32), [1, 1, side, side], align_corners=False)
    image = F.grid_sample(pixels.permute(2, 0, 1)[None].float(), grid, padding_mode="reflection", align_corners=False)
    target = F.grid_sample(
        labels[None, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    return image, target[:, 0].long()


def recolour(pixels: Tensor, config: AugmentConfig, random: np.random.Generator) -> Tensor:
    """Change brightness, contrast, tint and saturation, blur and add noise, per patch; (N, C, H, W) in 0..255."""
    count, bands = pixels.shape[:2]

    def draw(low: float, high: float, size: int = 1) -> Tensor:
        return torch.from_numpy(random.uniform(low, high, (count, size, 1, 1))).float()

    x = (pixels / FULL).clamp(0, 1) ** torch.exp(draw(-config.gamma, config.gamma))
    x = x * draw(1 - config.gain, 1 + config.gain) * draw(1 - config.tint, 1 + config.tint, bands)
    x = x + draw(-config.offset, config.offset) + draw(-config.tint / 2, config.tint / 2, bands)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * draw(*config.saturation)
    for index in range(count):
        if random.random() < config.blur:
            x[index] = F.avg_pool2d(x[index], 3, 1, 1, count_include_pad=False)
        if random.random() < config.noise:
            sigma = random.uniform(0, config.noise_sigma)
            x[index] += torch.from_numpy(random.standard_normal(tuple(x[index].shape), np.float32)) * sigma
    return (x * FULL).clamp(0, FULL)


def _pixels_by_class(samples: Sequence[Sample]) -> dict[int, list[tuple[int, NDArray[np.int64]]]]:
    """Return, per class, the samples that hold it and a few thousand of its pixels in each, evenly spread."""
    found: dict[int, list[tuple[int, NDArray[np.int64]]]] = {}
    for index, sample in enumerate(samples):
        for value in np.unique(sample.labels):
            if value != IGNORE:
                points = np.argwhere(sample.labels == value)
                found.setdefault(int(value), []).append((index, points[:: max(1, len(points) // 4096)]))
    return found
