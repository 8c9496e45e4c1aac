from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import Affine

from unetpp.errors import StoreError
from unetpp.finalize.rows import VECTOR_FILES
from unetpp_workflows.config import load_config
from unetpp_workflows.pipeline import segment
from unetpp_workflows.viewer.catalogue import Catalogue, Result
from unetpp_workflows.viewer.objects import open_objects, readable

PLACE = Affine(0.5, 0, 430_000, 0, -0.5, 5_500_000)
BOXES = [(120, 50, 160, 80), (20, 100, 60, 140)]


def segmented(
    package: Path, folder: Path, formats: list[str], *, scene: bool, crs: str = "EPSG:32632", place: Affine = PLACE
) -> Result:
    """Segment a picture whose only ink is `BOXES` and return the viewer's only result."""
    pixels = np.full((3, 200, 300), 220, np.uint8)
    for x0, y0, x1, y1 in BOXES:
        pixels[:, y0:y1, x0:x1] = 20
    path, where = folder / "image.tif", {"crs": crs, "transform": place} if scene else {}
    with rasterio.open(path, "w", driver="GTiff", width=300, height=200, count=3, dtype="uint8", **where) as file:
        file.write(pixels)
    config = load_config(None, options={"output.formats": formats}, sets=["tracking.enabled=false"])
    done = segment([path], model=str(package), output=folder / "out", config=config)
    assert done.exit_code == 0, done.sentence()
    (result,) = Catalogue([folder / "out"]).results()
    return result


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("formats", "scene"),
    [(["gpkg"], True), (["flatgeobuf"], True), (["geojson"], True), (["geojson.gz"], True), (["geojson.gz"], False)],
    ids=str,
)
def test_objects_come_in_level_0_pixels_from_every_format(
    ink_package: Path, tmp_path: Path, formats: list[str], scene: bool
) -> None:
    objects = open_objects(segmented(ink_package, tmp_path, formats, scene=scene))
    assert objects is not None
    for box in BOXES:
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        (ink,) = (f for f in objects.within((*middle, *middle)).features if f["properties"]["class"] == "ink")
        outline = shapely.geometry.shape(ink["geometry"])
        assert outline.symmetric_difference(shapely.box(*box)).area < 0.5
        assert any("area" in name.lower() for name in ink["properties"]["measurements"])
    assert not [f for f in objects.within((5, 5, 10, 10)).features if f["properties"]["class"] == "ink"]


@pytest.mark.parametrize("lon", [179.986, -180.014], ids=["east", "west"])
def test_a_geojson_across_the_antimeridian_is_searched_in_the_scenes_own_pixels(
    ink_package: Path, tmp_path: Path, lon: float
) -> None:
    place = Affine(1e-4, 0, lon, 0, -1e-4, -16)  # the line lies at pixel 140, inside the first box
    objects = open_objects(segmented(ink_package, tmp_path, ["geojson"], scene=True, crs="EPSG:4326", place=place))
    assert objects is not None
    for x0, y0, x1, y1 in BOXES:
        found = objects.within((x0 + 1, y0 + 1, x1 - 1, y1 - 1)).features
        (ink,) = (feature for feature in found if feature["properties"]["class"] == "ink")
        parts = shapely.get_parts(shapely.geometry.shape(ink["geometry"]))
        assert shapely.union_all(parts).symmetric_difference(shapely.box(x0, y0, x1, y1)).area < 0.5


def test_objects_off_the_globe_leave_the_others_to_be_found(ink_package: Path, tmp_path: Path) -> None:
    place = Affine(500, 0, 5_400_000, 0, -500, 60_000)  # the disk ends at 5,434,000
    crs = "+proj=geos +h=35786023 +sweep=x +ellps=GRS80"
    result = segmented(ink_package, tmp_path, ["geojson"], scene=True, crs=crs, place=place)
    features = json.loads((result.folder / "polygons.geojson").read_text())["features"]
    assert None in [feature["geometry"] for feature in features]
    objects = open_objects(result)
    assert objects is not None
    x0, y0, x1, y1 = BOXES[1]
    (ink,) = objects.within((x0 + 1, y0 + 1, x1 - 1, y1 - 1)).features
    assert shapely.geometry.shape(ink["geometry"]).symmetric_difference(shapely.box(x0, y0, x1, y1)).area < 0.5


def test_no_searchable_file_is_no_objects(ink_package: Path, tmp_path: Path) -> None:
    assert open_objects(segmented(ink_package, tmp_path, ["geoparquet"], scene=True)) is None


def test_geojson_beyond_what_is_searched_is_no_objects(ink_package: Path, tmp_path: Path) -> None:
    result = segmented(ink_package, tmp_path, ["geojson"], scene=True)
    with (result.folder / "polygons.geojson").open("r+b") as file:
        file.truncate(2**29 + 1)  # a hole: it takes no space
    assert open_objects(result) is None


@pytest.mark.parametrize("kind", ["gpkg", "flatgeobuf", "geojson", "geojson.gz"])
def test_a_file_cut_short_is_one_error(ink_package: Path, tmp_path: Path, kind: str) -> None:
    result = segmented(ink_package, tmp_path, [kind], scene=True)
    path = result.folder / VECTOR_FILES[kind]
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(StoreError, match="outlines of image"), readable(result):
        objects = open_objects(result)
        assert objects is not None
        objects.within((0, 0, 300, 200))


def test_a_scene_is_placed(ink_package: Path, tmp_path: Path) -> None:
    details = segmented(ink_package, tmp_path, ["gpkg"], scene=True).details()
    assert details["transform"] == pytest.approx(tuple(PLACE)[:6]) and "32632" in details["crs"]
    assert details["spacing"] == {"x": 0.5, "y": 0.5, "unit": "m"}
