"""Patches depend on seed, step and number alone, show what they say they show, and are drawn as often as asked."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.unetpp.train.shapes import numbered, squares
from unetpp.geometry import Box
from unetpp.train import ArraySource, AugmentConfig, TrainConfig
from unetpp.train.augment import patches
from unetpp.train.sampling import Sampler, batches
from unetpp.train.source import Crop

STILL = AugmentConfig(
    scale=(1.0, 1.0), rotate=0.0, gamma=0, gain=0, offset=0, tint=0, saturation=(1, 1), blur=0, noise=0
)
CONFIG = TrainConfig(batch=6, patch=16, augment=STILL)


def test_a_batch_is_the_same_whoever_makes_its_parts() -> None:
    sampler = Sampler(squares(4, 0, objects=True), replace(CONFIG, class_aware=0.5, augment=AugmentConfig(elastic=2.0)))
    whole = sampler.frames(7, range(6))
    first, second = sampler.frames(7, [0, 1]), sampler.frames(7, [2, 3, 4, 5])
    for name in ("pixels", "labels", "objects", "theta"):
        assert torch.equal(torch.cat([getattr(first, name), getattr(second, name)]), getattr(whole, name))
    assert first.seeds + second.seeds == whole.seeds
    assert not torch.equal(sampler.frames(8, range(6)).theta, whole.theta)
    other = Sampler(squares(4, 0, objects=True), replace(CONFIG, seed=1))
    assert not torch.equal(other.frames(7, range(6)).theta, whole.theta)


def test_an_unchanged_patch_is_a_crop_turned_by_quarters() -> None:
    source = numbered(61, 83)
    sampler = Sampler(source, CONFIG)
    frames = sampler.frames(0, range(40))
    _, labels, objects = patches(frames, 16, STILL, "cpu")
    assert objects is not None
    turns = set()
    for label, number in zip(labels.numpy(), objects.numpy(), strict=True):
        assert number.min() >= 1 and number.max() <= 83
        along_x = len(np.unique(number[0])) == 16  # columns run along the rows of the patch, or along its columns
        np.testing.assert_array_equal(label, ((number - 1) * 2 // 83))
        steps = np.diff(number, axis=1 if along_x else 0)
        assert np.all(steps == steps[0, 0]) and abs(steps[0, 0]) == 1
        assert np.all(np.diff(number, axis=0 if along_x else 1) == 0)
        turns.add((along_x, int(steps[0, 0])))
    assert len(turns) == 4


def test_without_turns_down_stays_down() -> None:
    augment = replace(STILL, turns=False)
    sampler = Sampler(squares(4, 0), replace(CONFIG, augment=augment))
    placed = [sampler.place(np.random.default_rng(i)) for i in range(30)]
    assert {p.angle for p in placed} == {0.0} and {p.mirror for p in placed} == {-1.0, 1.0}
    frames = sampler.frames(0, range(20))
    assert (frames.theta[:, 1, 1] > 0).all() and (frames.theta[:, 0, 0] < 0).any()


def test_pixels_and_labels_move_together() -> None:
    augment = replace(STILL, scale=(0.7, 1.4), rotate=1.0)
    frames = Sampler(squares(4, 0), replace(CONFIG, augment=augment)).frames(3, range(32))
    pixels, labels, _ = patches(frames, 16, augment, "cpu")
    counted = labels != 255
    # Interpolated pixels at an edge lie between dark and bright.
    bright, dark = pixels[:, 0] > 145, pixels[:, 0] < 75
    assert (counted & bright).sum() > 500 and (labels[counted & bright] == 1).all()
    assert (counted & dark).sum() > 500 and (labels[counted & dark] == 0).all()


def test_scale_shows_more_of_the_image() -> None:
    source = numbered(200, 200)
    augment = replace(STILL, scale=(2.0, 2.0))
    frames = Sampler(source, replace(CONFIG, augment=augment)).frames(0, range(8))
    _, _, objects = patches(frames, 16, augment, "cpu")
    assert objects is not None
    for number in objects.numpy():
        assert 29 <= number.max() - number.min() <= 32


def test_beyond_the_image_it_is_mirrored() -> None:
    """A patch larger than its image holds only pixels of the image, and a corner continues symmetrically."""
    source = numbered(9, 7)
    frames = Sampler(source, replace(CONFIG, patch=32)).frames(0, range(4))
    _, _, objects = patches(frames, 32, STILL, "cpu")
    assert objects is not None
    for number in objects.numpy():
        assert set(np.unique(number)) == set(range(1, 8))


class Counted:
    """A source that counts reads and takes its time."""

    def __init__(self, source: ArraySource, seconds: float) -> None:
        self.images, self.blocks, self.span = source.images, source.blocks, source.span
        self.fingerprint, self._source, self._seconds, self.reads = source.fingerprint, source, seconds, 0

    def read(self, image: int, box: Box) -> Crop:
        self.reads += 1
        time.sleep(self._seconds)
        return self._source.read(image, box)

    def content(self, block: int) -> NDArray[Any]:
        return self._source.content(block)


def test_groups_are_drawn_by_the_power_of_their_pixels() -> None:
    big, small = np.zeros((100, 100, 3), np.uint8), np.zeros((50, 50, 3), np.uint8)
    images = [("a", "big", big, big[..., 0], None), ("b", "small", small, small[..., 0], None)]
    source = ArraySource(images, 1)

    def share(balance: float) -> float:
        sampler = Sampler(source, replace(CONFIG, balance=balance))
        placed = [sampler.place(np.random.default_rng(i)).image for i in range(4000)]
        return placed.count(1) / len(placed)

    assert share(1.0) == pytest.approx(0.2, abs=0.02)
    assert share(0.0) == pytest.approx(0.5, abs=0.025)
    # 10000 ** 1000 is no float64.
    assert share(1000.0) == 0.0 and share(-1000.0) == 1.0


def test_class_aware_patches_hold_rare_classes() -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[150:154, 30:34] = 1
    source = ArraySource([("a", "g", np.zeros((200, 200, 3), np.uint8), labels, None)], 2)

    def share(class_aware: float) -> float:
        frames = Sampler(source, replace(CONFIG, class_aware=class_aware)).frames(0, range(200))
        found = patches(frames, 16, STILL, "cpu")[1]
        return float((found == 1).flatten(1).any(1).float().mean())

    assert share(0.0) < 0.05 and share(1.0) > 0.4


def test_nothing_is_drawn_where_nothing_is_labelled() -> None:
    labels: NDArray[np.uint8] = np.full((60, 60), 255, np.uint8)
    empty = ("e", "g1", np.zeros((60, 60, 3), np.uint8), labels, None)
    full = ("f", "g2", np.zeros((60, 60, 3), np.uint8), np.zeros((60, 60), np.uint8), None)
    sampler = Sampler(ArraySource([empty, full], 2), replace(CONFIG, balance=0.0))
    assert {sampler.place(np.random.default_rng(i)).image for i in range(50)} == {1}


def test_batches_are_read_ahead_in_order_and_end() -> None:
    source = Counted(squares(4, 0), 0.005)
    sampler = Sampler(source, CONFIG)
    stream = batches(sampler, range(2, 5), [[0, 1], [2]], threads=2, ahead=3)
    found = [(step, len(frames.seeds)) for step, frames in stream]
    assert found == [(2, 2), (2, 1), (3, 2), (3, 1), (4, 2), (4, 1)]
    reads = source.reads
    unread = batches(sampler, range(1000), [[0]], threads=1, ahead=2)
    next(unread)
    unread.close()
    time.sleep(0.05)
    assert source.reads - reads <= 5
