"""The part of an image that is to be segmented: rectangles and polygons on its output grid; knows no model, no pixels.

A region is written as

    x0,y0,x1,y1              level-0 pixels of the image, x to the right and y down
    x0,y0,x1,y1@crs          coordinates of the image's own CRS
    x0,y0,x1,y1@EPSG:4326    of any CRS, x before y (longitude before latitude)
    FILE                     polygons of a vector file: GeoJSON, GeoPackage, FlatGeobuf, GeoParquet, shapefile
    FILE@px                  the same in level-0 pixels whatever the file says

A file's own CRS counts. Without one its coordinates are level-0 pixels, but a GeoJSON for an image with a CRS is in
WGS 84, as RFC 7946 says; QuPath's GeoJSON of a slide is in level-0 pixels. Where the image's CRS is in degrees or a
Mercator, a place is the same a whole turn of the globe further: an image at 179 to 181 has polygons at -180 to -179.

A pixel is inside where its centre is in any of the polygons (even-odd rule of its rings, so that holes are holes), on
an edge where the polygon lies to its right or below. Only boxes are ever drawn, from absolute coordinates: shards and
tiles cannot change a pixel.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.antimeridian import continued, dense, ends, nearest, turn, turns
from unetpp.errors import DataError, RegionError
from unetpp.geometry import Box
from unetpp.io.remote import local_path
from unetpp.tissue import ValidityMask

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid

Ring = NDArray[np.float64]
Mask = NDArray[np.bool_]
GEOPARQUET = (".parquet", ".geoparquet")
_WGS84 = "OGC:CRS84"
_DIGITS = 6
"""Vertices are rounded to 1e-6 px, so that projecting them on another machine gives the same region."""


@dataclass(frozen=True, slots=True)
class RegionText:
    """A region as it was written, taken apart: four numbers or a file, and the name of a CRS, "" for none given."""

    numbers: tuple[float, float, float, float] | None
    file: Path | None
    crs: str


@dataclass(frozen=True)
class Region:
    """Polygons on an output grid; each is its rings, (n, 2) x and y in output-grid pixels, the first not repeated."""

    polygons: tuple[tuple[Ring, ...], ...]

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        """(n, 4) x0, y0, x1, y1 of every polygon."""
        return np.array([[*p[0].min(axis=0), *p[0].max(axis=0)] for p in self.polygons])

    @property
    def box(self) -> Box:
        """The smallest box of output-grid pixels around all polygons; it may reach past the image."""
        (x0, y0), (x1, y1) = np.floor(self._bounds[:, :2].min(0)), np.ceil(self._bounds[:, 2:].max(0))
        return Box(int(y0), int(x0), int(y1), int(x1))

    def crop(self, box: Box) -> Mask:
        """Return (h, w) bool, True inside."""
        out = np.zeros(box.shape, bool)
        for index in self._near(box):
            out |= _drawn(self.polygons[index], box)
        return out

    def any(self, box: Box) -> bool:
        """Tell whether `crop(box)` has a True pixel."""
        return bool(len(self._near(box))) and bool(self.crop(box).any())

    def _near(self, box: Box) -> NDArray[np.intp]:
        x0, y0, x1, y1 = self._bounds.T
        return np.flatnonzero((x0 < box.x1) & (x1 > box.x0) & (y0 < box.y1) & (y1 > box.y0))

    def to_json(self) -> list[list[list[list[float]]]]:
        return [[ring.tolist() for ring in polygon] for polygon in self.polygons]

    @classmethod
    def from_json(cls, values: Any) -> Region:
        """Build from `to_json`'s values; raises `ValueError` or `TypeError` for others."""
        polygons = tuple(tuple(np.asarray(ring, float).reshape(-1, 2) for ring in polygon) for polygon in values)
        if not polygons or not all(polygons):
            raise ValueError("a region has no polygon")
        return cls(polygons)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the polygons."""
        return hashlib.sha256(json.dumps(self.to_json(), separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Coverage:
    """Where an image is to be segmented: where the mask and the region both say so; None of one is everywhere."""

    mask: ValidityMask | None = None
    region: Region | None = None

    def crop(self, box: Box) -> Mask:
        """Return (h, w) bool of a box of the output grid."""
        out = np.ones(box.shape, bool)
        for part in (self.mask, self.region):
            if part is not None:
                out &= part.crop(box)
        return out

    def any(self, box: Box) -> bool:
        """Tell whether `crop(box)` has a True pixel."""
        parts = [part for part in (self.mask, self.region) if part is not None]
        return all(part.any(box) for part in parts) and (len(parts) < 2 or bool(self.crop(box).any()))


def parse_region(text: str) -> RegionText:
    """Take a region apart; raises `RegionError` where it is neither four numbers in order nor a file."""
    place, _, crs = text.rpartition("@") if "@" in text else (text, "", "")
    parts = place.split(",")
    if len(parts) == 4:
        try:
            x0, y0, x1, y1 = (float(part) for part in parts)
        except ValueError:
            pass
        else:
            if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
                raise RegionError(f"region {text!r} is empty; write it as x0,y0,x1,y1 with x0 < x1 and y0 < y1")
            return RegionText((x0, y0, x1, y1), None, crs)
    for name, rest in ((text, ""), (place, crs)):
        if local_path(name).is_file():
            return RegionText(None, local_path(name), rest)
    raise RegionError(f"region {text!r} is neither x0,y0,x1,y1 nor a file that exists; see `unetpp segment --help`")


def load_region(text: str, grid: OutputGrid) -> Region:
    """Return a region on an image's output grid.

    Raises:
        RegionError: it does not read, names a CRS that the image or nobody has, or meets no part of the image.
    """
    written = parse_region(text)
    if written.numbers is not None:
        x0, y0, x1, y1 = written.numbers
        rings: Iterable[list[Ring]] = [[np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])]]
        crs = written.crs
    else:
        assert written.file is not None
        rings, own = _read_file(written.file, scene=grid.crs is not None)
        crs = written.crs or own
    try:
        polygons = tuple(copy for polygon in rings for copy in _placed(polygon, crs, grid, text))
    except RegionError:
        raise
    except (ValueError, TypeError) as error:
        raise RegionError(f"region {text!r} has coordinates that cannot be placed ({error})") from None
    image = Box(0, 0, grid.height, grid.width)
    region = Region(polygons)
    if not polygons or not len(region._near(image)):
        raise RegionError(f"region {text!r} meets no part of the image; check its coordinates and their CRS")
    return region


def _placed(polygon: Sequence[Ring], crs: str, grid: OutputGrid, text: str) -> list[tuple[Ring, ...]]:
    """Return a polygon in output-grid pixels: once, or as often as an image right round the globe shows it."""
    if crs in ("", "px"):
        return [tuple(_rounded(ring / np.array([grid.step_x, grid.step_y])) for ring in polygon)]
    if grid.crs is None or grid.transform is None:
        raise RegionError(f"region {text!r} is in a CRS, but the image has none; give level-0 pixels")
    if crs != "crs":
        polygon = [_projected(dense(ring), crs, grid.crs, text) for ring in polygon]
    if not all(np.isfinite(ring).all() for ring in polygon):
        raise RegionError(f"region {text!r} lies partly outside the domain of the image's CRS; make it smaller")
    a, b, c, d, e, f = grid.transform
    back = np.linalg.inv(np.array([[a, b], [d, e]])).T
    origin = np.array([c, f])
    copies = _turned(polygon, turn(grid.crs), grid)
    return [tuple(_rounded((ring - origin) @ back) for ring in copy) for copy in copies]


def _turned(polygon: Sequence[Ring], length: float | None, grid: OutputGrid) -> list[Sequence[Ring]]:
    """Return a polygon of the image's CRS in every turn of the globe in which it meets the image, or else as it is."""
    if length is None:
        return [polygon]
    shell, *holes = (continued(ring, length) for ring in polygon)
    whole = [shell, *(nearest(hole, shell, length) for hole in holes)]
    assert grid.transform is not None
    west, east = ends(grid.transform, grid.width, grid.height)
    found = turns(shell[:, 0].min(), shell[:, 0].max(), west, east, length)
    return [[ring + np.array([number * length, 0]) for ring in whole] for number in found or (0,)]


