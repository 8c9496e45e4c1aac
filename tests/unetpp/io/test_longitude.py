"""Scenes at longitude 180: refused where they cross it, in degrees and in projections, and only there."""

from __future__ import annotations

from typing import Any

import pytest
from rasterio.transform import from_origin

from unetpp.errors import SpacingError
from unetpp.io import open_raster
from unetpp.io.resample import plan_grid

CROSSING = {
    "degrees past 180": ("EPSG:4326", from_origin(179.5, -16, 0.02, 0.02)),
    "degrees before -180": ("EPSG:4326", from_origin(-180.5, -16, 0.02, 0.02)),
    "0 to 360": ("EPSG:4326", from_origin(300, 10, 0.5, 0.5)),
    "utm 60 at Fiji": ("EPSG:32760", from_origin(800_000, 8_200_000, 1000, 1000)),
    "mercator past its edge": ("EPSG:3857", from_origin(20_037_508.34 - 10_000, -1_800_000, 400, 400)),
    "around the south pole": ("EPSG:3031", from_origin(-20_000, 20_000, 400, 400)),
}
CLEAR = {
    "degrees up to 180": ("EPSG:4326", from_origin(179, -16, 0.01, 0.01)),
    "degrees from -180": ("EPSG:4326", from_origin(-180, -16, 0.01, 0.01)),
    "the whole Earth": ("EPSG:4326", from_origin(-180, 90, 3.6, 1.8)),
    "utm 60 at Fiji": ("EPSG:32760", from_origin(600_000, 8_200_000, 100, 100)),
    "mercator up to its edge": ("EPSG:3857", from_origin(20_037_508.342789244 - 40_000, -1_800_000, 400, 400)),
    "the whole Earth in Mercator": (
        "EPSG:3857",
        from_origin(-20_037_508.342789244, 20_037_508.342789244, 400_750.16685578486, 400_750.16685578486),
    ),
    "antarctica away from the line": ("EPSG:3031", from_origin(1_000_000, 20_000, 400, 400)),
    "the whole Earth, equal area": ("EPSG:6933", from_origin(-17_367_530.44, 7_314_540.83, 347_350.6088, 146_290.8166)),
    "a local grid": ("EPSG:32636", None),
}


@pytest.mark.parametrize("name", CROSSING)
def test_a_scene_across_the_line_is_refused(make: Any, name: str) -> None:
    crs, transform = CROSSING[name]
    path = make.geotiff(make.noise((100, 100, 1)), crs=crs, transform=transform)
    with open_raster(path) as raster, pytest.raises(SpacingError, match="crosses longitude 180 or a pole; cut it"):
        plan_grid(raster, model_spacing=None)


@pytest.mark.parametrize("name", CLEAR)
def test_a_scene_beside_the_line_is_planned(make: Any, name: str) -> None:
    crs, transform = CLEAR[name]
    with open_raster(make.geotiff(make.noise((100, 100, 1)), crs=crs, transform=transform)) as raster:
        assert plan_grid(raster, model_spacing=None).height == 100
