"""Write outlined objects as the vector files asked for; knows which formats there are, not how objects are found.

    geojson      polygons.geojson      without a CRS for QuPath (level-0 pixels), with one RFC 7946 (WGS 84)
    geojson.gz   polygons.geojson.gz   the same, gzipped: QuPath opens it as it is
    gpkg         polygons.gpkg         GeoPackage, layer "polygons"
    geoparquet   polygons.parquet      GeoParquet 1.1 with a bbox column
    flatgeobuf   polygons.fgb          FlatGeobuf with its spatial index

The last three are in the image's CRS, or in level-0 pixels (x right, y down) and without a CRS. Equal objects give
equal bytes. Files grow batch by batch, and all of them from one pass over the objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unetpp.durable import output_errors, sync
from unetpp.errors import OutputError
from unetpp.finalize.areas import Measure, measure
from unetpp.finalize.features import QuPath, Rfc7946
from unetpp.finalize.geopackage import GeoPackage
from unetpp.finalize.geoparquet import FlatGeobuf, GeoParquet
from unetpp.finalize.identities import Identities
from unetpp.finalize.lonlat import LonLat
from unetpp.finalize.outlines import Batch
from unetpp.finalize.rows import VECTOR_FILES, Rows, Sink
from unetpp.finalize.shapes import Shapes

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid
    from unetpp.package import ClassInfo


def write_vectors(
    batches: Iterable[Batch],
    *,
    grid: OutputGrid,
    classes: Sequence[ClassInfo],
    key: str,
    folder: Path,
    formats: Iterable[str],
    shapes: Shapes | None = None,
) -> tuple[dict[int, int], dict[str, str | None]]:
    """Write the vector files of one image into `folder`, replacing what is there.

    Args:
        key: of the job; object ids derive from it, the class and the object's first pixel.
        formats: keys of `VECTOR_FILES`. A GeoJSON of a CRS without a place on the globe is left out.
        shapes: also measure perimeters and centroids, and write them as columns and to the shapes' own table.

    Returns:
        Objects per class value, and the files: their SHA-256 (hex) by name, None where it has to be read.

    Raises:
        OutputError: a file cannot be written.
    """
    names = {info.value: info for info in classes}
    counts = {info.value: 0 for info in classes if not info.background}
    identities = Identities(key)
    how = measure(grid)
    columns = shapes.columns if shapes is not None else ()
    with output_errors(folder), ExitStack() as stack:
        sinks = {name: stack.enter_context(sink) for name, sink in _sinks(formats, grid, how, columns, folder)}
        if shapes is not None:
            sinks[shapes.name] = stack.enter_context(shapes.table(folder, how))
        for batch in batches:
            rows = Rows(
                identities.of(batch.labels, batch.first),
                batch.labels,
                names,
                batch.pixels,
                np.asarray(how.objects(batch.outlines, batch.pixels), np.float64),
                {} if shapes is None else shapes.measure(batch),
            )
            sizes = np.bincount(batch.labels)
            for value in rows.values:
                counts[value] += int(sizes[value])
            for sink in sinks.values():
                sink.add(rows, batch.outlines)
    for name in sinks:
        sync(folder / name)
    return counts, {name: sink.sha256 for name, sink in sinks.items()}


def _sinks(
    formats: Iterable[str], grid: OutputGrid, how: Measure, columns: Sequence[str], folder: Path
) -> Iterator[tuple[str, Sink]]:
    for name in formats:
        path = folder / VECTOR_FILES[name]
        sink: Sink | None
        if name in ("gpkg", "flatgeobuf") and "!" in str(path):
            raise OutputError(f"cannot write {path}: GDAL takes a ! for an archive's; rename the folder, run again")
        if name in ("geojson", "geojson.gz"):
            sink = _geojson(path, grid, how)
        elif name == "gpkg":
            sink = GeoPackage(path, grid, how, columns)
        elif name == "geoparquet":
            sink = GeoParquet(path, grid, how, columns)
        else:
            sink = FlatGeobuf(path, grid, how, columns)
        if sink is not None:
            yield path.name, sink


def _geojson(path: Path, grid: OutputGrid, how: Measure) -> Sink | None:
    if grid.crs is None or grid.transform is None:
        return QuPath(path, grid)
    try:
        return Rfc7946(path, LonLat(grid.crs, grid.transform, grid.width), how)
    except ValueError:
        return None  # A local CRS has no place on the globe; the other formats say all there is.
