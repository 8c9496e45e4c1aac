"""Watershed splitting of drawn discs whose number is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from unetpp.errors import ShapeError
from unetpp.metrics import ObjectQuality
from unetpp.objects import split_objects


def discs(centres: list[tuple[float, float]], radius: float, shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    """Each pixel of any disc has the number of the nearest centre."""
    yy, xx = np.indices(shape)
    distances = np.stack([np.hypot(yy - y, xx - x) for y, x in centres])
    return np.where(distances.min(0) < radius, distances.argmin(0) + 1, 0)


# A chain of three, a pair, and one that the image's edge cuts.
TOUCHING = [(15.0, 15.0), (15.0, 32.0), (31.0, 37.0), (45.0, 60.0), (50.0, 76.0), (50.0, 2.0)]


def test_touching_discs_come_apart() -> None:
    truth = discs(TOUCHING, 10)
    assert ndimage.label(truth)[1] == 3
    labels = split_objects(truth > 0)
    assert labels.dtype == np.int32 and labels.max() == len(TOUCHING)
    np.testing.assert_array_equal(labels > 0, truth > 0)
    quality = ObjectQuality()
    quality.update(truth, labels)
    assert quality.f1 == 1 and quality.sq > 0.97


def test_single_shapes_stay_whole() -> None:
    mask = np.zeros((40, 90), bool)
    mask[5:15, 5:25] = mask[25:32, 0:60] = True  # a bar's ridge is flat
    mask |= discs([(20.0, 75.0)], 12, mask.shape) > 0
    expected = ndimage.label(mask)[0]
    np.testing.assert_array_equal(split_objects(mask), expected)


def test_a_ragged_edge_splits_nothing_below_the_depth() -> None:
    mask = np.zeros((30, 90), bool)
    mask[8:22, 5:85] = True
    mask[22, 20:35] = mask[22, 50:70] = True
    assert split_objects(mask).max() == 1
    assert split_objects(mask, depth=0.01).max() == 2


def test_a_pale_seam_splits_what_the_shape_does_not() -> None:
    mask = np.zeros((30, 50), bool)
    mask[8:20, 5:45] = True
    probability = np.where(np.abs(np.arange(50) - 24.5) < 3, 0.5, 0.98) * np.ones((30, 1))
    assert split_objects(mask).max() == 1
    labels = split_objects(mask, probability)
    assert labels.max() == 2 and set(labels[14, 5:22]) == {1} and set(labels[14, 28:45]) == {2}


def test_every_piece_is_kept_and_small_ones_dropped() -> None:
    mask = discs([(30.0, 30.0)], 15) > 0
    mask[30, 46:49] = mask[10, 10] = True  # three pixels beside a large disc; one alone
    assert split_objects(mask, min_area=1).max() == 3
    labels = split_objects(mask, min_area=2)
    assert labels.max() == 2 and not labels[10, 10] and labels[30, 47] == 2
    assert split_objects(mask, min_area=4).max() == 1


def test_numbers_follow_the_first_pixels_and_repeat() -> None:
    random = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(random.normal(size=(200, 210)), 3) > 0.02
    labels = split_objects(mask)
    names, first = np.unique(labels[labels > 0], return_index=True)
    assert names.tolist() == list(range(1, len(names) + 1)) and len(names) > 30
    assert (np.diff(first) > 0).all()
    np.testing.assert_array_equal(labels, split_objects(mask.copy()))
    for name in names:
        assert ndimage.label(labels == name, np.ones((3, 3)))[1] == 1


def test_nothing_and_everything() -> None:
    assert not split_objects(np.zeros((9, 9), bool)).any()
    assert (split_objects(np.ones((9, 9), bool)) == 1).all()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="give equal ones"):
        split_objects(np.zeros((3, 3), bool), np.zeros((3, 4)))
