"""Reviews become training data: exported, prepared, and compared with what was drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from unetpp.errors import ConfigError
from unetpp.geometry import Box
from unetpp_workflows.prepare.build import discard_work, prepare
from unetpp_workflows.prepare.dataset import load_dataset
from unetpp_workflows.viewer import corrections, review
from unetpp_workflows.viewer.catalogue import Catalogue

from .conftest import Archives


def test_corrected_and_accepted_regions_reach_the_training_store(archives: Archives, tmp_path: Path) -> None:
    result = next(r for r in Catalogue([archives.second]).results() if r.name == "plain")
    log = archives.second / review.LOG
    log.unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="no region"):
        corrections.export([result], tmp_path / "none")
    # The darker network misses the grey blot (400..460, 100..180): a reviewer says that it is ink.
    blot = ((100.0, 400.0), (180.0, 400.0), (180.0, 460.0), (100.0, 460.0))
    accepted = ((590.0, 150.0), (700.0, 150.0), (700.0, 250.0), (590.0, 250.0))
    wrong = ((0.0, 0.0), (50.0, 0.0), (50.0, 50.0))
    review.add(result, review.Statement(verdict="to correct", label="ink", region=blot, note="missed"))
    review.add(result, review.Statement(verdict="accepted", region=accepted))
    review.add(result, review.Statement(verdict="rejected", region=wrong))
    try:
        dataset, images, polygons = corrections.export([result], tmp_path / "fixes")
        assert (images, polygons) == (1, 3)
        done = prepare(load_dataset(str(dataset), ()), tmp_path / "fixes", tmp_path / "fixes.zarr")
        assert not done.errors, done.errors
        discard_work(done.store)
    finally:
        log.unlink()
    truth = np.full((700, 1100), 255, np.uint8)
    truth[400:460, 100:180] = 1
    predicted = np.asarray(zarr.open_array(archives.second / "plain" / "labels.ome.zarr/classes/0", mode="r"))
    truth[150:250, 590:700] = predicted[150:250, 590:700]
    group = zarr.open_group(done.store, mode="r")
    found = np.full_like(truth, 255)
    for box, labels in zip(np.asarray(group["box"]), np.asarray(group["labels"]), strict=True):
        part = Box(*map(int, box)).clip(*truth.shape)
        found[part.slices()] = labels[: part.height, : part.width]
    assert np.array_equal(found, truth) and (truth == 0).any() and (truth == 1).any()
