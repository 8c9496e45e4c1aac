"""The GeoTIFF as rasterio reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import CRS

from unetpp.durable import file_sha256
from unetpp.errors import OutputError
from unetpp.finalize.geotiff import write_geotiff
from unetpp.finalize.pieces import block_boxes
from unetpp.geometry import Transform
from unetpp.job import SegmentJob

UTM = (0.5, 0.0, 449000.0, 0.0, -0.5, 36500.0)
ROTATED = (0.3, 0.4, 449000.0, 0.4, -0.3, 36500.0)


def write(job: SegmentJob, folder: Path) -> Path:
    folder.mkdir()
    boxes = block_boxes(shard.box for shard in job.plan.shards())
    return folder / write_geotiff(job.store.read, boxes, grid=job.grid, classes=job.classes, folder=folder)


@pytest.mark.parametrize(("code", "transform"), [(32636, UTM), (32636, ROTATED), (4326, (1e-4, 0, 20, 0, -1e-4, 61))])
def test_rasterio_reads_labels_crs_transform_and_classes(
    code: int, transform: Transform, make_job: Callable[..., SegmentJob], tmp_path: Path
) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 1, 4, 255], np.uint8), size=(1100, 300))
    job = make_job(labels, crs=CRS.from_epsg(code).to_wkt(), transform=transform, shard=256)
    with rasterio.open(write(job, tmp_path / "work")) as file:
        assert np.array_equal(file.read(1), labels)
        assert file.crs.to_epsg() == code and file.nodata == 255
        assert tuple(file.transform)[:6] == pytest.approx(transform)
        assert file.profile["tiled"] and file.profile["compress"] == "deflate"
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert {k: v for k, v in file.tags(1).items() if k.startswith("CLASS_")} == {
            "CLASS_0": "background",
            "CLASS_1": "nucleus",
            "CLASS_4": "Gebäude",
        }
        assert [file.colormap(1)[value][:3] for value in (0, 1, 4)] == [(0, 0, 0), (200, 10, 20), (0, 90, 255)]
        assert file.overviews(1) == [2, 4]
        coarse = file.read(1, out_shape=(550, 150))
        assert np.array_equal(coarse, labels[::2, ::2])


def test_a_transform_without_a_crs_survives(make_job: Callable[..., SegmentJob], tmp_path: Path) -> None:
    """As that of a world file, which says nothing of a CRS."""
    job = make_job(np.ones((60, 80), np.uint8), crs=None, transform=ROTATED)
    with rasterio.open(write(job, tmp_path / "work")) as file:
        assert file.crs is None and tuple(file.transform)[:6] == pytest.approx(ROTATED)


def test_a_crs_that_geotiff_cannot_state_is_a_tag_and_a_warning(
    make_job: Callable[..., SegmentJob], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crs = CRS.from_user_input("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +ellps=WGS84")
    job = make_job(np.ones((60, 80), np.uint8), crs=crs.to_wkt(), transform=(0.01, 0, -5, 0, -0.01, 5))
    with rasterio.open(write(job, tmp_path / "work")) as file:
        assert file.crs is None and file.tags()["CRS_WKT"] == crs.to_wkt()
    assert [record.getMessage().partition(": ")[2][:38] for record in caplog.records] == [
        "GeoTIFF cannot state the image's CRS; "
    ]


def test_reruns_are_byte_identical_and_leave_nothing_else(make_job: Callable[..., SegmentJob], tmp_path: Path) -> None:
    labels = np.random.default_rng(1).choice(np.array([0, 1, 255], np.uint8), size=(300, 600))
    job = make_job(labels, crs=CRS.from_epsg(32636).to_wkt(), transform=UTM, shard=64)
    first, second = write(job, tmp_path / "a"), write(job, tmp_path / "b")
    assert file_sha256(first) == file_sha256(second)
    assert [path.name for path in first.parent.iterdir()] == ["classes.tif"]


def test_a_folder_that_cannot_be_written_is_one_line(make_job: Callable[..., SegmentJob], tmp_path: Path) -> None:
    job = make_job(np.zeros((40, 40), np.uint8), crs=CRS.from_epsg(32636).to_wkt(), transform=UTM)
    with pytest.raises(OutputError, match=r"cannot write .*classes\.tif") as error:
        write_geotiff(job.store.read, [], grid=job.grid, classes=job.classes, folder=tmp_path / "missing")
    assert "\n" not in str(error.value)
