"""Writes objects as a GeoPackage through GDAL, in batches of bounded size; knows rows and WKB, no labels."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetpp.errors import OutputError
from unetpp.finalize.areas import Measure
from unetpp.finalize.geoparquet import attributes
from unetpp.finalize.outlines import Outlines
from unetpp.finalize.rows import BATCH_BYTES, BATCH_FEATURES, LAYER, Rows, coordinates, well_known_binary

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid

_EPOCH = "1970-01-01T00:00:00.000Z"


class GeoPackage:
    """A GeoPackage that is appended to in batches of bounded size."""

    sha256 = None

    def __init__(self, path: Path, grid: OutputGrid, how: Measure, columns: Sequence[str]) -> None:
        self._path, self._transform = path, coordinates(grid)
        self._crs = grid.crs if grid.transform is not None else None
        self._fields = ["id", "class", "name", f"area_{how.unit}", *columns]
        self._columns: list[list[Any]] = [[] for _ in ("geometry", *self._fields)]
        self._bytes = 0
        self._count = 0

    def __enter__(self) -> GeoPackage:
        self._path.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            if self._columns[0] or not self._count:
                self._flush()
            self._check()

    def add(self, rows: Rows, outlines: Outlines) -> None:
        geometries = well_known_binary(outlines, self._transform)
        columns = (geometries, *attributes(rows).values(), rows.areas, *rows.shapes.values())
        for waiting, more in zip(self._columns, columns, strict=True):
            waiting.extend(more)
        self._bytes += sum(map(len, geometries))
        if len(self._columns[0]) >= BATCH_FEATURES or self._bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
        from pyogrio.raw import write

        kinds: list[Any] = [object, object, np.int32, object, *[np.float64] * (len(self._fields) - 3)]
        geometry, *fields = (np.array(column, kind) for column, kind in zip(self._columns, kinds, strict=True))
        try:
            with _gdal_options(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "'crs' was not provided")
                write(
                    self._path,
                    geometry=geometry,
                    field_data=fields,
                    fields=self._fields,
                    layer=LAYER,
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=self._crs,
                    append=self._count > 0,
                )
        except (DataSourceError, DataLayerError, FeatureError) as error:
            raise self._failure(str(error).strip().splitlines()[0]) from error
        self._count += len(geometry)
        self._columns, self._bytes = [[] for _ in kinds], 0

    def _check(self) -> None:
        # GDAL reports no error when a full disk keeps SQLite from writing the spatial index or the last pages.
        try:
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as base:
                state = base.execute("PRAGMA quick_check(1)").fetchone()[0]
                tables = (LAYER, f"rtree_{LAYER}_geom")
                counts = [base.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]  # noqa: S608
        except sqlite3.Error as error:
            raise self._failure(str(error)) from error
        if state != "ok" or counts != [self._count] * 2:
            raise self._failure(f"objects and index hold {counts} of {self._count} rows, SQLite says {state!r}")

    def _failure(self, why: str) -> OutputError:
        return OutputError(f"cannot write {self._path}: {why}; check the disk and run the same command again")


@contextmanager
def _gdal_options() -> Iterator[None]:
    """Set how GDAL writes GeoPackages, for this block.

    The time of day stays out of the file: equal results have equal bytes, times are in records. SQLite need not sync
    each batch: an interrupted file is never kept, and a finished one is synced once.
    """
    from pyogrio import get_gdal_config_option, set_gdal_config_options

    options = {"OGR_CURRENT_DATE": _EPOCH, "OGR_SQLITE_SYNCHRONOUS": "OFF"}
    before = {name: get_gdal_config_option(name) for name in options}
    set_gdal_config_options(options)
    try:
        yield
    finally:
        set_gdal_config_options(before)
