"""Writes objects as GeoParquet or FlatGeobuf, in batches of bounded size; knows rows and WKB, no labels.

GeoParquet 1.1.0 (OGC, 2024): WKB polygons, shells counter-clockwise, the CRS as PROJJSON (null for pixels: without the
key it would be WGS 84), a bbox column that readers use to skip row groups. A FlatGeobuf can only be made from all of
its features: they go to a Parquet file first, and GDAL then holds 48 bytes of each while it builds the spatial index.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetpp.errors import OutputError
from unetpp.finalize.areas import Measure
from unetpp.finalize.outlines import Outlines
from unetpp.finalize.rows import BATCH_BYTES, BATCH_FEATURES, LAYER, Rows, coordinates, well_known_binary

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class ParquetTable:
    """A Parquet file that grows by batches of rows.

    Args:
        schema: pyarrow schema.
    """

    sha256 = None

    def __init__(self, path: Path, schema: Any) -> None:
        self._path, self._schema = path, schema
        self._batches: list[Any] = []
        self._rows = self._bytes = 0
        self._writer: Any

    def __enter__(self) -> Any:
        import pyarrow.parquet

        self._writer = pyarrow.parquet.ParquetWriter(self._path, self._schema, compression="zstd")
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._flush(self._rows)
                self._writer.add_key_value_metadata(self._metadata())
        finally:
            self._writer.close()

    def put(self, columns: Mapping[str, Any], size: int = 0) -> None:
        """Add rows, given by column; `size` is about their bytes where they are many."""
        import pyarrow

        batch = pyarrow.RecordBatch.from_pydict(dict(columns), self._schema)
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += size
        if self._bytes >= BATCH_BYTES:
            self._flush(self._rows)
        elif self._rows >= BATCH_FEATURES:
            self._flush(self._rows // BATCH_FEATURES * BATCH_FEATURES)

    def _flush(self, rows: int) -> None:
        import pyarrow

        if rows:
            table = pyarrow.Table.from_batches(self._batches)
            self._writer.write_table(table.slice(0, rows), BATCH_FEATURES)
            self._batches = table.slice(rows).to_batches()
            self._bytes -= self._bytes * rows // self._rows
            self._rows -= rows

    def _metadata(self) -> dict[str, str]:
        return {}


class GeoParquet(ParquetTable):
    """Columns id, class, name, area, the shapes' columns, geometry and bbox; row groups of at most 4096 objects."""

    def __init__(self, path: Path, grid: OutputGrid, how: Measure, columns: Sequence[str]) -> None:
        import pyarrow as pa

        self._area = f"area_{how.unit}"
        numbers = [(name, pa.float64()) for name in (self._area, *columns)]
        box = pa.struct([(corner, pa.float64()) for corner in _CORNERS])
        attributes = [("id", pa.string()), ("class", pa.int32()), ("name", pa.string()), *numbers]
        self._transform = coordinates(grid)
        self._crs = grid.crs if grid.transform is not None else None
        self._extent: tuple[float, ...] | None = None
        # Arrow's readers know only what its schema says, which comes first: all but the extent.
        schema = pa.schema([*attributes, ("geometry", pa.binary()), ("bbox", box)], metadata=self._metadata())
        super().__init__(path, schema)

    def add(self, rows: Rows, outlines: Outlines) -> None:
        import pyarrow as pa

        geometries = well_known_binary(outlines, self._transform)
        boxes = _boxes(outlines, self._transform)
        corners = pa.StructArray.from_arrays([pa.array(column) for column in boxes.T.copy()], _CORNERS)
        columns = {**attributes(rows), self._area: rows.areas, **rows.shapes, "geometry": geometries, "bbox": corners}
        self.put(columns, sum(map(len, geometries)))
        box = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
        known = self._extent or box
        self._extent = (*map(min, known[:2], box[:2]), *map(max, known[2:], box[2:]))

    def _metadata(self) -> dict[str, str]:
        from pyproj import CRS

        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": None if self._crs is None else CRS.from_wkt(self._crs).to_json_dict(),
            "orientation": "counterclockwise",
            "edges": "planar",
            "covering": {"bbox": {corner: ["bbox", corner] for corner in _CORNERS}},
        }
        if self._extent is not None:
            column["bbox"] = list(self._extent)
        return {"geo": json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}})}


class FlatGeobuf:
    """A FlatGeobuf with the columns of the GeoParquet file but its boxes."""

    sha256 = None

    def __init__(self, path: Path, grid: OutputGrid, how: Measure, columns: Sequence[str]) -> None:
        self._path, self._crs = path, grid.crs if grid.transform is not None else None
        self._draft = path.with_name(f"draft-{path.name}.parquet")
        self._table = GeoParquet(self._draft, grid, how, columns)

    def __enter__(self) -> FlatGeobuf:
        self._table.__enter__()
        return self

    def add(self, rows: Rows, outlines: Outlines) -> None:
        self._table.add(rows, outlines)

    def __exit__(self, *error: object) -> None:
        self._table.__exit__(*error)
        if error[0] is None:
            self._path.unlink(missing_ok=True)
            self._convert()
        self._draft.unlink()

    def _convert(self) -> None:
        import pyarrow
        import pyarrow.parquet
        from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
        from pyogrio.raw import open_arrow, write_arrow

        with pyarrow.parquet.ParquetFile(self._draft) as draft:
            names = [name for name in draft.schema_arrow.names if name != "bbox"]
            schema = pyarrow.schema([draft.schema_arrow.field(name) for name in names])

            def batches() -> Iterator[Any]:
                for group in range(draft.num_row_groups):
                    yield from draft.read_row_group(group, columns=names).cast(schema).to_batches()

            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "'crs' was not provided")
                    write_arrow(
                        pyarrow.RecordBatchReader.from_batches(schema, batches()),
                        self._path,
                        layer=LAYER,
                        driver="FlatGeobuf",
                        geometry_name="geometry",
                        geometry_type="Polygon",
                        crs=self._crs,
                    )
                # GDAL reports no error when a full disk cuts the file short.
                with open_arrow(self._path, use_pyarrow=True) as (_, reader):
                    found = sum(batch.num_rows for batch in reader)
            except (DataSourceError, DataLayerError, FeatureError, pyarrow.ArrowInvalid) as error:
                raise self._failure(str(error).strip().splitlines()[0]) from error
            if found != draft.metadata.num_rows:
                raise self._failure(f"it holds {found} of {draft.metadata.num_rows} objects")

    def _failure(self, why: str) -> OutputError:
        return OutputError(f"cannot write {self._path}: {why}; check the disk and run the same command again")


def attributes(rows: Rows) -> dict[str, list[Any]]:
    """Return the columns that every table of objects begins with."""
    infos = rows.infos
    return {
        "id": rows.identities,
        "class": [info.value for info in infos],
        "name": [info.name for info in infos],
    }


def _boxes(outlines: Outlines, transform: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Return (n, 4) the (xmin, ymin, xmax, ymax) of each object in the transform's coordinates."""
    a, b, c, d, e, f = transform
    x, y = outlines.vertices[:, 0], outlines.vertices[:, 1]
    points = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
    # All vertices of an object lie one after the other.
    begins = outlines.starts[:-1][outlines.shells]
    low, high = np.minimum.reduceat(points, begins), np.maximum.reduceat(points, begins)
    return np.concatenate([low, high], axis=1)
