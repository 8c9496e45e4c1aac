"""Profiles of training images: from labelled windows only, each image for itself."""

from __future__ import annotations

import numpy as np
import pytest

from unetpp.losses import IGNORE
from unetpp.train import ArraySource
from unetpp.train.appearance import source_profiles


def test_every_image_has_its_own_profile_from_where_it_is_labelled() -> None:
    dark, bright = np.full((300, 300, 1), 51, np.uint8), np.full((40, 30, 1), 204, np.uint8)
    labels = np.zeros((300, 300), np.uint8)
    labels[:, 160:] = IGNORE
    dark[:, 160:] = 255
    unlabelled = np.full((40, 30), IGNORE, np.uint8)
    source = ArraySource(
        [("a", "a", dark, labels, None), ("b", "b", bright, np.ones((40, 30), np.uint8), None),
         ("c", "c", bright, unlabelled, None)], 2
    )  # fmt: skip
    first, second = source_profiles(source, ["grey"], source.span)
    assert first["mean_grey"] == pytest.approx(0.2) and second["mean_grey"] == pytest.approx(0.8)
    assert first["std_grey"] == pytest.approx(0)
