"""Write outlined objects as the files that other programs open; knows formats and classes, not how objects are found.

    image without a CRS   polygons.geojson   for QuPath: level-0 pixels, detections with class, colour and area
    image with a CRS      polygons.gpkg      GeoPackage in the image's CRS, layer "polygons"
                          polygons.geojson   RFC 7946, WGS 84

Objects are QuPath detections, not annotations: QuPath keeps hundreds of thousands of them and measures them in tables,
while every annotation is an editable object of its interface. One QuPath command turns chosen ones into annotations.

Equal objects give equal bytes. Files grow feature by feature, and a GeoPackage batch by batch.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from unetpp.durable import output_errors, sync
from unetpp.errors import OutputError
from unetpp.finalize.areas import Measure, measure
from unetpp.finalize.lonlat import LonLat
from unetpp.finalize.outlines import Outlines, batches
from unetpp.finalize.polygons import PixelObject
from unetpp.geometry import Transform

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid
    from unetpp.package import ClassInfo

GEOJSON, GEOPACKAGE, LAYER = "polygons.geojson", "polygons.gpkg", "polygons"
_BATCH_FEATURES, _BATCH_BYTES = 4096, 2**23
_EPOCH = "1970-01-01T00:00:00.000Z"


def write_vectors(
    objects: Iterable[PixelObject], *, grid: OutputGrid, classes: Sequence[ClassInfo], key: str, folder: Path
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Write the vector files of one image into `folder`, replacing what is there.

    Args:
        key: of the job; object ids derive from it, the class and the object's first pixel.

    Returns:
        Objects per class value, and the names of the files.

    Raises:
        OutputError: a file cannot be written.
    """
    names = {info.value: info for info in classes}
    counts = Counter({info.value: 0 for info in classes if not info.background})
    how = measure(grid)
    with output_errors(folder), ExitStack() as stack:
        sinks = {name: stack.enter_context(sink) for name, sink in _sinks(grid, how, folder)}
        for batch, outlines in batches(objects):
            counts.update(found.label for found in batch)
            areas = how.objects(outlines, np.array([found.pixels for found in batch])).tolist()
            rows = [
                _Row(_identity(key, found), names[found.label], found.pixels, float(f"{area:.12g}"))
                for found, area in zip(batch, areas, strict=True)
            ]
            for sink in sinks.values():
                sink.add(rows, outlines)
    for name in sinks:
        sync(folder / name)
    return dict(counts), tuple(sinks)


def _identity(key: str, found: PixelObject) -> str:
    y, x = found.first
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{key}/{found.label}/{y}/{x}"))


class _Row(NamedTuple):
    """All of an object but its outline; `area` is in the measure's unit."""

    identity: str
    info: ClassInfo
    pixels: int
    area: float


class _Sink(Protocol):
    def add(self, rows: Sequence[_Row], outlines: Outlines) -> None: ...
    def __enter__(self) -> _Sink: ...
    def __exit__(self, *error: object) -> None: ...


def _sinks(grid: OutputGrid, how: Measure, folder: Path) -> Iterator[tuple[str, _Sink]]:
    if grid.crs is None or grid.transform is None:
        yield GEOJSON, _QuPath(folder / GEOJSON, grid)
        return
    yield GEOPACKAGE, _GeoPackage(folder / GEOPACKAGE, grid.crs, grid.transform, how)
    try:
        lonlat = LonLat(grid.crs, grid.transform, grid.width)
    except ValueError:
        return  # A local CRS has no place on the globe; the GeoPackage says all there is.
    yield GEOJSON, _Rfc7946(folder / GEOJSON, lonlat, how)


