"""Writes objects as GeoJSON for QuPath or for maps, plain or gzipped, one feature at a time; knows no other format.

Objects are QuPath detections, not annotations: QuPath keeps hundreds of thousands of them and measures them in tables,
while every annotation is an editable object of its interface. One QuPath command turns chosen ones into annotations.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetpp.finalize.areas import Measure
from unetpp.finalize.compiled import compiled
from unetpp.finalize.lonlat import LonLat
from unetpp.finalize.outlines import Ints, Outlines
from unetpp.finalize.rows import Rows

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid
    from unetpp.package import ClassInfo


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

    def _write(self, features: Iterable[str]) -> None:
        text = ",\n".join(features)
        self._file.write(self._separator + text)
        self._separator = ",\n"


class QuPath(_FeatureCollection):
    def __init__(self, path: Path, grid: OutputGrid) -> None:
        super().__init__(path)
        self._step = grid.step_x, grid.step_y
        self._lattice = _Lattice(grid)
        self._square_um = grid.spacing.y * grid.spacing.x if grid.spacing and grid.spacing.unit == "um" else None

    def add(self, rows: Rows, outlines: Outlines) -> None:
        step_x, step_y = self._step
        measurements = {"Area px^2": [pixels * step_x * step_y for pixels in rows.pixels]}
        if self._square_um is not None:
            measurements["Area µm^2"] = [pixels * self._square_um for pixels in rows.pixels]
        measurements |= {title: rows.shapes[column] for column, title in _TITLES.items() if column in rows.shapes}
        infos = {info.value: info for info in rows.infos}
        templates = {value: self._template(info, measurements) for value, info in infos.items()}
        # Clockwise on screen is counter-clockwise in x and y as numbers, as RFC 7946 wants shells.
        coordinates = self._lattice.coordinates(outlines)
        values = zip(rows.identities, coordinates, *map(_shortest, measurements.values()), strict=True)
        self._write(templates[info.value] % own for info, own in zip(rows.infos, values, strict=True))

    def _template(self, info: ClassInfo, measurements: Iterable[str]) -> str:
        """Return the text of an object of a class with %s for id, coordinates and each measurement."""
        known = _text({"name": info.name, "color": list(info.color)}).replace("%", "%%")
        columns = ",".join(f"{_text(title)}:%s" for title in measurements)
        return (
            '{"type":"Feature","id":"%s","geometry":{"type":"Polygon","coordinates":%s},"properties":'
            f'{{"objectType":"detection","classification":{known},"measurements":{{{columns}}}}}}}'
        )


class Rfc7946(_FeatureCollection):
    def __init__(self, path: Path, lonlat: LonLat, how: Measure) -> None:
        super().__init__(path)
        self._lonlat = lonlat
        self._area = f"area_{how.unit}"

    def add(self, rows: Rows, outlines: Outlines) -> None:
        geometries = self._lonlat.geometries(outlines)
        columns = (rows.identities, geometries, rows.infos, rows.areas, rows.measured())
        self._write(
            _text(
                {
                    "type": "Feature",
                    "id": identity,
                    "geometry": geometry,
                    "properties": {"class": info.value, "name": info.name, self._area: area, **shape},
                }
            )
            for identity, geometry, info, area, shape in zip(*columns, strict=True)
        )


_OPEN, _CLOSE, _COMMA = ord("["), ord("]"), ord(",")
_text = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def _shortest(values: Sequence[float]) -> list[str]:
    """Return the text of numbers to 12 digits; few of them differ."""
    texts = {value: repr(float(f"{value:.12g}")) for value in set(values)}
    return [texts[value] for value in values]


class _Lattice:
    """The text of every lattice line of a grid in level-0 pixels, to 4 decimals: millions of vertices share them."""

    def __init__(self, grid: OutputGrid) -> None:
        x, y = _numbers(grid.width + 1, grid.step_x), _numbers(grid.height + 1, grid.step_y)
        texts = np.array(x + y, np.bytes_)
        self._texts = texts.view(np.uint8).reshape(len(texts), texts.itemsize)
        self._lengths = np.array([len(number) for number in x + y])
        self._rows = np.array([0, len(x)])
        self._last = np.array([grid.width, grid.height])

    def coordinates(self, outlines: Outlines) -> list[str]:
        """Return the text of each object's polygon coordinates; raises `ValueError` for vertices outside the grid."""
        vertices = outlines.vertices
        if vertices.min() < 0 or (vertices.max(axis=0) > self._last).any():  # compiled code does not look
            raise ValueError(f"an outline passes the grid's end {tuple(self._last.tolist())}")
        ends = np.append(outlines.starts[:-1][outlines.shells][1:], len(outlines.vertices))
        lines = vertices + self._rows
        text, bounds = _joined(lines, outlines.starts, ends, self._texts, self._lengths)
        whole = text.tobytes().decode("ascii")
        return [whole[begin:end] for begin, end in pairwise([0, *bounds.tolist()])]


def _numbers(count: int, step: float) -> list[str]:
    lines: Any = np.arange(count)
    return [repr(value) for value in np.round(lines if step == 1 else lines * step, 4).tolist()]


@compiled
def _joined(
    lines: Ints, starts: Ints, ends: Ints, texts: npt.NDArray[np.uint8], lengths: Ints
) -> tuple[npt.NDArray[np.uint8], Ints]:
    """Return the text [[[x,y],...],[[x,y],...]] of all objects, and where each ends; `ends` is behind its vertices.

    `lines` are the rows of `texts` that hold x and y of each vertex, so many bytes of them as `lengths` says.
    """
    # A vertex has brackets, a comma and another behind it; a ring two brackets more, an object four.
    most = len(lines) * (2 * texts.shape[1] + 4) + 2 * len(starts) + 4 * len(ends)
    text, bounds = np.empty(most, np.uint8), np.empty(len(ends), np.int64)
    used = number = ring = 0
    begins = True
    for at in range(len(lines)):
        for _ in range(1 + (at == starts[ring]) + begins):
            text[used] = _OPEN
            used += 1
        ring += at == starts[ring]
        for axis in range(2):
            line = lines[at, axis]
            for k in range(lengths[line]):
                text[used + k] = texts[line, k]
            used += lengths[line]
            text[used] = _CLOSE if axis else _COMMA
            used += 1
        begins = at + 1 == ends[number]
        for _ in range((at + 1 == starts[ring]) + begins):
            text[used] = _CLOSE
            used += 1
        if begins:
            bounds[number] = used
            number += 1
        else:
            text[used] = _COMMA
            used += 1
    return text[:used], bounds
