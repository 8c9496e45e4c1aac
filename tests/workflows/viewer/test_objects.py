from __future__ import annotations

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


def segmented(package: Path, folder: Path, formats: list[str], *, scene: bool) -> Result:
    """Segment a picture whose only ink is `BOXES` and return the viewer's only result."""
    pixels = np.full((3, 200, 300), 220, np.uint8)
    for x0, y0, x1, y1 in BOXES:
        pixels[:, y0:y1, x0:x1] = 20
    path, where = folder / "image.tif", {"crs": "EPSG:32632", "transform": PLACE} if scene else {}
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
