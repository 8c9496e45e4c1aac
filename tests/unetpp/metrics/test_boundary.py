"""Boundary F1 against scipy's distance transforms and hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from unetpp.errors import DataError, ShapeError
from unetpp.metrics import BoundaryF1

CROSS = ndimage.generate_binary_structure(2, 1)


def blobs(seed: int, classes: int = 4) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(40, 50)), 3)
    return np.digitize(noise, np.quantile(noise, np.linspace(0, 1, classes + 1)[1:-1]))


def direct(truth: np.ndarray, prediction: np.ndarray, classes: int, tolerance: int) -> np.ndarray:
    """The four counts from erosions and Euclidean distance transforms, class by class."""
    nothing = (truth == 255) | (prediction == 255)
    judged = ndimage.distance_transform_edt(~nothing) > tolerance if nothing.any() else ~nothing
    counts = np.zeros((4, classes), int)
    for k in range(classes):
        edges = []
        for labels in (truth, prediction):
            own = (labels == k) & ~nothing
            edges.append(own & ndimage.binary_dilation((labels != k) & ~nothing, CROSS))
        for row, (own, other) in enumerate((edges, edges[::-1])):
            near = ndimage.distance_transform_edt(~other) <= tolerance if other.any() else other
            counts[2 * row : 2 * row + 2, k] = (own & near & judged).sum(), (own & judged).sum()
    return counts


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
@pytest.mark.parametrize("ignored", [False, True])
def test_equals_distance_transforms(tolerance: int, ignored: bool) -> None:
    truth, prediction = blobs(0), np.roll(blobs(0), (1, 2), (0, 1))
    prediction[5:15, 5:15] = 2
    if ignored:
        truth[:, :9], prediction[30:, 30:33] = 255, 255
    score = BoundaryF1(5, tolerance)
    score.update(truth, prediction)
    np.testing.assert_array_equal(score.counts, direct(truth, prediction, 5, tolerance))
    assert np.isnan(score.f1[4]) and (score.f1[:4] > 0).all()


def test_a_shifted_edge() -> None:
    truth, prediction = np.zeros((6, 10), int), np.zeros((6, 10), int)
    truth[:, 5:], prediction[:, 7:] = 1, 1
    for tolerance, expected in ((1, 0.0), (2, 1.0)):
        score = BoundaryF1(3, tolerance)
        score.update(truth, prediction)
        assert score.f1[:2].tolist() == [expected] * 2 and np.isnan(score.f1[2])


def test_precision_and_recall() -> None:
    truth, prediction = np.zeros((4, 30), int), np.zeros((4, 30), int)
    truth[:, 10:], prediction[:, 10:] = 1, 1
    prediction[:, 20:] = 0
    score = BoundaryF1(2, 1)
    score.update(truth, prediction)
    assert score.recall.tolist() == [1, 1] and score.precision.tolist() == [0.5, 0.5]
    assert score.f1.tolist() == pytest.approx([2 / 3, 2 / 3])


def test_ignored_pixels_never_matter() -> None:
    truth, prediction = blobs(1), blobs(2)
    truth[10:20, 15:40] = 255
    other = np.where(truth == 255, blobs(3), prediction)
    scores = [BoundaryF1(4), BoundaryF1(4)]
    for score, labels in zip(scores, (prediction, other), strict=True):
        score.update(truth, labels)
    np.testing.assert_array_equal(scores[0].counts, scores[1].counts)
    scores[0].update(np.full((5, 5), 255), np.zeros((5, 5), int))
    np.testing.assert_array_equal(scores[0].counts, scores[1].counts)


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        BoundaryF1(2).update(np.zeros((3, 3), int), np.full((3, 3), 2))
    with pytest.raises(DataError, match=r"class index -1 is outside 0\.\.1"):
        BoundaryF1(2).update(np.array([[0, -1]]), np.array([[0, 1]]))
    with pytest.raises(ShapeError, match="one size"):
        BoundaryF1(2).update(np.zeros((3, 3), int), np.zeros((3, 4), int))
