"""Small sources whose truth is known, for the tests of training."""

from __future__ import annotations

import numpy as np

from unetpp.train import ArraySource


def squares(count: int, seed: int, *, objects: bool = False) -> ArraySource:
    """Bright rectangles on dark noise, 48 x 40: class 1 where it is bright; the first two rows do not count."""
    random = np.random.default_rng(seed)
    images = []
    for index in range(count):
        labels = np.zeros((48, 40), np.uint8)
        y, x = random.integers(4, 24, 2)
        labels[y : y + 16, x : x + 12] = 1
        pixels = random.integers(20, 60, (48, 40, 3)) + labels[..., None] * 150
        found = labels.astype(np.int32) * (index + 1)
        labels[:2] = 255
        group = "even" if index % 2 == 0 else "odd"
        images.append((f"s{index}", group, pixels.astype(np.uint8), labels, found if objects else None))
    return ArraySource(images, classes=2)


def numbered(height: int, width: int, classes: int = 2) -> ArraySource:
    """One image whose objects are numbered by column, from 1, and whose labels are stripes of columns."""
    columns = np.broadcast_to(np.arange(width), (height, width))
    pixels = np.zeros((height, width, 3), np.uint8)
    labels = (columns * classes // width).astype(np.uint8)
    return ArraySource([("n", "g", pixels, labels, columns.astype(np.int32) + 1)], classes)