class _FeatureCollection:
    """A GeoJSON file that is written one feature per line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str]
        self._separator = "\n"

    def __enter__(self) -> Any:
        self._file = self._path.open("w", encoding="utf-8", newline="\n")
        self._file.write('{"type":"FeatureCollection","features":[')
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._file.write("\n]}\n")
        finally:
            self._file.close()

    def _write(self, identity: str, geometry: dict[str, Any] | None, properties: dict[str, Any]) -> None:
        feature = {"type": "Feature", "id": identity, "geometry": geometry, "properties": properties}
        text = json.dumps(feature, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        self._file.write(self._separator + text)
        self._separator = ",\n"


class _QuPath(_FeatureCollection):
    def __init__(self, path: Path, grid: OutputGrid) -> None:
        super().__init__(path)
        self._step = grid.step_x, grid.step_y
        self._square_um = grid.spacing.y * grid.spacing.x if grid.spacing and grid.spacing.unit == "um" else None

    def add(self, rows: Sequence[_Row], outlines: Outlines) -> None:
        step_x, step_y = self._step
        # Clockwise on screen is counter-clockwise in x and y as numbers, as RFC 7946 wants shells.
        level0: Any = outlines.vertices if self._step == (1, 1) else outlines.vertices * np.asarray(self._step)
        for row, rings in zip(rows, _nested(np.round(level0, 4).tolist(), outlines), strict=True):
            measurements = {"Area px^2": row.pixels * step_x * step_y}
            if self._square_um is not None:
                measurements["Area µm^2"] = row.pixels * self._square_um
            properties = {
                "objectType": "detection",
                "classification": {"name": row.info.name, "color": list(row.info.color)},
                "measurements": {name: float(f"{value:.12g}") for name, value in measurements.items()},
            }
            self._write(row.identity, {"type": "Polygon", "coordinates": rings}, properties)


class _Rfc7946(_FeatureCollection):
    def __init__(self, path: Path, lonlat: LonLat, how: Measure) -> None:
        super().__init__(path)
        self._lonlat = lonlat
        self._area = f"area_{how.unit}"

    def add(self, rows: Sequence[_Row], outlines: Outlines) -> None:
        for row, geometry in zip(rows, self._lonlat.geometries(outlines), strict=True):
            properties = {"class": row.info.value, "name": row.info.name, self._area: row.area}
            self._write(row.identity, geometry, properties)


class _GeoPackage:
    """A GeoPackage that is appended to in batches of bounded size."""

    def __init__(self, path: Path, crs: str, transform: Transform, how: Measure) -> None:
        self._path, self._crs, self._transform = path, crs, transform
        self._fields = ["id", "class", "name", f"area_{how.unit}"]
        self._rows: list[tuple[bytes, str, int, str, float]] = []
        self._bytes = 0
        self._count = 0

    def __enter__(self) -> _GeoPackage:
        self._path.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            if self._rows or not self._count:
                self._flush()
            self._check()

    def add(self, rows: Sequence[_Row], outlines: Outlines) -> None:
        for row, geometry in zip(rows, well_known_binary(outlines, self._transform), strict=True):
            self._rows.append((geometry, row.identity, row.info.value, row.info.name, row.area))
            self._bytes += len(geometry)
        if len(self._rows) >= _BATCH_FEATURES or self._bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
        from pyogrio.raw import write

        columns = [[row[k] for row in self._rows] for k in range(5)]
        kinds: list[Any] = [object, object, np.int32, object, np.float64]
        geometry, *fields = (np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))
        try:
            with _gdal_options():
                write(
                    self._path,
                    geometry=geometry,
                    field_data=fields,
                    fields=self._fields,
                    layer=LAYER,
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=self._crs,
                    append=self._count > 0,
                )
        except (DataSourceError, DataLayerError, FeatureError) as error:
            raise self._failure(str(error).strip().splitlines()[0]) from error
        self._count += len(self._rows)
        self._rows, self._bytes = [], 0

    def _check(self) -> None:
        # GDAL reports no error when a full disk keeps SQLite from writing the spatial index or the last pages.
        try:
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as base:
                state = base.execute("PRAGMA quick_check(1)").fetchone()[0]
                tables = (LAYER, f"rtree_{LAYER}_geom")
                counts = [base.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]  # noqa: S608
        except sqlite3.Error as error:
            raise self._failure(str(error)) from error
        if state != "ok" or counts != [self._count] * 2:
            raise self._failure(f"objects and index hold {counts} of {self._count} rows, SQLite says {state!r}")

    def _failure(self, why: str) -> OutputError:
        return OutputError(f"cannot write {self._path}: {why}; check the disk and run the same command again")


def _nested(points: list[list[float]], outlines: Outlines) -> list[list[list[list[float]]]]:
    """Return GeoJSON polygon coordinates per object."""
    found: list[list[list[list[float]]]] = [[] for _ in range(outlines.count)]
    bounds = outlines.starts.tolist()
    for k, owner in enumerate(outlines.owner.tolist()):
        found[owner].append(points[bounds[k] : bounds[k + 1]])
    return found


def well_known_binary(outlines: Outlines, transform: Transform) -> list[bytes]:
    """Return each object as little-endian WKB polygon in the transform's CRS, shells counter-clockwise."""
    a, b, c, d, e, f = transform
    x, y = outlines.vertices[:, 0], outlines.vertices[:, 1]
    points = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1).astype("<f8")
    mirrored = a * e - b * d < 0
    rings: list[list[bytes]] = [[] for _ in range(outlines.count)]
    bounds = outlines.starts.tolist()
    for k, owner in enumerate(outlines.owner.tolist()):
        ring = points[bounds[k] : bounds[k + 1]]
        rings[owner].append(struct.pack("<I", len(ring)) + (ring[::-1] if mirrored else ring).tobytes())
    return [struct.pack("<BII", 1, 3, len(parts)) + b"".join(parts) for parts in rings]


@contextmanager
def _gdal_options() -> Iterator[None]:
    """Set how GDAL writes GeoPackages, for this block.

    The time of day stays out of the file: equal results have equal bytes, times are in records. SQLite need not sync
    each batch: an interrupted file is never kept, and a finished one is synced once.
    """
    from pyogrio import get_gdal_config_option, set_gdal_config_options

    options = {"OGR_CURRENT_DATE": _EPOCH, "OGR_SQLITE_SYNCHRONOUS": "OFF"}
    before = {name: get_gdal_config_option(name) for name in options}
    set_gdal_config_options(options)
    try:
        yield
    finally:
        set_gdal_config_options(before)