def _rounded(ring: Ring) -> Ring:
    return np.asarray(np.round(ring, _DIGITS))


def _projected(ring: Ring, crs: str, target: str, text: str) -> Ring:
    from pyproj import CRS, Transformer
    from pyproj.exceptions import CRSError, ProjError

    try:
        source = CRS.from_user_input(crs)
    except CRSError:
        raise RegionError(f"region {text!r}: {crs!r} is no CRS; write px, crs or a code like EPSG:4326") from None
    try:
        transformer = Transformer.from_crs(source, CRS.from_wkt(target), always_xy=True)
    except ProjError:  # as of a CRS of a building site
        raise RegionError(
            f"region {text!r}: {source.name!r} has no known place in the image's CRS; give level-0 pixels or @crs"
        ) from None
    x, y = transformer.transform(ring[:, 0], ring[:, 1])
    return np.stack([x, y], axis=1)


def shape_layers(path: Path) -> list[str]:
    """Return the layers of a vector file; tables without shapes, such as the styles that QGIS saves, do not count.

    Raises: what pyogrio raises for a file that GDAL does not read.
    """
    from pyogrio import list_layers

    return [str(name) for name, kind in list_layers(path) if kind is not None]


def read_geoparquet(path: Path) -> tuple[Any, str, str | None]:
    """Return a GeoParquet file's table, the name of its column of WKB, and its CRS: None where it is stated as unknown.

    Raises:
        DataError: it is no GeoParquet, or holds its shapes in another way. Also what pyarrow raises, and KeyError.
    """
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    geo = json.loads((table.schema.metadata or {}).get(b"geo", b"{}"))
    if not geo:
        raise DataError(f"{path} is Parquet without the metadata of GeoParquet; export it as GeoParquet")
    name = geo["primary_column"]
    column = geo["columns"][name]
    if column.get("encoding", "WKB") != "WKB":
        raise DataError(f"{path} holds geometry as {column['encoding']}; export it as WKB")
    crs = column.get("crs", _WGS84)
    return table, name, json.dumps(crs) if isinstance(crs, dict) else crs


