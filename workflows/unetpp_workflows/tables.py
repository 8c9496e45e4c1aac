"""Reads small tables of text, CSV or Parquet, as one mapping per row; knows nothing of what columns mean."""

from __future__ import annotations

import csv
from pathlib import Path

from unetpp.errors import DataError


def read_table(path: Path) -> list[dict[str, str]]:
    """Return a table's rows; missing values, NaN among them, are "". Blanks around a CSV's values do not count.

    Raises:
        DataError: the file is missing, no readable CSV (UTF-8) or Parquet, has no rows, two columns of one name, or a
            row with more values than columns.
    """
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            records = pyarrow.parquet.read_table(path).to_pylist()
            rows = [{key: _text(value) for key, value in row.items()} for row in records]
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = _csv_rows(path, csv.DictReader(file, skipinitialspace=True))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; check the path") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is not a readable table ({error}); give CSV in UTF-8, or Parquet") from None
    if not rows:
        raise DataError(f"{path} has no rows; list the images in it")
    return rows


def _csv_rows(path: Path, reader: csv.DictReader[str]) -> list[dict[str, str]]:
    names = [name.strip() for name in reader.fieldnames or ()]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has the column {twice!r} twice; leave one out")
    reader.fieldnames = names
    rows = []
    for number, row in enumerate(reader, 1):
        if any(row.pop(None, ())):  # where DictReader puts values without a column
            raise DataError(f'{path}, row {number}: more values than columns; write what has commas as "1,2,3,4"')
        rows.append({key: (value or "").strip() for key, value in row.items() if key})
    return rows


def _text(value: object) -> str:
    """Return a cell as text, "" for what is missing: NaN is, as no number is unlike itself."""
    return "" if value is None or value != value else str(value)
