"""Tiles of sources that are not 8-bit RGB, beside the numbers of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from unetpp.io.resample import OutputGrid
from unetpp.job import EngineChoice, SegmentJob
from unetpp.tiling import make_plan
from unetpp_workflows.viewer.tiles import PAPER, TileReader

HEIGHT, WIDTH = 90, 130


def reader_of(planes: NDArray[Any], folder: Path) -> TileReader:
    path = folder / "scene.tif"
    place = {"crs": "EPSG:32632", "transform": from_origin(430_000, 5_500_000, 10, 10)}
    with rasterio.open(
        path, "w", driver="GTiff", count=len(planes), height=HEIGHT, width=WIDTH, dtype=planes.dtype, **place
    ) as file:
        file.write(planes)
    job = SegmentJob(
        uri=str(path),
        out=folder,
        package=folder,
        model_ref={},
        classes=(),
        engine=EngineChoice(name="torch", version="0", precision="fp32", threads=1),
        grid=OutputGrid(HEIGHT, WIDTH, 1.0, 1.0, 0, None, None, None),
        plan=make_plan(HEIGHT, WIDTH, halo=16, multiple=16, core=128, shard=128),
        fingerprint="f",
        key="0" * 64,
        image={"height": HEIGHT, "width": WIDTH},
    )
    return TileReader(job)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_bright_fourth_band_leaves_the_shown_ones_their_contrast(dtype: str, tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(100, 3000, WIDTH), (HEIGHT, 1))
    planes = np.stack([ramp, ramp[:, ::-1], ramp, ramp + 30_000]).astype(dtype)
    shown = reader_of(planes, tmp_path).source(0, 0, 0).astype(float)
    expected = (np.moveaxis(planes[:3], 0, -1) - 100.0) / 2900 * 255
    assert np.abs(shown - expected).max() <= 6  # the first and the last percent


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_is_no_number_is_paper(tmp_path: Path) -> None:
    plane = np.tile(np.linspace(-1, 1, WIDTH, dtype="float32"), (HEIGHT, 1))
    plane[:40, :50], plane[80, 120] = np.nan, np.inf
    shown = reader_of(plane[None], tmp_path).source(0, 0, 0)
    assert (shown[:40, :50] == PAPER).all() and (shown[80, 120] == PAPER).all()
    assert shown[60, 0].tolist() == [0, 0, 0] and shown[60, -1].tolist() == [255, 255, 255]
