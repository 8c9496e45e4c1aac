"""When a store is one of other data: what of images and labels its key knows."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
import zarr
from PIL import Image

from tests.dicom import write_slide
from unetpp.errors import StoreError
from unetpp_workflows.prepare.build import prepare
from unetpp_workflows.prepare.dataset import Dataset
from unetpp_workflows.prepare.page import write_page


def test_a_store_of_labels_that_changed_is_not_taken_for_finished(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    photos({"a1": (64, 64), "v1": (64, 64)})
    labels = zarr.create_array(tmp_path / "a1.zarr", shape=(64, 64), chunks=(32, 32), dtype="uint8")
    labels[...] = np.ones((64, 64), np.uint8)
    frame = geopandas.GeoDataFrame({"kind": ["tree"]}, geometry=[shapely.box(0, 0, 40, 40)])
    frame.to_file(tmp_path / "v1.shp")
    parts = tmp_path / "b1.mosaic.toml"
    parts.write_text('rule = "first"\nparts = [{ uri = "images/a1.png", x = 0, y = 0 }]')
    Image.fromarray(np.ones((64, 64), np.uint8)).save(tmp_path / "masks/b1.png")
    rows = ["images/a1.png,a1.zarr,train", "b1.mosaic.toml,masks/b1.png,train", "images/v1.png,v1.shp,val"]
    (tmp_path / "t.csv").write_text("\n".join(["image,labels,split", *rows]))
    dataset = described(table="t.csv", property="kind")
    first = prepare(dataset, tmp_path, tmp_path / "s.zarr")
    assert not first.errors, first.errors
    (tmp_path / "images/v1.png.aux.xml").write_text("<PAMDataset/>")  # a GIS that has shown the image
    assert not prepare(dataset, tmp_path, tmp_path / "s.zarr").fresh
    for changed in ("a1.zarr/c/1/1", "v1.dbf", "images/a1.png"):
        stat = (tmp_path / changed).stat()
        os.utime(tmp_path / changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        with pytest.raises(StoreError, match="other data"):
            prepare(dataset, tmp_path, tmp_path / "s.zarr")
        os.utime(tmp_path / changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not prepare(dataset, tmp_path, tmp_path / "s.zarr").fresh


def test_a_store_beside_a_dicom_slide_stays_finished(described: Callable[..., Dataset], tmp_path: Path) -> None:
    for name in "av":
        write_slide(tmp_path, [np.random.default_rng(ord(name)).integers(0, 256, (256, 256, 3), np.uint8)], 0.5)
        (tmp_path / "level0.dcm").rename(tmp_path / f"{name}.dcm")
    Image.fromarray(np.ones((256, 256), np.uint8)).save(tmp_path / "m.png")
    (tmp_path / "t.csv").write_text("image,labels,split\na.dcm,m.png,train\nv.dcm,m.png,val\n")
    dataset = described(table="t.csv", tissue="none")
    first = prepare(dataset, tmp_path, tmp_path / "s.zarr")
    assert not first.errors, first.errors
    assert write_page(first).parent == tmp_path
    assert not prepare(dataset, tmp_path, tmp_path / "s.zarr").fresh


def test_labels_saved_in_a_program_that_has_them_open_are_others(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    photos({"a1": (64, 64), "v1": (64, 64)})
    frame = geopandas.GeoDataFrame({"kind": ["tree"]}, geometry=[shapely.box(0, 0, 40, 40)])
    frame.to_file(tmp_path / "a1.gpkg")
    with closing(sqlite3.connect(tmp_path / "a1.gpkg", isolation_level=None)) as editor:
        for (name,) in editor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            editor.execute(f"DROP TRIGGER {name}")  # they call functions of GDAL's
    rows = ["images/a1.png,a1.gpkg,train", "images/v1.png,masks/v1.png,val"]
    (tmp_path / "t.csv").write_text("\n".join(["image,labels,split", *rows]))
    dataset = described(table="t.csv", property="kind")
    assert not prepare(dataset, tmp_path, tmp_path / "s.zarr").errors
    before = (tmp_path / "a1.gpkg").stat().st_mtime_ns
    with closing(sqlite3.connect(tmp_path / "a1.gpkg", isolation_level=None)) as editor:
        editor.execute("PRAGMA journal_mode = WAL")
        os.utime(tmp_path / "a1.gpkg", ns=(before, before))
        editor.execute("UPDATE a1 SET kind = 'roof'")
        assert (tmp_path / "a1.gpkg").stat().st_mtime_ns == before
        with pytest.raises(StoreError, match="other data"):
            prepare(dataset, tmp_path, tmp_path / "s.zarr")
