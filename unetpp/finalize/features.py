"""Writes objects as GeoJSON for QuPath or for maps, plain or gzipped, one feature at a time; knows no other format.

Objects are QuPath detections, not annotations: QuPath keeps hundreds of thousands of them and measures them in tables,
while every annotation is an editable object of its interface. One QuPath command turns chosen ones into annotations.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetpp.finalize.areas import Measure
from unetpp.finalize.lonlat import LonLat
from unetpp.finalize.outlines import Outlines
from unetpp.finalize.rows import Rows
from unetpp.finalize.trace import Ints

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
        self._square_um = grid.spacing.y * grid.spacing.x if grid.spacing and grid.spacing.unit == "um" else None

    def add(self, rows: Rows, outlines: Outlines) -> None:
        step_x, step_y = self._step
        measurements = {"Area px^2": [pixels * step_x * step_y for pixels in rows.pixels]}
        if self._square_um is not None:
            measurements["Area µm^2"] = [pixels * self._square_um for pixels in rows.pixels]
        measurements |= {title: rows.shapes[column] for column, title in _TITLES.items() if column in rows.shapes}
        names = [_text(title) for title in measurements]
        texts = zip(*([f"{float(f'{v:.12g}')!r}" for v in values] for values in measurements.values()), strict=True)
        properties = {value: self._properties(info) for value, info in {i.value: i for i in rows.infos}.items()}
        # Clockwise on screen is counter-clockwise in x and y as numbers, as RFC 7946 wants shells.
        coordinates = _coordinates(outlines, self._step)
        self._write(
            f'{{"type":"Feature","id":"{identity}","geometry":{{"type":"Polygon","coordinates":{rings}}},'
            f'"properties":{properties[info.value]}'
            + ",".join(f"{name}:{value}" for name, value in zip(names, values, strict=True))
            + "}}}"
            for identity, info, rings, values in zip(rows.identities, rows.infos, coordinates, texts, strict=True)
        )

    def _properties(self, info: ClassInfo) -> str:
        """Return the text of an object's properties up to its first measurement."""
        known = {"name": info.name, "color": list(info.color)}
        return f'{{"objectType":"detection","classification":{_text(known)},"measurements":{{'


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


_text = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def _coordinates(outlines: Outlines, step: tuple[float, float]) -> list[str]:
    """Return the text of each object's polygon coordinates: lattice points times `step`, to 4 decimals.

    Every vertex is a cell of bytes: its x and y, each made once for all vertices on one lattice line, and what comes
    behind it. The cells are padded with zeros, which are dropped in the end.
    """
    x, y = (
        _cells(outlines.vertices[:, axis], step[axis], before, after)
        for axis, before, after in ((0, "[", ","), (1, "", "]"))
    )
    behind = np.tile(np.frombuffer(b",\0\0", np.uint8), (len(x), 1))
    ends = outlines.starts[1:] - 1
    behind[ends] = np.frombuffer(b"],[", np.uint8)
    last = ends[np.append(outlines.shells[1:], True)]
    behind[last] = np.frombuffer(b"]]\0", np.uint8)
    cells = np.concatenate([x, y, behind], axis=1)
    shown = cells != 0
    text = cells[shown].tobytes().decode("ascii")
    bounds = np.cumsum(np.count_nonzero(shown, axis=1))[last].tolist()
    return [f"[[{text[begin:end]}" for begin, end in pairwise([0, *bounds])]


def _cells(values: Ints, step: float, before: str, after: str) -> npt.NDArray[np.uint8]:
    """Return (m, bytes) the text of each value times `step`, padded with zeros."""
    low = int(values.min())
    line: Any = np.arange(low, int(values.max()) + 1)
    texts = [f"{before}{value!r}{after}" for value in np.round(line if step == 1 else line * step, 4).tolist()]
    known = np.array(texts, np.bytes_)
    return known.view(np.uint8).reshape(len(known), known.itemsize)[values - low]
