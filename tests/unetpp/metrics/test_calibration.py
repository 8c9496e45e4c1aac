"""Calibration error against torchmetrics and by hand; the temperature against scipy's minimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from unetpp.errors import DataError, ShapeError
from unetpp.metrics import CalibrationError, PrecisionRecall, Temperature


def overconfident(classes: int, factor: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Logits (K, H, W) and labels drawn from softmax(logits / factor)."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, 60, 70, generator=g) * 2
    labels = torch.multinomial(logits.flatten(1).T.softmax(1), 1, generator=g).view(60, 70)
    truth = labels.numpy().astype(np.uint8)
    truth[:5] = 255
    return logits * factor, truth


@pytest.mark.parametrize("classes", [2, 5])
def test_ece_equals_torchmetrics(classes: int) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, truth = overconfident(classes, 2.0)
    ours = CalibrationError()
    ours.update(logits, truth)
    expected = multiclass_calibration_error(
        logits[None].double(), torch.from_numpy(truth)[None].long(), classes, n_bins=15, ignore_index=255
    )
    assert ours.ece == pytest.approx(float(expected), abs=2e-6) and ours.ece > 0.05


def test_one_logit_is_two() -> None:
    logits, truth = overconfident(2, 2.0)
    one, two = CalibrationError(), CalibrationError()
    one.update(logits[1:].double() - logits[:1].double(), truth)
    two.update(logits, truth)
    assert one.counts[:2].sum() == two.counts[:2].sum() and one.ece == pytest.approx(two.ece, abs=1e-6)


def test_by_hand() -> None:
    """Confidences 0.6, 0.6, 0.9, 0.75, the last on the edge of two of four bins: it is in the lower one."""
    p = torch.tensor([0.6, 0.6, 0.1, 0.75], dtype=torch.float64)
    ours = CalibrationError(4)
    ours.update(torch.stack([torch.zeros(4).double(), p.logit()])[..., None], np.array([[1], [0], [0], [1]]))
    assert ours.counts[0].tolist() == [0, 0, 3, 1] and ours.counts[1].tolist() == [0, 0, 2, 1]
    expected = 3 / 4 * abs(2 / 3 - (0.6 + 0.6 + 0.75) / 3) + 1 / 4 * (1 - 0.9)
    assert ours.ece == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.7, 6.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_temperature_equals_a_minimiser(classes: int, factor: float) -> None:
    logits, truth = overconfident(classes, factor)
    ours = Temperature()
    ours.update(logits, truth)
    scores, labels = logits.double()[None], torch.from_numpy(truth)[None].long()

    def loss(t: float) -> float:
        return float(F.cross_entropy(scores / t, labels, ignore_index=255))

    best = minimize_scalar(loss, bounds=(0.1, 20), method="bounded").x
    assert ours.best == pytest.approx(best, rel=5e-3)
    np.testing.assert_allclose(ours.loss, [loss(t) for t in ours.grid], atol=1e-6)


def test_labels_that_are_all_right_ask_for_the_coldest() -> None:
    logits = overconfident(3, 1.0)[0]
    ours = Temperature()
    ours.update(logits, logits.argmax(0).numpy())
    assert ours.best == 0.25


@pytest.mark.parametrize("metric", [CalibrationError, Temperature])
def test_ignored_pixels_never_matter(metric: type[CalibrationError] | type[Temperature]) -> None:
    logits, truth = overconfident(3, 1.0)
    poisoned = torch.where(torch.from_numpy(truth == 255), torch.nan, logits)
    a, b, nothing = metric(), metric(), metric()
    a.update(logits, truth)
    b.update(poisoned, truth)
    np.testing.assert_array_equal(a.state(), b.state())
    nothing.update(logits, np.full(truth.shape, 255))
    assert not nothing.state().any()
    assert np.isnan(nothing.ece if isinstance(nothing, CalibrationError) else nothing.best)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="logits have shape"):
        CalibrationError().update(torch.zeros(2, 3, 4), np.zeros((4, 3), int))


@pytest.mark.parametrize("metric", [CalibrationError(), Temperature(), PrecisionRecall(2)])
@pytest.mark.parametrize(("bands", "label"), [(1, 2), (2, 2), (2, -1)])
def test_labels_that_are_no_classes_are_refused(
    metric: CalibrationError | Temperature | PrecisionRecall, bands: int, label: int
) -> None:
    """Two of these counted such a pixel as a wrong one of some class, the third ended in torch's words."""
    with pytest.raises(DataError, match=rf"class index {label} is outside 0\.\.1; give as many classes"):
        metric.update(torch.zeros(bands, 1, 2), np.array([[0, label]]))
    assert not metric.state().any()


def test_curves_are_of_all_classes_or_none() -> None:
    for bands in (2, 4):
        with pytest.raises(ShapeError, match=f"logits of {bands} classes for curves of 3; give as many"):
            PrecisionRecall(3).update(torch.zeros(bands, 1, 2), np.zeros((1, 2), int))
