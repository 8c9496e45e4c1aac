"""Finds the outlined objects of a result near a place; reads the vector files that `segment` wrote, draws nothing.

GeoPackage and FlatGeobuf have an index of their own. QuPath's GeoJSON has one feature per line: its first use notes
each line's place and bounding box, 40 bytes per object. Coordinates are level-0 pixels, x right and y down.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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
    """Return the objects of a result, None where no file of it can be searched.

    Raises:
        StoreError: its GeoJSON is too large to search.
    """
    for kind in _INDEXED:
        path = result.folder / VECTOR_FILES[kind]
        if path.is_file():
            return _Layer(path, result)
    path = result.folder / VECTOR_FILES["geojson"]
    if not path.is_file() or result.job.grid.crs is not None:
        return None
    if path.stat().st_size > MAX_GEOJSON_BYTES:
        raise StoreError(
            f"{path.name} of {result.name} has {path.stat().st_size:,} bytes, too many to search; "
            "segment with --formats flatgeobuf to see its objects"
        )
    return _Lines(path)


class _Lines:
    """A GeoJSON file of one feature per line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        starts, boxes, at = [], [], 0
        with _INDEXING, self._path.open("rb") as file:
            for line in file:
                text = line.strip().rstrip(b",")
                if text.startswith(b'{"type":"Feature",'):
                    shell = np.asarray(json.loads(text)["geometry"]["coordinates"][0])
                    starts.append(at)
                    boxes.append((*shell.min(0), *shell.max(0)))
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
                features.append({**feature, "properties": _facts(feature["properties"])})
        return Found(features, len(hits) <= MAX_OBJECTS)


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
