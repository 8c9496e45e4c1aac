"""Writes objects as GeoJSON for QuPath or for maps, plain or gzipped, one feature at a time; knows no other format.

Objects are QuPath detections, not annotations: QuPath keeps hundreds of thousands of them and measures them in tables,
while every annotation is an editable object of its interface. One QuPath command turns chosen ones into annotations.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from unetpp.finalize.areas import Measure
from unetpp.finalize.lonlat import LonLat
from unetpp.finalize.outlines import Outlines
from unetpp.finalize.rows import Row

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid


_TITLES = {
    "perimeter_px": "Perimeter px",
    "perimeter_um": "Perimeter µm",
    "centroid_x_px": "Centroid X px",
    "centroid_y_px": "Centroid Y px",
    "probability_mean": "Mean probability",
}
"""Names of the columns of shapes as QuPath's measurements."""


class _FeatureCollection:
    """A GeoJSON file that is written one feature per line; gzipped where its name ends in .gz."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open = ExitStack()
        self._file: IO[str]
        self._separator = "\n"

    def __enter__(self) -> Any:
        file: Any = self._open.enter_context(self._path.open("wb"))
        if self._path.suffix == ".gz":
            # Without name and time, so that equal objects give equal bytes.
            file = self._open.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0))
        self._file = self._open.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline="\n"))
        self._file.write('{"type":"FeatureCollection","features":[')
        return self

    def __exit__(self, *error: object) -> None:
        with self._open:
            self._file.write("\n]}\n")

    def _write(self, identity: str, geometry: dict[str, Any] | None, properties: dict[str, Any]) -> None:
        feature = {"type": "Feature", "id": identity, "geometry": geometry, "properties": properties}
        text = json.dumps(feature, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        self._file.write(self._separator + text)
        self._separator = ",\n"


class QuPath(_FeatureCollection):
    def __init__(self, path: Path, grid: OutputGrid) -> None:
        super().__init__(path)
        self._step = grid.step_x, grid.step_y
        self._square_um = grid.spacing.y * grid.spacing.x if grid.spacing and grid.spacing.unit == "um" else None

    def add(self, rows: Sequence[Row], outlines: Outlines) -> None:
        step_x, step_y = self._step
        # Clockwise on screen is counter-clockwise in x and y as numbers, as RFC 7946 wants shells.
        level0: Any = outlines.vertices if self._step == (1, 1) else outlines.vertices * np.asarray(self._step)
        for row, rings in zip(rows, _nested(np.round(level0, 4).tolist(), outlines), strict=True):
            measurements = {"Area px^2": row.pixels * step_x * step_y}
            if self._square_um is not None:
                measurements["Area µm^2"] = row.pixels * self._square_um
            for column, title in _TITLES.items():
                if column in row.shape:
                    measurements[title] = row.shape[column]
            properties = {
                "objectType": "detection",
                "classification": {"name": row.info.name, "color": list(row.info.color)},
                "measurements": {name: float(f"{value:.12g}") for name, value in measurements.items()},
            }
            self._write(row.identity, {"type": "Polygon", "coordinates": rings}, properties)


class Rfc7946(_FeatureCollection):
    def __init__(self, path: Path, lonlat: LonLat, how: Measure) -> None:
        super().__init__(path)
        self._lonlat = lonlat
        self._area = f"area_{how.unit}"

    def add(self, rows: Sequence[Row], outlines: Outlines) -> None:
        for row, geometry in zip(rows, self._lonlat.geometries(outlines), strict=True):
            properties = {"class": row.info.value, "name": row.info.name, self._area: row.area, **row.shape}
            self._write(row.identity, geometry, properties)


def _nested(points: list[list[float]], outlines: Outlines) -> list[list[list[list[float]]]]:
    """Return GeoJSON polygon coordinates per object."""
    found: list[list[list[list[float]]]] = [[] for _ in range(outlines.count)]
    bounds = outlines.starts.tolist()
    for k, owner in enumerate(outlines.owner.tolist()):
        found[owner].append(points[bounds[k] : bounds[k + 1]])
    return found
