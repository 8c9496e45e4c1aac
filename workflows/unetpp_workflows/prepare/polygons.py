"""Draws polygons on an image's training grid; knows GeoJSON and QuPath's, plain or gzipped, GeoPackage and GeoParquet.

A pixel belongs to a polygon that its centre lies in. Larger polygons are drawn first, so that what lies inside another
stays visible; polygons that do not count are drawn last.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.antimeridian import continued, dense, ends, nearest, torn, turn, turns
from unetpp.errors import DataError
from unetpp.geometry import Box, to_pixels
from unetpp.io.reader import first_line
from unetpp.levels import NO_DATA
from unetpp.region import GEOPARQUET, read_geoparquet, shape_layers
from unetpp_workflows.prepare.faults import Fault, warning
from unetpp_workflows.prepare.legend import Indices, Legend
from unetpp_workflows.prepare.masks import Objects, crs_label

if TYPE_CHECKING:
    from unetpp.io.base import Raster
    from unetpp.io.resample import OutputGrid
    from unetpp_workflows.prepare.dataset import DataSection

_GEOJSON = (".geojson", ".json", ".geojson.gz", ".json.gz")
_LONLAT = "OGC:CRS84"


@dataclass(frozen=True)
class Shapes:
    """Polygons of one file.

    Attributes:
        geometry: (n,) shapely geometries.
        names: (n,) class names, "" where the file gives none.
        crs: of the coordinates; None means level-0 pixels, x to the right and y down.
        skipped: features that are not polygons.
        features: all that the file holds, those without geometry too.
    """

    geometry: NDArray[Any]
    names: list[str]
    crs: str | None
    skipped: int
    features: int


def holds_polygons(path: str) -> bool:
    """Say whether labels of this name are polygons, and no raster."""
    return path.lower().endswith((*_GEOJSON, *GEOPARQUET, ".gpkg", ".fgb", ".shp"))


class PolygonReader:
    """Class indices and object numbers of boxes of the training grid, from polygons.

    Raises:
        DataError: the file does not read, has no polygons, or none lies on the image. A file without any feature is
            all background where there is such a class.
    """

    def __init__(self, path: str, legend: Legend, data: DataSection, raster: Raster, grid: OutputGrid) -> None:
        import shapely

        shapes = read_shapes(Path(path), data.property, any_name=legend.only is not None, placed=raster.crs is not None)
        self._legend, self._grid = legend, grid
        self._notes: list[Fault] = []
        inside = legend.background if data.outside == "background" else None
        self._outside = NO_DATA if inside is None else inside
        if len(shapes.geometry):
            geometry = self._placed(path, shapes, raster)
        elif shapes.features or self._outside == NO_DATA:
            raise DataError(f"{path} holds no polygons; give the right file, or remove the image")
        else:
            # What an annotator saves of an image that has nothing to outline.
            self._notes.append(warning("labels hold no polygon: all of the image is background"))
            geometry = shapes.geometry
        indices = self._classes(shapes.names)
        # Larger first; what does not count last. Equal areas keep the file's order.
        order = np.lexsort((np.arange(len(geometry)), -shapely.area(geometry), indices == NO_DATA))
        self._geometry, self._indices, self._numbers = geometry[order], indices[order], order + 1
        self._tree = shapely.STRtree(self._geometry)

    def _placed(self, path: str, shapes: Shapes, raster: Raster) -> NDArray[Any]:
        """Return the geometries in pixels of the grid, and note what is odd about them."""
        import shapely

        if shapes.skipped:
            self._notes.append(warning("features that are no polygons are left out", detail=f"{shapes.skipped}"))
        geometry = _on_grid(shapes, raster, self._grid, self._notes)
        invalid = int((~shapely.is_valid(geometry)).sum())
        if invalid:
            self._notes.append(
                warning("polygons cross themselves and are drawn by the even-odd rule", detail=f"{invalid}")
            )
        self._check_place(path, geometry, raster)
        return geometry

    def _classes(self, names: list[str]) -> NDArray[np.int64]:
        legend, unlisted = self._legend, Counter[str]()
        indices = []
        for name in names:
            if name in legend.names:
                indices.append(legend.names[name])
            elif not name and legend.only is not None:
                indices.append(legend.only)
            else:
                unlisted[name or "without a class"] += 1
                indices.append(NO_DATA)
        if unlisted:
            text = ", ".join(f"{name!r} ({count})" for name, count in unlisted.most_common(5))
            self._notes.append(warning("polygon classes outside the legend do not count", detail=text))
        return np.array(indices, np.int64)

    def _check_place(self, path: str, geometry: NDArray[Any], raster: Raster) -> None:
        import shapely

        x0, y0, x1, y1 = shapely.bounds(geometry).T
        height, width = self._grid.height, self._grid.width
        on_image = (x1 > 0) & (y1 > 0) & (x0 < width) & (y0 < height)
        if not on_image.any():
            raise DataError(f"no polygon of {path} lies on the image {raster.uri}; check that they belong together")
        # Half a pixel outside is the rounding of whoever drew it.
        partly = on_image & ((x0 < -0.5) | (y0 < -0.5) | (x1 > width + 0.5) | (y1 > height + 0.5))
        if not on_image.all():
            self._notes.append(warning("polygons lie outside the image", detail=f"{int((~on_image).sum())}"))
        if partly.any():
            self._notes.append(
                warning("polygons reach past the image's edge and are cut there", detail=f"{int(partly.sum())}")
            )

    def read(self, box: Box) -> tuple[Indices, Objects | None]:
        """Return class indices (h, w) and, of instances, object numbers (h, w): 1 for the file's first polygon."""
        import shapely
        from rasterio.features import rasterize
        from rasterio.transform import Affine

        labels = np.full(box.shape, self._outside, np.uint8)
        objects = np.zeros(box.shape, np.int32) if self._legend.instances else None
        hits = np.sort(self._tree.query(shapely.box(box.x0, box.y0, box.x1, box.y1)))
        if len(hits):
            # Drawn with positions, from 1, in one pass; each pixel keeps the last polygon's.
            place = Affine.translation(box.x0, box.y0)
            shapes = ((self._geometry[hit], number + 1) for number, hit in enumerate(hits))
            drawn = rasterize(shapes, out_shape=box.shape, transform=place, fill=0, dtype="int32")
            on = drawn > 0
            last = hits[drawn[on] - 1]
            labels[on] = self._indices[last]
            if objects is not None:
                objects[on] = np.where(self._indices[last] == NO_DATA, 0, self._numbers[last])
        return labels, objects

    def faults(self) -> list[Fault]:
        return list(self._notes)

    def close(self) -> None:
        """Nothing is held open."""


