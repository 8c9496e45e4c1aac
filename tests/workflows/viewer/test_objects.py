from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import Affine

from unetpp_workflows.pipeline import segment
from unetpp_workflows.viewer.catalogue import Catalogue
from unetpp_workflows.viewer.objects import open_objects


def test_objects_of_a_scene_come_in_its_pixels(ink_package: Path, tmp_path: Path) -> None:
    pixels = np.full((3, 200, 300), 220, np.uint8)
    pixels[:, 50:80, 120:160] = 20
    path = tmp_path / "scene.tif"
    place = Affine(0.5, 0, 430_000, 0, -0.5, 5_500_000)
    with rasterio.open(
        path, "w", driver="GTiff", width=300, height=200, count=3, dtype="uint8", crs="EPSG:32632", transform=place
    ) as file:
        file.write(pixels)
    done = segment([path], model=str(ink_package), output=tmp_path / "out")
    assert done.exit_code == 0, done.sentence()
    (result,) = Catalogue([tmp_path / "out"]).results()
    details = result.details()
    assert details["transform"] == pytest.approx(tuple(place)[:6]) and "32632" in details["crs"]
    assert details["spacing"] == {"x": 0.5, "y": 0.5, "unit": "m"}
    objects = open_objects(result)
    assert objects is not None
    (ink,) = (f for f in objects.within((130, 60, 130, 60)).features if f["properties"]["class"] == "ink")
    assert shapely.geometry.shape(ink["geometry"]).equals(shapely.box(120, 50, 160, 80))
    assert not [f for f in objects.within((10, 10, 20, 20)).features if f["properties"]["class"] == "ink"]
