"""Reads small tables of text, CSV or Parquet, as one mapping per row; knows nothing of what columns mean."""

from __future__ import annotations

import csv
from pathlib import Path

from unetpp.errors import DataError


def read_table(path: Path) -> list[dict[str, str]]:
    """Return a table's rows; missing values are "".

    Raises:
        DataError: the file is missing, no readable CSV (UTF-8) or Parquet, or has no rows.
    """
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            records = pyarrow.parquet.read_table(path).to_pylist()
            rows = [{key: "" if value is None else str(value) for key, value in row.items()} for row in records]
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; check the path") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is not a readable table ({error}); give CSV in UTF-8, or Parquet") from None
    if not rows:
        raise DataError(f"{path} has no rows; list the images in it")
    return rows