def read_shapes(path: Path, name_property: str, *, any_name: bool, placed: bool) -> Shapes:
    """Read polygons and their class names.

    Args:
        name_property: with the class name; empty means QuPath's classification.
        any_name: features need no name, since there is one class.
        placed: the image has a CRS, so GeoJSON without one is longitude and latitude (RFC 7946), not pixels.

    Raises:
        DataError: the file does not read, or a feature lacks the property.
    """
    import shapely
    from shapely.errors import ShapelyError

    try:
        if path.name.lower().endswith(_GEOJSON):
            geometry, properties, crs = _read_geojson(path, placed)
        else:
            read = _read_geoparquet if path.suffix.lower() in GEOPARQUET else _read_layers
            geometry, properties, crs = read(path)
            if crs is None and placed:
                raise DataError(f"{path} states no CRS, but its image has one; write the CRS into it")
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
            ShapelyError) as error:  # fmt: skip
        raise DataError(f"{path} does not read as polygons ({first_line(error)}); export it again") from None

    geometry = _without_lines(geometry)
    polygon = np.isin(shapely.get_type_id(geometry), (3, 6)) & ~shapely.is_empty(geometry)
    kept = np.flatnonzero(polygon)
    names = [_class_name(properties[i], name_property, any_name, path) for i in kept]
    missing = int((shapely.get_type_id(geometry) >= 0).sum()) - len(kept)
    return Shapes(geometry[kept], names, crs, missing, len(geometry))


def _without_lines(geometry: NDArray[Any]) -> NDArray[Any]:
    """Return collections as their polygons: repairing a polygon leaves the lines and points that it shrank to in it."""
    import shapely

    found = geometry.copy()
    for index in np.flatnonzero(shapely.get_type_id(geometry) == shapely.GeometryType.GEOMETRYCOLLECTION):
        parts = shapely.get_parts(shapely.get_parts(geometry[index]))
        found[index] = shapely.multipolygons(parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON])
    return found


def _class_name(properties: dict[str, Any], name_property: str, any_name: bool, path: Path) -> str:
    if name_property:
        if name_property not in properties:
            raise DataError(f"{path}: no property {name_property!r} in a polygon; it has {', '.join(properties)}")
        value = properties[name_property]
        return _text(value.get("name") if isinstance(value, dict) else value)
    found = properties.get("classification")
    if isinstance(found, str) and found.startswith("{"):
        found = json.loads(found)
    if isinstance(found, dict):
        # A derived class, such as "Tumor: Positive", is written as the list of its parts.
        return str(found.get("name") or ": ".join(map(str, found.get("names", ()))))
    if any_name or "objectType" in properties:
        return ""
    raise DataError(
        f"{path}: several classes, and no property is named; set property to one of {', '.join(properties)}"
    )


def _text(value: Any) -> str:
    """Return a property as a class name: 2 where a column of whole numbers with gaps reads as 2.0, "" for a gap."""
    if value is None or value != value:
        return ""
    whole = isinstance(value, float | np.floating) and value.is_integer()
    return str(int(value) if whole else value)


def _read_geojson(path: Path, placed: bool) -> tuple[NDArray[Any], list[dict[str, Any]], str | None]:
    import shapely

    raw = path.read_bytes()
    content = json.loads(gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw)
    features = content.get("features", [content]) if isinstance(content, dict) else content
    shapes = [None if f.get("geometry") is None else shapely.geometry.shape(f["geometry"]) for f in features]
    properties = [f.get("properties") or {} for f in features]
    qupath = any("objectType" in values for values in properties)
    crs: str | None = _LONLAT if placed and not qupath else None
    if isinstance(content, dict) and content.get("crs") and crs:
        # The member of GeoJSON 2008 that GDAL still writes for other systems than WGS 84.
        crs = str(content["crs"]["properties"]["name"])
    return np.array(shapes, dtype=object), properties, crs


