"""A measurement counts what the single metrics count on whole images, by group and by stratum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unetpp.train.shapes import squares
from unetpp.metrics import BoundaryF1, CalibrationError, Confusion, ObjectQuality
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.objects import split_objects
from unetpp.train import ArraySource
from unetpp.train.measure import Measurement, measure
from unetpp.train.normalise import Normalise
from unetpp.train.validate import predict

NORM = Normalise((128.0,) * 3, (60.0,) * 3, "cpu")


@pytest.fixture
def network() -> UNetPlusPlus:
    torch.manual_seed(3)
    return UNetPlusPlus(GridConfig(filters=(4, 8), classes=2)).eval()


def measured(network: UNetPlusPlus, source: ArraySource) -> Measurement:
    return measure(predict(network, source, NORM, precision="fp32"), source, 2)


def test_counts_are_those_of_whole_images(network: UNetPlusPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    source = squares(4, 0, objects=True)
    source.images = tuple(replace(image, group=f"g{k // 2}") for k, image in enumerate(source.images))
    confusion, boundary, calibration, objects = Confusion(2), BoundaryF1(2), CalibrationError(), ObjectQuality()
    for whole in predict(network, source, NORM, precision="fp32"):
        logits, truth = whole.logits[-1], whole.truth
        labels = logits.argmax(0).numpy().astype(np.uint8)
        confusion.update(truth.labels, labels)
        boundary.update(truth.labels, labels)
        calibration.update(logits, truth.labels)
        assert truth.objects is not None
        split = split_objects(labels == 1, logits.softmax(0)[1].numpy())
        objects.update(truth.objects, split, truth.labels != 255)
    monkeypatch.setattr("unetpp.tiling.best_core", lambda *_, **__: 16)  # now in many tiles
    found = measured(network, source)
    total = found.total()
    np.testing.assert_array_equal(total.confusion.matrix, confusion.matrix)
    np.testing.assert_array_equal(total.boundary.counts, boundary.counts)
    assert total.calibration.ece == pytest.approx(calibration.ece, abs=1e-5)
    assert total.objects is not None and total.objects.f1 == pytest.approx(objects.f1, abs=0.02)
    assert set(found.groups) == {"g0", "g1"} and set(found.strata) == {"even", "odd"}
    by_stratum = sum(counts.confusion.matrix for counts in found.strata.values())
    np.testing.assert_array_equal(by_stratum, confusion.matrix)
    assert sum(c.matrix.sum() for c in found.images.values()) == 4 * 46 * 40 and not found.skipped


def test_large_images_have_no_boundaries_and_say_so(network: UNetPlusPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetpp.train.measure.WHOLE", 100)
    found = measured(network, squares(2, 0, objects=True))
    assert found.skipped == ["s0", "s1"] and found.total().boundary.counts.sum() == 0
    assert found.total().confusion.matrix.sum() == 2 * 46 * 40 and found.total().objects is None


@pytest.mark.parametrize("large", [0, 1])
def test_a_large_image_takes_nobodys_objects_away(
    network: UNetPlusPlus, monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    """Whichever comes first, the figures are those of the images that objects were measured on."""
    source = squares(2, 0, objects=True)
    source.images = tuple(replace(image, group="g") for image in source.images)
    alone = measured(network, source).images
    assert len(alone) == 2
    sizes = [10**6 if index == large else 0 for index in range(2)]
    monkeypatch.setattr("unetpp.train.measure._whole", lambda image: not sizes[int(image.name[1:])])
    found = measured(network, source)
    assert found.skipped == [f"s{large}"] and found.total().objects is not None
    assert found.groups["g"].objects is not None


def test_without_object_numbers_there_are_no_objects(network: UNetPlusPlus) -> None:
    assert measured(network, squares(2, 0)).total().objects is None