def _read_file(path: Path, *, scene: bool) -> tuple[list[list[Ring]], str]:
    """Return the polygons of a vector file, and their CRS: "" for pixels."""
    import shapely
    from pyogrio.errors import DataLayerError, DataSourceError
    from pyogrio.raw import read

    facts: dict[str, Any] = {}
    try:
        if path.suffix.lower() in GEOPARQUET:
            table, name, facts["crs"] = read_geoparquet(path)
            shapes = table.column(name).to_pylist()
        else:
            content = _collection(path)
            layers = shape_layers(path) if content is None else []
            if len(layers) > 1:
                raise RegionError(f"region {path} holds the layers {', '.join(layers)}; save one of them as a file")
            facts, _, shapes, _ = read(content or path, layer=layers[0] if layers else None, columns=[])
        found = shapely.from_wkb(shapes)
    except RegionError:
        raise
    except DataError as error:
        raise RegionError(f"region {error}") from None
    except (DataSourceError, DataLayerError, shapely.GEOSException, ValueError, KeyError, OSError) as error:
        raise RegionError(f"region {path} does not read as a vector file ({str(error).splitlines()[0]})") from None
    polygons = [[_ring(part.exterior), *map(_ring, part.interiors)] for part in _polygons(found)]
    if not polygons:
        raise RegionError(f"region {path} holds no polygon; draw the parts that are to be segmented as polygons")
    crs = str(facts["crs"] or "")
    if facts.get("driver", "") == "GeoJSON" or path.suffix.lower() in (".geojson", ".json"):
        crs = crs if _names_crs(path) else _WGS84 if scene else ""
    return polygons, crs


def _polygons(shapes: Sequence[Any]) -> Iterator[Any]:
    for shape in shapes:
        if shape is not None and shape.geom_type == "Polygon" and not shape.is_empty:
            yield shape
        elif shape is not None and hasattr(shape, "geoms"):
            yield from _polygons(list(shape.geoms))


def _ring(line: Any) -> Ring:
    return np.asarray(line.coords, float)[:-1, :2]


def _collection(path: Path) -> bytes | None:
    """Return a bare list of features, as QuPath can save it, as the collection that GDAL reads, else None."""
    if path.suffix.lower() not in (".geojson", ".json"):
        return None
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8).strip()
    return b'{"type": "FeatureCollection", "features": ' + content + b"}" if content.startswith(b"[") else None


def _names_crs(path: Path) -> bool:
    try:
        # As GDAL reads it: behind a byte order mark, and whatever the encoding of names is.
        document = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except ValueError:
        return False  # a feature per line: none of them names a CRS
    return isinstance(document, dict) and bool(document.get("crs"))


def _drawn(polygon: Sequence[Ring], box: Box) -> Mask:
    """Return (h, w) which pixels of a box have their centre inside one polygon."""
    toggles = np.zeros((box.height, box.width + 1), bool)
    for ring in polygon:
        start, end = ring, np.roll(ring, -1, axis=0)
        low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        first = np.clip(np.ceil(low - 0.5), box.y0, box.y1).astype(np.int64)
        count = np.maximum(np.clip(np.ceil(high - 0.5), box.y0, box.y1).astype(np.int64) - first, 0)
        edge = np.repeat(np.arange(len(ring)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
        x = start[edge, 0] + (row + 0.5 - start[edge, 1]) * slope
        column = np.clip(np.ceil(x - 0.5), box.x0, box.x1).astype(np.int64)
        np.logical_xor.at(toggles, (row - box.y0, column - box.x0), True)
    return np.logical_xor.accumulate(toggles, axis=1)[:, :-1]