def _read_layers(path: Path) -> tuple[NDArray[Any], list[dict[str, Any]], str | None]:
    import shapely
    from pyogrio.raw import read

    layers = shape_layers(path)
    if len(layers) > 1:
        raise DataError(f"{path} holds the layers {', '.join(layers)}; save the labels as one layer, with a class each")
    meta, _, wkb, columns = read(path, layer=layers[0] if layers else None)
    fields = [str(name) for name in meta["fields"]]
    return shapely.from_wkb(wkb), _records(fields, columns, len(wkb)), meta["crs"]


def _read_geoparquet(path: Path) -> tuple[NDArray[Any], list[dict[str, Any]], str | None]:
    import shapely

    table, name, crs = read_geoparquet(path)
    fields = [field for field in table.column_names if field != name]
    columns = [table.column(field).to_pylist() for field in fields]
    wkb = table.column(name).to_pylist()
    return shapely.from_wkb(wkb), _records(fields, columns, len(wkb)), crs


def _records(fields: list[str], columns: Any, count: int) -> list[dict[str, Any]]:
    return [{field: column[i] for field, column in zip(fields, columns, strict=True)} for i in range(count)]


def _on_grid(shapes: Shapes, raster: Raster, grid: OutputGrid, notes: list[Fault]) -> NDArray[Any]:
    """Return the geometries in pixels of the training grid; raises `DataError` where they cannot be placed."""
    import pyproj
    import shapely

    step = np.array([grid.step_x, grid.step_y])
    if shapes.crs is None:
        return np.asarray(shapely.transform(shapes.geometry, lambda xy: xy / step))
    if raster.crs is None or raster.transform is None:
        raise DataError(f"polygons are in {shapes.crs[:60]}, but {raster.uri} has no CRS; give them in its pixels")
    theirs, ours = pyproj.CRS.from_user_input(shapes.crs), pyproj.CRS.from_user_input(raster.crs)
    move = pyproj.Transformer.from_crs(theirs, ours, always_xy=True)
    if not theirs.equals(ours, ignore_axis_order=True):
        what = f"polygons are in {crs_label(theirs)}, the image in {crs_label(ours)}: reprojected"
        notes.append(warning(what))
    transform, top = raster.transform, raster.levels[0]

    def project(xy: NDArray[Any]) -> NDArray[Any]:
        return np.stack(move.transform(xy[:, 0], xy[:, 1]), 1)

    def place(xy: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.stack(to_pixels(transform, xy[:, 0], xy[:, 1]), 1) / step)

    geometry = shapely.transform(shapes.geometry, project)
    length = turn(raster.crs)
    if length is not None:
        for index in np.flatnonzero(_spans(geometry) > length / 2):
            geometry[index] = _in_one_piece(shapes.geometry[index], project, length)
        geometry = _turned(geometry, *ends(transform, top.width, top.height), length)
    return np.asarray(shapely.transform(geometry, place))


def _spans(geometry: NDArray[Any]) -> NDArray[Any]:
    import shapely

    bounds = shapely.bounds(geometry)
    return np.asarray(bounds[:, 2] - bounds[:, 0])


def _in_one_piece(shape: Any, project: Callable[[NDArray[Any]], NDArray[Any]], length: float) -> Any:
    """Project a shape whose rings a projection may have torn where the globe ends in it."""
    import shapely

    def ring(line: Any) -> NDArray[Any]:
        return continued(project(dense(shapely.get_coordinates(line)[:-1])), length)

    found = []
    for part in shapely.get_parts(shape):
        plain = [project(shapely.get_coordinates(line)[:-1]) for line in (part.exterior, *part.interiors)]
        if any(torn(points, length) for points in plain):
            shell, *holes = (ring(line) for line in (part.exterior, *part.interiors))
            found.append(shapely.Polygon(shell, [nearest(hole, shell, length) for hole in holes]))
        else:
            found.append(shapely.Polygon(plain[0], plain[1:]))
    return found[0] if len(found) == 1 else shapely.MultiPolygon(found)


def _turned(geometry: NDArray[Any], begin: float, end: float, length: float) -> NDArray[Any]:
    """Return geometries with their parts in every turn of the globe in which they meet begin..end, or as they are."""
    import shapely
    from shapely.affinity import translate

    low, _, high, _ = shapely.bounds(geometry).T
    settled = (low >= begin) & (high <= end) & (end - begin <= length)
    found = geometry.copy()
    for index in np.flatnonzero(np.isfinite(low + high) & ~settled):
        parts = []
        for part in shapely.get_parts(geometry[index]):
            west, _, east, _ = part.bounds
            numbers = turns(west, east, begin, end, length) or (0,)
            parts += [translate(part, number * length) if number else part for number in numbers]
        found[index] = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    return found
