"""Confusion counts against a hand-computed case and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unetpp.errors import DataError, ShapeError
from unetpp.metrics import Confusion, judged_iou


def test_hand_computed() -> None:
    confusion = Confusion(2)
    confusion.update(np.array([[0, 0, 1, 1, 255]]), np.array([[0, 1, 1, 1, 0]]))
    assert confusion.matrix.tolist() == [[1, 1], [0, 2]]
    assert confusion.iou.tolist() == [1 / 2, 2 / 3]
    assert confusion.dice.tolist() == [2 / 3, 4 / 5]
    assert confusion.precision.tolist() == [1.0, 2 / 3]
    assert confusion.recall.tolist() == [1 / 2, 1.0]
    assert confusion.accuracy == 3 / 4


def test_streaming_equals_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_jaccard_index, multiclass_precision

    random = np.random.default_rng(0)
    truth, prediction = random.integers(0, 4, (5, 33, 21)), random.integers(0, 4, (5, 33, 21))
    truth[random.random(truth.shape) < 0.2] = 255
    confusion = Confusion(4)
    for t, p in zip(truth, prediction, strict=True):
        confusion.update(t, p)
    a, b = torch.from_numpy(prediction), torch.from_numpy(truth)
    for ours, theirs in ((confusion.iou, multiclass_jaccard_index), (confusion.precision, multiclass_precision)):
        expected = theirs(a, b, num_classes=4, average="none", ignore_index=255)
        np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6)


def test_absent_classes_have_no_figure() -> None:
    confusion = Confusion(3)
    confusion.update(np.zeros((2, 2), int), np.zeros((2, 2), int))
    assert confusion.iou[0] == 1 and np.isnan(confusion.iou[1:]).all()


def test_networks_are_compared_by_the_truths_own_classes() -> None:
    """Else the worse of two would win, where the better one sees a class that the truth lacks in one pixel."""
    nan = float("nan")
    better = np.array([[90, 9, 1], [10, 90, 0], [0, 0, 0]])
    worse = np.array([[80, 20, 0], [20, 80, 0], [0, 0, 0]])
    assert Confusion.from_state(better).judged_iou == pytest.approx((90 / 110 + 90 / 109) / 2)
    assert Confusion.from_state(worse).judged_iou == pytest.approx(80 / 120)
    assert judged_iou((0.6, 0.2, 0.0), (True, True, False)) == pytest.approx(0.4)
    assert np.isnan(judged_iou((nan, 0.0, nan), (False, False, False)))
    # Of two classes the one that counts may have been found where it is not.
    assert judged_iou((0.9, 0.0), (True, False)) == 0 and np.isnan(judged_iou((0.9, nan), (True, False)))


def test_no_data_in_the_prediction_never_counts() -> None:
    confusion = Confusion(2)
    confusion.update(np.array([0, 1]), np.array([255, 1]))
    assert confusion.matrix.tolist() == [[0, 0], [0, 1]]


def test_wrong_arrays_are_refused() -> None:
    # A prediction of -1 beside a truth of 1 was counted as class 1 found where class 0 is.
    for truth, prediction in (([0], [2]), ([1, 0], [-1, 0]), ([-1], [0])):
        with pytest.raises(
            DataError, match=r"class index (2|-1) is outside 0\.\.1; give .* 255 where a pixel does not"
        ):
            Confusion(2).update(np.array(truth), np.array(prediction))
    with pytest.raises(ShapeError, match="must be equal"):
        Confusion(2).update(np.zeros((2, 3)), np.zeros((3, 2)))
