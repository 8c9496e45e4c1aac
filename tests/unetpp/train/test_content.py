"""Images are known again by their pixels, wherever they were moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.unetpp.train.test_store import store as store  # the fixture
from unetpp.train.content import image_digests
from unetpp.train.store import ATTRIBUTES, PatchStore


def test_the_mean_of_other_images_changes_no_digest(store: Path) -> None:
    """Pixels without data are read as the training images' mean, which differs from split to split."""
    before = image_digests(PatchStore.open(store).source("train"))
    root = zarr.open_group(store)
    facts: dict[str, Any] = dict(root.attrs[ATTRIBUTES])  # type: ignore[arg-type]
    root.attrs[ATTRIBUTES] = {**facts, "mean": [1.0, 2.0]}
    opened = PatchStore.open(store)
    assert not np.asarray(root["valid"][...]).all() and opened.mean == (1.0, 2.0)  # type: ignore[index]
    assert image_digests(opened.source("train")) == before


@pytest.mark.parametrize("array", ["pixels", "box"])
def test_other_pixels_or_places_are_another_image(store: Path, array: str) -> None:
    before = image_digests(PatchStore.open(store).source("val"))
    root = zarr.open_group(store)
    values: Any = np.asarray(root[array][...])  # type: ignore[index]
    number = int(np.flatnonzero(np.asarray(root["image"][...]) == 1)[0])  # type: ignore[index]
    if array == "pixels":
        values[number, 0, 0] += 1
    else:
        values[number] += 1
    source = PatchStore.open(store).source("val")
    source._store._arrays[array] = values  # type: ignore[index]
    if array == "box":
        source.blocks.box[0] += 1
    assert image_digests(source) != before
