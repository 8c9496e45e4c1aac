"""Writes objects as GeoJSON for QuPath or for maps, plain or gzipped, one feature at a time; knows no other format.

Objects are QuPath detections, not annotations: QuPath keeps hundreds of thousands of them and measures them in tables,
while every annotation is an editable object of its interface. One QuPath command turns chosen ones into annotations.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from unetpp.finalize.areas import Measure
from unetpp.finalize.compiled import ZERO, compiled
from unetpp.finalize.lonlat import LonLat
from unetpp.finalize.outlines import Ints, Outlines
from unetpp.finalize.rows import Rows
from unetpp.finalize.texts import WORD, Bytes, Texts, Words, padded
from unetpp.finalize.written import WrittenFile

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
        self._file: IO[bytes]
        self._separator = b"\n"
        self._written: WrittenFile
        self.sha256: str | None = None

    def __enter__(self) -> Any:
        self._written = self._open.enter_context(WrittenFile(self._path))
        file: Any = self._written
        if self._path.suffix == ".gz":
            # Without name and time, so that equal objects give equal bytes.
            file = self._open.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0))
        self._file = file
        self._file.write(b'{"type":"FeatureCollection","features":[')
        return self

    def __exit__(self, *error: object) -> None:
        with self._open:
            self._file.write(b"\n]}\n")
        self.sha256 = self._written.sha256

    def _write(self, features: bytes | memoryview) -> None:
        """Append features that are separated already."""
        self._file.write(self._separator)
        self._file.write(features)
        self._separator = _SEPARATOR


class QuPath(_FeatureCollection):
    def __init__(self, path: Path, grid: OutputGrid) -> None:
        super().__init__(path)
        self._step = grid.step_x, grid.step_y
        self._lattice = _Lattice(grid)
        self._square_um = grid.spacing.y * grid.spacing.x if grid.spacing and grid.spacing.unit == "um" else None

    def add(self, rows: Rows, outlines: Outlines) -> None:
        step_x, step_y = self._step
        measurements: dict[str, Any] = {"Area px^2": rows.sizes * step_x * step_y}
        if self._square_um is not None:
            measurements["Area µm^2"] = rows.sizes * self._square_um
        measurements |= {title: rows.shapes[column] for column, title in _TITLES.items() if column in rows.shapes}
        texts = Texts()
        own = [texts.rows(rows.ids), _COORDINATES, *(texts.numbers(values) for values in measurements.values())]
        around = np.empty((256, len(own) + 1, 2), np.int64)
        for value in rows.values:
            around[value] = texts.all(self._around(rows.classes[value], measurements))
        places = np.empty((len(rows.labels), 2 * len(own) + 1, 2), np.int64)
        places[:, ::2] = around[rows.labels]
        for number, values in enumerate(own):
            places[:, 2 * number + 1] = values
        # Clockwise on screen is counter-clockwise in x and y as numbers, as RFC 7946 wants shells.
        text = self._lattice.features(texts.joined(), places, outlines)
        self._write(text[: -len(_SEPARATOR)].data)

    def _around(self, info: ClassInfo, measurements: Iterable[str]) -> list[bytes]:
        """Return what stands in every object of a class before, between and behind its own values."""
        known = _text({"name": info.name, "color": list(info.color)})
        properties = f'"properties":{{"objectType":"detection","classification":{known},"measurements":{{'
        found = ['{"type":"Feature","id":"', '","geometry":{"type":"Polygon","coordinates":', "}," + properties]
        for title in measurements:
            found[-1] += f"{_text(title)}:"
            found.append(",")
        found[-1] = "}}}"
        return [text.encode() for text in found[:-1]] + [found[-1].encode() + _SEPARATOR]


class Rfc7946(_FeatureCollection):
    def __init__(self, path: Path, lonlat: LonLat, how: Measure) -> None:
        super().__init__(path)
        self._lonlat = lonlat
        self._area = f"area_{how.unit}"

    def add(self, rows: Rows, outlines: Outlines) -> None:
        geometries = self._lonlat.geometries(outlines)
        columns = (rows.identities, geometries, rows.infos, rows.areas, rows.shape_of_each())
        features = (
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
        self._write(_SEPARATOR.join(feature.encode() for feature in features))


_SEPARATOR = b",\n"
_OPEN, _CLOSE, _COMMA = ord("["), ord("]"), ord(",")
_COORDINATES = np.array([-1, -1])
_text = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


class _Lattice:
    """The text of every lattice line of a grid in level-0 pixels, to 4 decimals: millions of vertices share them.

    That of x comes with the bracket before it and the comma behind it, that of y with what closes the vertex.
    """

    def __init__(self, grid: OutputGrid) -> None:
        x = [f"[{number},".encode() for number in _numbers(grid.width + 1, grid.step_x)]
        y = [f"{number}],".encode() for number in _numbers(grid.height + 1, grid.step_y)]
        self._lines = padded(x + y), np.array([len(text) for text in x + y])
        self._last = np.array([grid.width, grid.height])

    def features(self, texts: Words, places: Ints, outlines: Outlines) -> Bytes:
        """Return the text of all objects; raises `ValueError` for vertices outside the grid.

        Args:
            places: (n, k, 2) where in `texts` the k pieces of each object are; negative for its coordinates.
        """
        rings = np.append(np.flatnonzero(outlines.shells), len(outlines.owner))
        found = _features(texts, places, outlines.vertices, outlines.starts, rings, *self._lines, self._last)
        if not len(found):
            raise ValueError(f"an outline passes the grid's end {tuple(self._last.tolist())}")
        return found


def _numbers(count: int, step: float) -> list[str]:
    lines: Any = np.arange(count)
    return [repr(value) for value in np.round(lines if step == 1 else lines * step, 4).tolist()]


@compiled
def _features(
    texts: Words, places: Ints, vertices: Ints, starts: Ints, rings: Ints, lines: Words, lengths: Ints, last: Ints
) -> Bytes:
    """Return the text of all objects, none where a vertex is outside the grid.

    `lines` are the texts of the lattice lines, of so many bytes as `lengths` says: first those of x, from 0 to
    `last[0]`, then those of y. Object n has the rings from `rings[n]` to `rings[n + 1]`.
    """
    # A ring has a bracket and a comma besides its vertices, an object a bracket.
    most = len(vertices) * 2 * WORD * lines.shape[1] + 2 * len(starts) + len(places) + WORD
    for n in range(len(places)):
        for k in range(places.shape[1]):
            most += max(0, places[n, k, 1])
    for at in range(len(vertices)):
        for axis in range(2):
            if vertices[at, axis] < 0 or vertices[at, axis] > last[axis]:
                return np.empty(0, np.uint8)
    found = np.empty(most, np.uint8)
    used = ZERO
    for n in range(len(places)):
        for k in range(places.shape[1]):
            if places[n, k, 0] < 0:
                used = _polygon(found, used, vertices, starts, rings[n], rings[n + 1], lines, lengths, last[0] + 1)
            else:
                used = _put_text(found, used, texts, places[n, k, 0], places[n, k, 1])
    return found[:used]


@compiled
def _polygon(
    found: Bytes, used: int, vertices: Ints, starts: Ints, first: int, end: int, lines: Words, lengths: Ints, below: int
) -> int:
    """Append [[[x,y],...],[[x,y],...]], the rings from `first` to `end`; returns where that ends.

    `below` is the line of y = 0. A comma stands behind everything until a bracket takes the place of the last one.
    """
    found[used] = _OPEN
    used += 1
    for ring in range(first, end):
        found[used] = _OPEN
        used += 1
        for at in range(starts[ring], starts[ring + 1]):
            x, y = vertices[at, 0], below + vertices[at, 1]
            for line in (x, y):
                _put(found, used, lines[line, 0])
                for k in range(1, lines.shape[1]):
                    _put(found, used + k * WORD, lines[line, k])
                used += lengths[line]
        found[used - 1], found[used] = _CLOSE, _COMMA
        used += 1
    found[used - 1] = _CLOSE
    return used


@compiled
def _put_text(found: Bytes, used: int, words: Words, first: int, length: int) -> int:
    """Write a text behind those that are there, and up to seven bytes of padding; returns where it ends."""
    for k in range((length + WORD - 1) >> 3):
        _put(found, used + k * WORD, words[first + k])
    return used + length


@compiled
def _put(found: Bytes, used: int, word: int) -> None:
    """Write eight bytes: one store, because unsigned places are never counted from the end."""
    at = np.uint64(used)
    for k in range(WORD):
        found[at + np.uint64(k)] = word >> np.uint64(8 * k)
