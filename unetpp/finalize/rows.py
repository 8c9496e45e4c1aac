"""What every vector file says of an object: its columns, and its outline as WKB; knows no file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from unetpp.finalize.outlines import Floats, Ints, Outlines
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


@dataclass(frozen=True)
class Rows:
    """All of a batch of n objects but their outlines; what only some files hold is made when one asks for it.

    Attributes:
        ids: (n, 36) the objects' ids in ASCII.
        labels: (n,) their class values.
        classes: every class by its value.
        sizes: (n,) their pixels.
        measured: (n,) their areas in the measure's unit, with all digits.
        shapes: more measurements by column, the same columns for all objects of a file; `unetpp.finalize.shapes`.
    """

    ids: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    classes: Mapping[int, ClassInfo]
    sizes: Ints
    measured: Floats
    shapes: Mapping[str, list[float]] = field(default_factory=dict)

    @cached_property
    def identities(self) -> list[str]:
        whole, length = self.ids.tobytes().decode("ascii"), self.ids.shape[1]
        return [whole[at : at + length] for at in range(0, len(whole), length)]

    @cached_property
    def values(self) -> list[int]:
        """Class values that some object has."""
        return list(np.flatnonzero(np.bincount(self.labels)).tolist())

    @cached_property
    def infos(self) -> list[ClassInfo]:
        return [self.classes[label] for label in self.labels.tolist()]

    @cached_property
    def pixels(self) -> list[int]:
        return list(self.sizes.tolist())

    @cached_property
    def areas(self) -> list[float]:
        """Areas to 12 digits."""
        return [float(f"{area:.12g}") for area in self.measured.tolist()]

    def shape_of_each(self) -> list[dict[str, float]]:
        """Return `shapes` object by object."""
        values = zip(*self.shapes.values(), strict=True) if self.shapes else ((),) * len(self.labels)
        return [dict(zip(self.shapes, row, strict=True)) for row in values]


class Sink(Protocol):
    """One vector file that grows by batches of objects; it is whole when its block ends without an error."""

    @property
    def sha256(self) -> str | None:
        """The whole file's SHA-256 (hex) where writing it has told."""

    def add(self, rows: Rows, outlines: Outlines) -> None: ...
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
    lengths = np.diff(outlines.starts)
    vertices = outlines.vertices
    if a * e - b * d < 0:  # mirrored: each ring the other way round
        ends = outlines.starts[:-1] + outlines.starts[1:] - 1
        vertices = vertices[np.repeat(ends, lengths) - np.arange(len(vertices))]
    x, y = vertices[:, 0], vertices[:, 1]
    points = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1).astype("<f8")
    shells = outlines.shells
    # An object begins with 9 bytes, each of its rings with the 4 of its length; all the rest are points.
    sizes = 4 + 16 * lengths + 9 * shells
    begins = np.cumsum(sizes) - sizes
    content = np.empty(int(sizes.sum()), np.uint8)
    is_point = np.ones(len(content), bool)
    heads = np.empty(outlines.count, [("order", "u1"), ("kind", "<u4"), ("rings", "<u4")])
    heads["order"], heads["kind"] = 1, 3
    heads["rings"] = np.bincount(outlines.owner, minlength=outlines.count)
    for at, values in ((begins[shells], heads), (begins + 9 * shells, lengths.astype("<u4"))):
        places = at[:, None] + np.arange(values.itemsize)
        content[places] = values.view(np.uint8).reshape(places.shape)
        is_point[places] = False
    content[is_point] = points.view(np.uint8).ravel()
    whole = content.tobytes()
    bounds = [*begins[shells].tolist(), len(whole)]
    return [whole[begin:end] for begin, end in pairwise(bounds)]
