"""Finds the outlined objects of a result near a place; reads the vector files that `segment` wrote, draws nothing.

GeoPackage and FlatGeobuf have an index of their own. GeoJSON has one feature per line: its first use notes each line's
place and bounding box, 40 bytes per object; a gzipped one is unpacked into a temporary file for that. GeoJSON of more
than 512 MiB is not searched. Coordinates are level-0 pixels, x right and y down.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unetpp.antimeridian import turn
from unetpp.errors import StoreError
from unetpp.finalize.rows import VECTOR_FILES
from unetpp_workflows.viewer.catalogue import Result

MAX_OBJECTS = 1500
MAX_GEOJSON_BYTES = 2**29
_INDEXED = ("gpkg", "flatgeobuf")
_INDEXING = threading.Lock()


@dataclass(frozen=True)
class Found:
    """Objects of a box as GeoJSON features; `complete` says whether these are all."""

    features: list[dict[str, Any]]
    complete: bool
    note: str = ""


class ObjectFile(Protocol):
    """Objects of one result by place."""

    def within(self, box: tuple[float, float, float, float]) -> Found: ...


def open_objects(result: Result) -> ObjectFile | None:
    """Return the objects of a result, None where no file of it can be searched."""
    for kind in _INDEXED:
        path = result.folder / VECTOR_FILES[kind]
        if path.is_file():
            return _Layer(path, result)
    for kind in ("geojson", "geojson.gz"):
        path = result.folder / VECTOR_FILES[kind]
        if path.is_file():
            file = _text(path)
            return _Lines(file, result) if file.seek(0, os.SEEK_END) <= MAX_GEOJSON_BYTES else None
    return None


@contextmanager
def readable(result: Result) -> Iterator[None]:
    """Turn what readers raise for a file that is cut short or of another kind into `StoreError`."""
    try:
        yield
    except (ValueError, TypeError, LookupError, OSError, EOFError, RuntimeError, zlib.error) as error:
        raise StoreError(f"the outlines of {result.name} do not read ({error}); run `unetpp verify`") from error


class _Lines:
    """A GeoJSON file of one feature per line: in level-0 pixels for a slide, in degrees for a scene."""

    def __init__(self, file: IO[bytes], result: Result) -> None:
        # Held, since a temporary file goes with its last holder.
        self._file, self._path = file, Path(file.name)
        self._pixels = None if result.job.grid.crs is None else _Degrees(result)

    @cached_property
    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        starts, boxes, at = [], [], 0
        with _INDEXING, self._path.open("rb") as file:
            for line in file:
                text = line.strip().rstrip(b",")
                # What lies off the globe, as beside the disk of a geostationary scene, has no geometry.
                if text.startswith(b'{"type":"Feature",') and (geometry := json.loads(text)["geometry"]) is not None:
                    shells = [shell for shell, *_ in _polygons(geometry)]
                    corners = np.concatenate(shells if self._pixels is None else list(map(self._pixels, shells)))
                    starts.append(at)
                    boxes.append((*corners.min(0), *corners.max(0)))
                at += len(line)
        return np.asarray(starts, np.int64), np.asarray(boxes, np.float64).reshape(-1, 4)

    def within(self, box: tuple[float, float, float, float]) -> Found:
        starts, boxes = self._index
        x0, y0, x1, y1 = box
        hits = np.flatnonzero((boxes[:, 0] <= x1) & (boxes[:, 2] >= x0) & (boxes[:, 1] <= y1) & (boxes[:, 3] >= y0))
        features = []
        with self._path.open("rb") as file:
            for hit in hits[:MAX_OBJECTS]:
                file.seek(int(starts[hit]))
                feature = json.loads(file.readline().strip().rstrip(b","))
                geometry = feature["geometry"] if self._pixels is None else self._moved(feature["geometry"])
                features.append({**feature, "geometry": geometry, "properties": _facts(feature["properties"])})
        return Found(features, len(hits) <= MAX_OBJECTS)

    def _moved(self, geometry: dict[str, Any]) -> dict[str, Any]:
        assert self._pixels is not None
        polygons = [[self._pixels(ring).round(3).tolist() for ring in rings] for rings in _polygons(geometry)]
        return {"type": "MultiPolygon", "coordinates": polygons}


class _Degrees:
    """Ring of longitude and latitude -> level-0 pixels of a scene, in the turn of the globe that the scene has."""

    def __init__(self, result: Result) -> None:
        from pyproj import CRS, Transformer
        from rasterio.transform import Affine

        self._to_crs = Transformer.from_crs("EPSG:4326", CRS.from_wkt(result.job.grid.crs), always_xy=True)
        details = result.details()
        placed = Affine(*details["transform"])
        self._inverse = ~placed
        self._turn = turn(str(result.job.grid.crs))
        self._middle = (placed * (details["width"] / 2, details["height"] / 2))[0]

    def __call__(self, degrees: NDArray[np.float64]) -> NDArray[np.float64]:
        a, b, c, d, e, f = tuple(self._inverse)[:6]
        x, y = self._to_crs.transform(degrees[:, 0], degrees[:, 1])
        if self._turn is not None:
            x = x + self._turn * np.round((self._middle - x.mean()) / self._turn)
        return np.stack([a * x + b * y + c, d * x + e * y + f], 1)


def _polygons(geometry: dict[str, Any]) -> list[list[NDArray[np.float64]]]:
    """Return the rings (n, 2) of each polygon, shell first; objects across longitude 180 have several."""
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    return [[np.asarray(ring, np.float64) for ring in rings] for rings in polygons]


def _text(path: Path) -> IO[bytes]:
    """Return a GeoJSON as plain text; a gzipped one as a temporary file, no longer than shows that it is too large."""
    if path.suffix != ".gz":
        return path.open("rb")
    target = tempfile.NamedTemporaryFile(prefix="unetpp-", suffix=".geojson")  # noqa: SIM115
    with gzip.open(path) as source:
        while target.tell() <= MAX_GEOJSON_BYTES and (part := source.read(2**20)):
            target.write(part)
    target.flush()
    return target


class _Layer:
    """A file that GDAL searches by its own index."""

    def __init__(self, path: Path, result: Result) -> None:
        self._path = path
        grid = result.job.grid
        self._placed = result.details()["transform"] if grid.crs is not None else None

    def within(self, box: tuple[float, float, float, float]) -> Found:
        import shapely
        from pyogrio.raw import read

        x0, y0, x1, y1 = box
        corners = self._to_file(np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]]))
        bounds = (*corners.min(0), *corners.max(0))
        meta, ids, wkb, columns = read(self._path, bbox=bounds, max_features=MAX_OBJECTS + 1, return_fids=True)
        names = [str(name) for name in meta["fields"]]
        shapes = shapely.transform(shapely.from_wkb(wkb[:MAX_OBJECTS]), self._to_pixels)
        features = []
        for k, shape in enumerate(shapes):
            facts = {name: _plain(column[k]) for name, column in zip(names, columns, strict=True)}
            geometry = json.loads(shapely.to_geojson(shape))
            features.append({"type": "Feature", "id": int(ids[k]), "geometry": geometry, "properties": _facts(facts)})
        return Found(features, len(wkb) <= MAX_OBJECTS)

    def _to_file(self, xy: NDArray[Any]) -> NDArray[Any]:
        if self._placed is None:
            return xy
        a, b, c, d, e, f = self._placed
        return np.stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f], 1)

    def _to_pixels(self, xy: NDArray[Any]) -> NDArray[Any]:
        if self._placed is None:
            return xy
        from rasterio.transform import Affine

        a, b, c, d, e, f = tuple(~Affine(*self._placed))[:6]
        return np.stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f], 1)


def _facts(properties: dict[str, Any]) -> dict[str, Any]:
    """Return {"class": name, "measurements": {name: number}} of either file's properties."""
    if "classification" in properties:
        return {"class": properties["classification"]["name"], "measurements": properties.get("measurements", {})}
    numbers = {name: v for name, v in properties.items() if isinstance(v, int | float) and name not in ("class", "id")}
    return {"class": str(properties.get("name", properties.get("class", ""))), "measurements": numbers}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
