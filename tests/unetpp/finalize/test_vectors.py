"""Vector files as geopandas, GDAL and the formats' own rules see them."""

from __future__ import annotations

import gzip
import hashlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import geopandas
import numpy as np
import pytest
import scipy.ndimage as ndi
import shapely
from pyproj import CRS, Geod, Transformer
from rasterio.features import shapes
from rasterio.transform import Affine

from unetpp.durable import file_sha256
from unetpp.errors import OutputError
from unetpp.finalize.lonlat import LonLat, bent
from unetpp.finalize.outlines import Outlines
from unetpp.finalize.pieces import write_pieces
from unetpp.finalize.polygons import iter_batches
from unetpp.finalize.rows import well_known_binary
from unetpp.finalize.vectors import write_vectors
from unetpp.geometry import Box, Spacing, Transform
from unetpp.package import ClassInfo

CLASSES = (
    ClassInfo(value=0, name="background", color=(0, 0, 0), background=True),
    ClassInfo(value=1, name="nucleus", color=(200, 10, 20)),
    ClassInfo(value=4, name="Gebäude 5 %s", color=(0, 90, 255)),
)
UTM = (0.5, 0.0, 449000.0, 0.0, -0.5, 36500.0)
ROTATED = (0.3, 0.4, 449000.0, 0.4, -0.3, 36500.0)
MIRRORED = (-0.5, 0.0, 449000.0, 0.0, -0.5, 36500.0)


@dataclass(frozen=True)
class Grid:
    width: int
    height: int
    crs: str | None = None
    transform: Transform | None = None
    spacing: Spacing | None = None
    step_y: float = 1.0
    step_x: float = 1.0


def random_labels(seed: int = 0, shape: tuple[int, int] = (50, 41)) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([0, 1, 4, 255], np.uint8), shape, p=[0.4, 0.3, 0.2, 0.1])


def write(
    labels: np.ndarray,
    grid: Grid,
    folder: Path,
    side: int = 16,
    formats: tuple[str, ...] = (),
    classes: tuple[ClassInfo, ...] = CLASSES,
) -> dict[int, int]:
    folder.mkdir(parents=True, exist_ok=True)
    height, width = labels.shape
    boxes = [
        Box(y, x, y + side, x + side).clip(height, width) for y in range(0, height, side) for x in range(0, width, side)
    ]
    keep = np.isin(np.arange(256), (1, 4))
    spilled = folder / f"pieces{side}"
    write_pieces(lambda box: labels[box.slices()], boxes, keep, spilled)
    formats = formats or (("geojson",) if grid.crs is None else ("geojson", "gpkg"))
    counts, digests = write_vectors(
        iter_batches(boxes, spilled), grid=grid, classes=classes, key="k", folder=folder, formats=formats
    )
    assert all(digest in (None, file_sha256(folder / name)) for name, digest in digests.items())
    assert all((digests[name] is None) == ("geojson" not in name) for name in digests)
    return counts


def scene(labels: np.ndarray, code: str, transform: Transform) -> Grid:
    return Grid(labels.shape[1], labels.shape[0], CRS.from_user_input(code).to_wkt(), transform)


def gdal_polygons(labels: np.ndarray, transform: Transform) -> list[tuple[int, shapely.Geometry]]:
    """Return GDAL's polygons of the whole image in the CRS."""
    a, b, c, d, e, f = transform
    found = shapes(labels, mask=np.isin(labels, (1, 4)), connectivity=4, transform=Affine(a, b, c, d, e, f))
    return [(int(value), shapely.geometry.shape(geometry)) for geometry, value in found]


