"""What every vector file says of an object: its columns, and its outline as WKB; knows no file format."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from unetpp.finalize.outlines import Outlines
from unetpp.geometry import Transform

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid
    from unetpp.package import ClassInfo

LAYER = "polygons"
VECTOR_FILES = {
    "geojson": "polygons.geojson",
    "geojson.gz": "polygons.geojson.gz",
    "gpkg": "polygons.gpkg",
    "geoparquet": "polygons.parquet",
    "flatgeobuf": "polygons.fgb",
}
"""File of every vector format."""
BATCH_FEATURES, BATCH_BYTES = 4096, 2**23


@dataclass(frozen=True, slots=True)
class Row:
    """All of an object but its outline; `area` is in the measure's unit.

    `shape` holds more measurements by column, the same columns for all objects of a file; `unetpp.finalize.shapes`.
    """

    identity: str
    info: ClassInfo
    pixels: int
    area: float
    shape: Mapping[str, float] = field(default_factory=dict)


class Sink(Protocol):
    """One vector file that grows by batches of objects; it is whole when its block ends without an error."""

    def add(self, rows: Sequence[Row], outlines: Outlines) -> None: ...
    def __enter__(self) -> Sink: ...
    def __exit__(self, *error: object) -> None: ...


def coordinates(grid: OutputGrid) -> Transform:
    """Return output-grid pixels -> the coordinates of a vector file: the image's CRS, else its level-0 pixels."""
    if grid.crs is not None and grid.transform is not None:
        return grid.transform
    return (grid.step_x, 0.0, 0.0, 0.0, grid.step_y, 0.0)


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
