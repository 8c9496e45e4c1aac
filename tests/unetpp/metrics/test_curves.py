"""Precision and recall against a count of every pixel at every threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unetpp.metrics import PrecisionRecall


def test_curves_of_known_probabilities() -> None:
    found = PrecisionRecall(2, bins=4)
    p = torch.tensor([0.1, 0.3, 0.6, 0.9])
    found.update(p.logit()[None, None], np.array([[0, 1, 0, 1]]))
    np.testing.assert_allclose(found.recall[1], [1, 1, 0.5, 0.5])
    np.testing.assert_allclose(found.precision[1], [0.5, 2 / 3, 0.5, 1])
    assert found.average_precision[1] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