def features(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    content = json.loads((folder / "polygons.geojson").read_text(encoding="utf-8"))
    assert set(content) == {"type", "features"} and content["type"] == "FeatureCollection"
    return list(content["features"])


@pytest.mark.parametrize("transform", [UTM, ROTATED, MIRRORED], ids=["north up", "rotated", "mirrored"])
def test_geopackage_holds_gdals_polygons_in_the_scenes_crs(transform: Transform, tmp_path: Path) -> None:
    labels = random_labels()
    counts = write(labels, scene(labels, "EPSG:32636", transform), tmp_path)
    table = geopandas.read_file(tmp_path / "polygons.gpkg", layer="polygons")
    expected = gdal_polygons(labels, transform)
    assert CRS.from_user_input(table.crs) == CRS.from_epsg(32636)
    assert counts == {value: sum(v == value for v, _ in expected) for value in (1, 4)}

    def key(value: int, geometry: shapely.Geometry) -> tuple[int, bytes]:
        return value, shapely.normalize(shapely.set_precision(geometry, 1e-6)).wkb

    ours = sorted(key(v, g) for v, g in zip(table["class"], table.geometry, strict=True))
    assert ours == sorted(key(v, g) for v, g in expected)
    assert table.geometry.area.to_numpy() == pytest.approx(table["area_m2"].to_numpy(), rel=1e-9)
    assert table.geometry.exterior.is_ccw.all() and table.geometry.is_valid.all()
    assert set(zip(table["class"], table["name"], strict=True)) == {(1, "nucleus"), (4, "Gebäude 5 %s")}


def test_lonlat_geojson_follows_rfc_7946(tmp_path: Path) -> None:
    labels = random_labels(1)
    write(labels, scene(labels, "EPSG:32636", ROTATED), tmp_path)
    project = Transformer.from_crs(32636, 4326, always_xy=True)
    expected = [
        (v, shapely.transform(g, project.transform, interleaved=False)) for v, g in gdal_polygons(labels, ROTATED)
    ]
    table = geopandas.read_file(tmp_path / "polygons.geojson")
    assert table.crs.to_epsg() == 4326
    for feature in features(tmp_path):
        shell, *holes = (shapely.LinearRing(ring) for ring in feature["geometry"]["coordinates"])
        assert shell.is_ccw and not any(hole.is_ccw for hole in holes)
        west, south, _, _ = shell.bounds
        assert 32 < west < 33 and 0.3 < south < 0.4
    tree = shapely.STRtree([shapely.centroid(g) for _, g in expected])
    twins = [int(tree.nearest(shapely.centroid(polygon))) for polygon in table.geometry]
    assert len(set(twins)) == len(twins) == len(expected)
    for value, polygon, twin in zip(table["class"], table.geometry, twins, strict=True):
        assert value == expected[twin][0] and polygon.hausdorff_distance(expected[twin][1]) < 2e-9
    digits = [
        len(repr(v).split(".")[1]) for f in features(tmp_path) for p in f["geometry"]["coordinates"][0] for v in p
    ]
    assert np.median(digits) >= 7


def test_geodesic_area_of_each_object(tmp_path: Path) -> None:
    labels = random_labels(2)
    write(labels, scene(labels, "EPSG:4326", (1e-4, 0.0, 20.0, 0.0, -1e-4, 61.0)), tmp_path)
    table = geopandas.read_file(tmp_path / "polygons.gpkg")
    geod = Geod(ellps="WGS84")
    truth = [abs(geod.geometry_area_perimeter(shapely.orient_polygons(g))[0]) for g in table.geometry]
    assert table["area_m2"].to_numpy() == pytest.approx(np.array(truth), rel=1e-6)
    lonlat = geopandas.read_file(tmp_path / "polygons.geojson")
    assert lonlat["area_m2"].tolist() == table["area_m2"].tolist()


def test_qupath_features_lie_in_level_0_pixels(tmp_path: Path) -> None:
    labels = random_labels(3)
    spacing = Spacing(1.0, 0.5, "um")
    write(labels, Grid(41, 50, spacing=spacing, step_y=4.0, step_x=2.5), tmp_path)
    assert not (tmp_path / "polygons.gpkg").exists()
    found = features(tmp_path)
    ours = sorted(shapely.normalize(shapely.geometry.shape(f["geometry"])).wkb for f in found)
    expected = gdal_polygons(labels, (2.5, 0.0, 0.0, 0.0, 4.0, 0.0))
    assert ours == sorted(shapely.normalize(g).wkb for _, g in expected)
    for feature in found:
        polygon = shapely.geometry.shape(feature["geometry"])
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["classification"] in (
            {"name": "nucleus", "color": [200, 10, 20]},
            {"name": "Gebäude 5 %s", "color": [0, 90, 255]},
        )
        assert properties["measurements"] == {
            "Area px^2": pytest.approx(polygon.area),
            "Area µm^2": pytest.approx(polygon.area / (4.0 * 2.5) * 0.5),
        }
        assert shapely.LinearRing(feature["geometry"]["coordinates"][0]).is_ccw


def test_unknown_spacing_gives_pixels_only(tmp_path: Path) -> None:
    write(np.ones((3, 4), np.uint8), Grid(4, 3), tmp_path)
    (feature,) = features(tmp_path)
    assert feature["properties"]["measurements"] == {"Area px^2": 12}
    assert feature["geometry"]["coordinates"] == [[[0, 0], [4, 0], [4, 3], [0, 3], [0, 0]]]


def test_ids_are_uuids_that_do_not_depend_on_shards(tmp_path: Path) -> None:
    labels = random_labels(4)
    ids = []
    for side in (9, 64):
        write(labels, Grid(41, 50), tmp_path / str(side), side)
        ids.append({f["id"] for f in features(tmp_path / str(side))})
        assert len(ids[-1]) == len(features(tmp_path / str(side)))
    assert ids[0] == ids[1]
    assert all(UUID(value).version == 5 for value in ids[0])


@pytest.mark.parametrize("batch", [50, 4096])
def test_reruns_are_byte_identical_and_batches_do_not_lose_features(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetpp.finalize.geopackage.BATCH_FEATURES", batch)
    labels = random_labels(5)
    grid = scene(labels, "EPSG:3857", (10.0, 0.0, 2e6, 0.0, -10.0, 8e6))
    digests = []
    for run in ("a", "b"):
        counts = write(labels, grid, tmp_path / run)
        digests.append(
            [hashlib.sha256((tmp_path / run / f"polygons.{x}").read_bytes()).hexdigest() for x in ("gpkg", "geojson")]
        )
        assert len(geopandas.read_file(tmp_path / run / "polygons.gpkg")) == sum(counts.values())
        assert len(features(tmp_path / run)) == sum(counts.values())
    assert digests[0] == digests[1]


@pytest.mark.parametrize("code", ["EPSG:32636", None])
def test_gzipped_geojson_unpacks_to_the_plain_one(code: str | None, tmp_path: Path) -> None:
    labels = random_labels(6)
    write(labels, scene(labels, code, UTM) if code else Grid(41, 50), tmp_path, formats=("geojson", "geojson.gz"))
    plain = (tmp_path / "polygons.geojson").read_bytes()
    assert gzip.decompress((tmp_path / "polygons.geojson.gz").read_bytes()) == plain


@pytest.mark.parametrize("code", ["EPSG:32636", None])
def test_no_objects(code: str | None, tmp_path: Path) -> None:
    labels = np.full((20, 20), 255, np.uint8)
    counts = write(labels, scene(labels, code, UTM) if code else Grid(20, 20), tmp_path)
    assert counts == {1: 0, 4: 0}
    assert features(tmp_path) == []
    if code:
        table = geopandas.read_file(tmp_path / "polygons.gpkg", layer="polygons")
        assert len(table) == 0 and list(table.columns) == ["id", "class", "name", "area_m2", "geometry"]
        assert table.crs.to_epsg() == 32636


def test_a_local_crs_has_a_geopackage_but_no_place_on_the_globe(tmp_path: Path) -> None:
    labels = np.ones((4, 4), np.uint8)
    grid = Grid(4, 4, 'LOCAL_CS["site",UNIT["metre",1]]', (1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    write(labels, grid, tmp_path)
    assert not (tmp_path / "polygons.geojson").exists()
    table = geopandas.read_file(tmp_path / "polygons.gpkg")
    assert table["area_px"].tolist() == [16.0]


def square(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.int64)


def test_long_edges_bend_with_the_projection() -> None:
    wkt = CRS.from_epsg(32636).to_wkt()
    lonlat = LonLat(wkt, (30.0, 0.0, 200000.0, 0.0, -30.0, 7000000.0), 10000)
    (geometry,) = lonlat.geometries(Outlines.of([[square(0, 0, 10000, 300)]]))
    assert geometry is not None
    edge = np.linspace(0, 10000, 501)
    x, y = Transformer.from_crs(32636, 4326, always_xy=True).transform(30 * edge + 200000, np.full(501, 7000000.0))
    outline = shapely.geometry.shape(geometry).exterior
    metres = shapely.distance(shapely.points(x, y), outline) * 111e3
    assert metres.max() < 0.03 * 30


def test_neighbours_of_a_long_edge_share_its_vertices() -> None:
    upper, lower = (bent(box, 256) for box in (square(3, 0, 1000, 5), square(0, 5, 1200, 9)))
    assert {tuple(p) for p in upper if p[1] == 5} - {(3, 5), (1000, 5)} == {(256, 5), (512, 5), (768, 5)}
    assert {(256, 5), (512, 5), (768, 5)} <= {tuple(p) for p in lower}


@pytest.mark.parametrize("code", ["EPSG:32660", "EPSG:4326"])
def test_antimeridian_cuts_polygons(code: str) -> None:
    transform = (
        (1000.0, 0.0, 500000.0, 0.0, -1000.0, 8000000.0) if code != "EPSG:4326" else (0.01, 0, 179.0, 0, -0.01, 70)
    )
    rings = [square(0, 0, 300, 60), square(100, 20, 200, 40)[::-1]]
    lonlat = LonLat(CRS.from_user_input(code).to_wkt(), transform, 300)
    (geometry,) = lonlat.geometries(Outlines.of([rings]))
    assert geometry is not None and geometry["type"] == "MultiPolygon"
    found = shapely.geometry.shape(geometry)
    assert found.is_valid
    west, east = sorted(part.bounds for part in found.geoms)
    assert west[0] == -180 and east[2] == 180 and west[2] < -170 and east[0] > 170
    for polygon in geometry["coordinates"]:
        assert shapely.LinearRing(polygon[0]).is_ccw


@pytest.mark.parametrize("smooth", [False, True])
def test_edges_along_the_antimeridian_leave_valid_polygons(smooth: bool, tmp_path: Path) -> None:
    """In the usual grids of the Antarctic it is a line between pixels."""
    labels = random_labels(shape=(140, 160))
    if smooth:
        noise = ndi.gaussian_filter(np.random.default_rng(0).standard_normal(labels.shape), 2)
        labels = np.select([noise > 0.05, noise < -0.08], [1, 4], 0).astype(np.uint8)
    grid = scene(labels, "EPSG:3031", (1000.0, 0.0, -80000.0, 0.0, -1000.0, -500000.0))
    write(labels, grid, tmp_path)
    found = [shapely.geometry.shape(feature["geometry"]) for feature in features(tmp_path)]
    assert sum(one.geom_type == "MultiPolygon" for one in found) > 5
    assert all(one.is_valid and all(part.exterior.is_ccw for part in shapely.get_parts(one)) for one in found)
    assert shapely.total_bounds(found)[[0, 2]].tolist() == [-180, 180]


@pytest.mark.parametrize("code", ["EPSG:4326", "EPSG:4267"])
def test_a_grid_with_pixel_centres_on_the_poles_ends_at_the_poles(code: str) -> None:
    lonlat = LonLat(CRS.from_user_input(code).to_wkt(), (0.25, 0, -180.0, 0, -0.25, 90.125), 1440)
    for y, latitudes in ((0, (89.875, 90)), (720, (-90, -89.875))):
        (geometry,) = lonlat.geometries(Outlines.of([[square(40, y, 44, y + 1)]]))
        west, south, east, north = shapely.geometry.shape(geometry).bounds
        assert (west, east) == pytest.approx((-170, -169), abs=0.01)
        assert (south, north) == pytest.approx(latitudes, abs=0.001) and -90 <= south < north <= 90


@pytest.mark.parametrize("west", [0.0, -0.125, -180.125, -190.0])
def test_a_polygon_right_round_the_globe_is_one_piece(west: float) -> None:
    """Its two ends meet; columns of more than one turn lie twice."""
    width = 1440 if west > -190 else 1500
    lonlat = LonLat(CRS.from_epsg(4326).to_wkt(), (0.25, 0, west, 0, -0.25, 60), width)
    (geometry,) = lonlat.geometries(Outlines.of([[square(0, 0, width, 200), square(100, 20, 200, 40)[::-1]]]))
    found = shapely.geometry.shape(geometry)
    assert found.is_valid and found.geom_type == "Polygon" and found.exterior.is_ccw
    assert found.bounds == (-180, 10, 180, 60)
    assert found.area == pytest.approx(360 * 50 - 25 * 5)


def test_a_batch_of_easy_and_special_outlines_equals_each_alone() -> None:
    lonlat = LonLat(CRS.from_epsg(32660).to_wkt(), (1000.0, 0.0, 560000.0, 0.0, -1000.0, 8000000.0), 300)
    easy = [square(0, 0, 9, 9), square(2, 2, 4, 4)[::-1], square(6, 6, 7, 8)[::-1]]
    special = [
        [square(20, 0, 60, 60), square(40, 20, 50, 40)[::-1]],
        [square(100, 0, 300, 3)],
        [square(0, 0, 10**7, 9)],
    ]
    objects = [easy, special[0], easy, easy, special[1], special[2], easy]
    together = lonlat.geometries(Outlines.of(objects))
    assert together == [lonlat.geometries(Outlines.of([one]))[0] for one in objects]
    assert [g and g["type"] for g in together] == ["Polygon", "MultiPolygon", *["Polygon"] * 3, None, "Polygon"]


def test_a_polygon_round_a_pole_covers_the_pole() -> None:
    lonlat = LonLat(CRS.from_epsg(3031).to_wkt(), (10000.0, 0.0, -500000.0, 0.0, -10000.0, 500000.0), 100)
    (geometry,) = lonlat.geometries(Outlines.of([[square(0, 0, 100, 100)]]))
    assert geometry is not None
    found = shapely.geometry.shape(geometry)
    assert found.is_valid
    cap = found.bounds
    assert cap[0] == -180 and cap[2] == 180 and cap[1] == -90 and -86 < cap[3] < -83
    assert found.contains(shapely.Point(10.0, -89.9)) and not found.contains(shapely.Point(10.0, -80.0))


def test_outlines_outside_the_grid_are_an_error_and_no_memory_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"passes the grid's end \(50, 41\)"):
        write(random_labels(shape=(50, 41)), Grid(50, 41), tmp_path)


@pytest.mark.parametrize("name", ["gpkg", "flatgeobuf"])
def test_a_folder_whose_name_gdal_would_take_apart_is_an_error(name: str, tmp_path: Path) -> None:
    grid = scene(random_labels(), "EPSG:32636", UTM)
    with pytest.raises(OutputError, match=r"wow!/polygons\.\w+: GDAL takes a ! for an archive's; rename the folder"):
        write(random_labels(), grid, tmp_path / "wow!", formats=(name,))
    write(random_labels(), grid, tmp_path / "wow!", formats=("geojson", "geoparquet"))


@pytest.mark.parametrize("step", [1.0, 2.5, 1 / 3, 98765.4321])
def test_geojson_text_is_what_the_json_module_writes(step: float, tmp_path: Path) -> None:
    grid = Grid(41, 50, spacing=Spacing(0.25, 0.25, "um"), step_y=step, step_x=step)
    write(random_labels(), grid, tmp_path)
    lines = (tmp_path / "polygons.geojson").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 100
    for line in lines[1:-1]:
        feature = json.loads(line.rstrip(","))
        assert json.dumps(feature, separators=(",", ":"), ensure_ascii=False) == line.rstrip(",")
        points = np.concatenate([np.array(ring) for ring in feature["geometry"]["coordinates"]])
        assert np.allclose(points, np.round(np.round(points / step) * step, 4), rtol=0, atol=1e-9)
        assert all(ring[0] == ring[-1] for ring in feature["geometry"]["coordinates"])


@pytest.mark.parametrize("length", range(1, 18))
def test_names_of_every_length_stand_in_geojson_as_the_json_module_writes_them(length: int, tmp_path: Path) -> None:
    name = "kernels of cells in rows"[:length]
    write(
        random_labels(), Grid(41, 50), tmp_path, classes=(*CLASSES[:2], ClassInfo(value=4, name=name, color=(0, 0, 9)))
    )
    lines = [line.rstrip(",") for line in (tmp_path / "polygons.geojson").read_text(encoding="utf-8").splitlines()]
    found = [json.loads(line) for line in lines[1:-1]]
    assert {feature["properties"]["classification"]["name"] for feature in found} == {"nucleus", name}
    assert [json.dumps(feature, separators=(",", ":")) for feature in found] == lines[1:-1]


def test_ids_are_those_of_the_uuid_module_and_name_class_and_first_pixel(tmp_path: Path) -> None:
    labels = random_labels()
    write(labels, Grid(*labels.shape[::-1]), tmp_path)
    found = {feature["id"] for feature in features(tmp_path)}
    places = [(int(labels[y, x]), y, x) for y, x in np.ndindex(labels.shape) if labels[y, x] in (1, 4)]
    possible = {str(uuid.uuid5(uuid.NAMESPACE_OID, f"k/{label}/{y}/{x}")) for label, y, x in places}
    assert len(found) == len(features(tmp_path)) and found <= possible


@pytest.mark.parametrize("mirrored", [False, True])
def test_well_known_binary_is_shapelys(mirrored: bool) -> None:
    square = np.array([[0, 0], [9, 0], [9, 9], [0, 9]])
    hole = np.array([[2, 2], [2, 4], [4, 4], [4, 2]])
    outlines = Outlines.of([[square, hole], [square + 20], [square + 40, hole + 40, hole + 43]])
    made = well_known_binary(outlines, (1.0, 0.0, 5.0, 0.0, -2.0 if mirrored else 2.0, 7.0))
    for binary, holes in zip(made, (1, 0, 2), strict=True):
        polygon = shapely.from_wkb(binary)
        assert shapely.to_wkb(polygon, byte_order=1) == binary
        assert len(polygon.interiors) == holes and polygon.exterior.is_ccw and polygon.is_valid
        assert polygon.area == 2 * (81 - 4 * holes)
