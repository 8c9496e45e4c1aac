"""Bootstrap intervals against the exact distribution of a mean and against their promise."""

from __future__ import annotations

import numpy as np
from scipy import stats

from unetpp.metrics import Confusion, bootstrap


def test_a_share_has_its_binomial_interval() -> None:
    """Each group is one trial: resampled successes are binomial, whose quantiles are known."""
    counts = np.array([[1, 1]] * 30 + [[0, 1]] * 70)
    low, high = bootstrap(counts, lambda sums: sums[0] / sums[1], samples=20000)
    assert [low, high] == (stats.binom(100, 0.3).ppf([0.025, 0.975]) / 100).tolist()


def test_nine_of_ten_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(0)
    held = 0
    for trial in range(60):
        values = random.normal(3, 1, 40)
        counts = np.stack([values, np.ones(40)], 1)
        low, high = bootstrap(counts, lambda s: s[0] / s[1], samples=300, confidence=0.9, seed=trial)
        held += int(low < 3 < high)
    assert 0.78 < held / 60 < 0.99


def test_confusions_per_group() -> None:
    random = np.random.default_rng(1)
    matrices = random.integers(0, 50, (12, 3, 3))
    matrices[:, 2] = matrices[:, :, 2] = 0

    def iou(state: np.ndarray) -> np.ndarray:
        return Confusion.from_state(state).iou

    low, high = bootstrap(matrices, iou)
    whole = iou(matrices.sum(0))
    assert (low[:2] < whole[:2]).all() and (whole[:2] < high[:2]).all()
    assert np.isnan([low[2], high[2]]).all()
    np.testing.assert_array_equal(bootstrap(matrices, iou), (low, high))
    assert not np.array_equal(bootstrap(matrices, iou, seed=1), (low, high))


def test_equal_groups_have_no_spread_and_one_group_no_interval() -> None:
    assert bootstrap(np.ones((5, 2)), lambda s: s[0] / s[1]) == (1.0, 1.0)
    assert np.isnan(bootstrap(np.ones((1, 2)), lambda s: s[0] / s[1])).all()


def test_no_group_has_no_interval_either() -> None:
    low, high = bootstrap(np.zeros((0, 3, 3), np.int64), lambda state: Confusion.from_state(state).iou)
    assert low.shape == high.shape == (3,) and np.isnan([low, high]).all()


def test_a_group_that_lacks_a_class_does_not_hide_it() -> None:
    """Every fourth resample of two groups misses the second, and its share is then NaN."""
    counts = np.array([[0, 0], [3, 6]])
    low, high = bootstrap(counts, lambda s: np.divide(s[0], s[1]) if s[1] else np.nan)
    assert low == high == 0.5
