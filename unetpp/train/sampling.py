"""Draws which patches a step sees and reads their pixels; knows a source and random numbers, changes no colour.

A patch is a function of (seed, step, number in the batch) alone. There is no state to save, any number of workers can
make parts of one batch, and reading ahead changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetpp.geometry import Box
from unetpp.span import Span
from unetpp.train.config import TrainConfig
from unetpp.train.source import Source


@dataclass(frozen=True)
class Placed:
    """Where a patch lies: a turned, scaled, mirrored square around (y, x) in pixels of an image."""

    image: int
    y: float
    x: float
    scale: float
    angle: float
    mirror: float


@dataclass(frozen=True)
class Frames:
    """Source pixels around n patches, before they are turned: what goes to the training device.

    Attributes:
        pixels: (n, R, R, C) in the source's dtype; beyond the image it is mirrored.
        labels: (n, R, R) uint8.
        objects: (n, R, R) int32, or None.
        theta: (n, 2, 3) float32 for `torch.nn.functional.affine_grid`, from the patch to its frame.
        seeds: (n,) of what the device draws for each patch.
        span: where samples lie.
    """

    pixels: Tensor
    labels: Tensor
    objects: Tensor | None
    theta: Tensor
    seeds: tuple[int, ...]
    span: Span


class Sampler:
    """Draws the patches of any step of one training.

    Args:
        source: where they come from.
        config: patch side, batch, seed, and how patches are drawn.
    """

    def __init__(self, source: Source, config: TrainConfig) -> None:
        self._source, self._config = source, config
        blocks = source.blocks
        pixels = blocks.counts.sum(1).astype(np.float64)
        names = sorted({image.stratum for image in source.images})
        number = {name: index for index, name in enumerate(names)}
        group = np.array([number[source.images[i].stratum] for i in blocks.image])
        of_group = np.bincount(group, pixels, len(names))
        # Parts of the largest power, through logarithms: the powers themselves may be no numbers any more.
        power = np.where(of_group > 0, np.log(np.maximum(of_group, 1.0)) * config.balance, -np.inf)
        weight = np.exp(power - power.max())
        share = pixels / np.maximum(of_group, 1.0)[group] * (weight / weight.sum())[group]
        self._chances = np.cumsum(share)
        self._holders = [np.flatnonzero(column) for column in blocks.counts.T]
        self._classes = [k for k, holders in enumerate(self._holders) if len(holders)]
        turned = math.sqrt(2) if config.augment.rotate else 1.0
        self._reach = math.ceil(config.patch * config.augment.scale[1] / 2 * turned + 3 * config.augment.elastic) + 2

    def frames(self, step: int, numbers: Sequence[int]) -> Frames:
        """Read the patches with these numbers of a step's batch."""
        read = [self._frame(step, number) for number in numbers]
        pixels, labels, objects, theta, seeds = zip(*read, strict=True)
        return Frames(
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.stack(labels)),
            None if objects[0] is None else torch.from_numpy(np.stack(objects)),
            torch.from_numpy(np.stack(theta)),
            seeds,
            self._source.span,
        )

    def place(self, random: np.random.Generator) -> Placed:
        """Draw where a patch lies."""
        augment = self._config.augment
        scale = math.exp(random.uniform(*np.log(augment.scale)))
        quarter = int(random.integers(4)) * math.pi / 2 if augment.turns else 0.0
        angle = random.uniform(0, 2 * math.pi) if random.random() < augment.rotate else quarter
        mirror = -1.0 if random.random() < 0.5 else 1.0
        image, y, x = self._centre(random, self._config.patch * scale / 2)
        return Placed(image, y, x, scale, angle, mirror)

    def _centre(self, random: np.random.Generator, half: float) -> tuple[int, float, float]:
        """Choose an image and a point whose surroundings, `half` pixels to each side, lie inside it where they can."""
        aware = self._classes and random.random() < self._config.class_aware
        block, y, x = self._on_a_class(random, half) if aware else self._anywhere(random)
        image = int(self._source.blocks.image[block])
        height, width = self._source.images[image].height, self._source.images[image].width
        y = min(max(y, min(half, height / 2)), max(height - half, height / 2))
        x = min(max(x, min(half, width / 2)), max(width - half, width / 2))
        return image, y, x

    def _anywhere(self, random: np.random.Generator) -> tuple[int, float, float]:
        block = min(int(np.searchsorted(self._chances, random.random(), side="right")), len(self._chances) - 1)
        y0, x0, y1, x1 = self._source.blocks.box[block]
        return block, random.uniform(y0, y1), random.uniform(x0, x1)

    def _on_a_class(self, random: np.random.Generator, half: float) -> tuple[int, float, float]:
        chosen = self._classes[int(random.integers(len(self._classes)))]
        holders = self._holders[chosen]
        block = int(holders[int(random.integers(len(holders)))])
        box = Box(*map(int, self._source.blocks.box[block]))
        points = np.argwhere(self._source.read(int(self._source.blocks.image[block]), box).labels == chosen)
        y, x = points[int(random.integers(len(points)))]
        # Not always in the middle, or the network would learn that the middle is special.
        off_y, off_x = random.uniform(-half / 2, half / 2, 2)
        return block, box.y0 + float(y) + off_y, box.x0 + float(x) + off_x

    def _frame(
        self, step: int, number: int
    ) -> tuple[NDArray[np.generic], NDArray[np.uint8], NDArray[np.int32] | None, NDArray[np.float32], int]:
        random = np.random.default_rng([self._config.seed, step, number])
        placed = self.place(random)
        reach = self._reach
        top, left = math.floor(placed.y) - reach, math.floor(placed.x) - reach
        wanted = Box(top, left, top + 2 * reach, left + 2 * reach)
        image = self._source.images[placed.image]
        inside = wanted.clip(image.height, image.width)
        crop = self._source.read(placed.image, inside)
        missing = ((inside.y0 - wanted.y0, wanted.y1 - inside.y1), (inside.x0 - wanted.x0, wanted.x1 - inside.x1))
        pixels = np.pad(crop.pixels, (*missing, (0, 0)), mode="symmetric")
        labels = np.pad(crop.labels, missing, mode="symmetric")
        objects = None if crop.objects is None else np.pad(crop.objects, missing, mode="symmetric")
        return pixels, labels, objects, self._theta(placed), int(random.integers(2**62))

    def _theta(self, placed: Placed) -> NDArray[np.float32]:
        zoom = self._config.patch * placed.scale / (2 * self._reach)
        cos, sin = math.cos(placed.angle) * zoom, math.sin(placed.angle) * zoom
        dx, dy = (placed.x - math.floor(placed.x)) / self._reach, (placed.y - math.floor(placed.y)) / self._reach
        return np.array([[cos * placed.mirror, -sin, dx], [sin * placed.mirror, cos, dy]], np.float32)


def batches(
    sampler: Sampler, steps: range, parts: Sequence[Sequence[int]], threads: int = 2, ahead: int = 4
) -> Generator[tuple[int, Frames]]:
    """Yield (step, frames) for every part of every step, read ahead by threads.

    Args:
        parts: the numbers of the batch's patches that are wanted, part by part.
        threads, ahead: readers, and the most parts read but not yet taken.
    """
    wanted = ((step, part) for step in steps for part in parts)
    with ThreadPoolExecutor(threads, thread_name_prefix="patches") as pool:
        waiting: list[tuple[int, Future[Frames]]] = []
        try:
            for step, part in wanted:
                waiting.append((step, pool.submit(sampler.frames, step, part)))
                if len(waiting) > ahead:
                    first, frames = waiting.pop(0)
                    yield first, frames.result()
            for step, frames in waiting:
                yield step, frames.result()
        finally:
            for _, frames in waiting:
                frames.cancel()
