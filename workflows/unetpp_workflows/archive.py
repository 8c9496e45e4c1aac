"""One row per image of an output folder, as a table of all runs into it; knows records, segments nothing.

Columns: name, uri, status, message, fingerprint, model, model_version, model_digest, spacing, height, width (of the
result), valid_px, valid_share, area_<unit>_<class>, instances_<class>, objects_<class>, uncertainty_mean,
uncertainty_rank (1: of all images of the folder the one most worth a look), shadow_agreement, seconds_<stage>,
limited_by, shards, committed, retries (shards that needed more than one attempt), labels_sha256, finished,
profile_<number> (what the image looks like, see unetpp.profile), unusual (which of that is unlike the training images,
or unlike the other images here that the same model segmented). A class, a unit or a stage that an image does not have
is empty there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from unetpp.durable import write_file
from unetpp.errors import ConfigError, StoreError
from unetpp_workflows.drift import PROFILE, unlike_archive, words
from unetpp_workflows.record import ImageRecord

SUMMARY = "summary"
Row = dict[str, Any]


def write_summary(output: Path) -> None:
    """Replace summary.parquet and summary.csv of an output folder, one row per image folder. Raises `OutputError`."""
    from unetpp_workflows.outputs import image_folders

    try:
        folders = image_folders(output)
    except ConfigError:
        return  # nothing that could be opened: there is no image folder
    columns = _columns(rows_of(folders))
    write_file(output / f"{SUMMARY}.parquet", _parquet(columns))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_file(output / f"{SUMMARY}.csv", text.getvalue().encode())


def _parquet(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Return columns, one row at least, as a Parquet file.

    They go through JSON, which Arrow reads by itself. Of Python's values it makes arrays only after it has asked pandas
    what they are, and importing pandas takes a third of a second at the end of every command.
    """
    import pyarrow.json
    import pyarrow.parquet

    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    lines = io.BytesIO("\n".join(map(json.dumps, rows)).encode())
    schema = pyarrow.schema([(name, _arrow_type(name)) for name in columns])
    table = pyarrow.json.read_json(lines, parse_options=pyarrow.json.ParseOptions(explicit_schema=schema))
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(table, parquet, compression="zstd")
    return parquet.getvalue()


def print_rows(output: Path, console: Console) -> int:
    """Print the rows as lines of JSON; returns the exit code: 1 where an image failed or lacks a part."""
    from unetpp_workflows.cli_options import DONE, PART_FAILED
    from unetpp_workflows.outputs import image_folders

    code = DONE
    for row in rows_of(image_folders(output)):
        console.file.write(json.dumps(row, ensure_ascii=False) + "\n")
        code = PART_FAILED if row["status"] in ("failed", "partial", "damaged") else code
    return code


def rows_of(folders: Iterable[Path]) -> list[Row]:
    """Return the rows of an archive's image folders, each with what only a look at all of them tells."""
    rows = _ranked(image_row(folder) for folder in folders)
    for row, found in zip(rows, unlike_archive(rows), strict=True):
        row["unusual"] = "; ".join(filter(None, (row.get("unusual"), words(found)))) or None
    return rows


def image_row(folder: Path) -> Row:
    """Return the row of one image's folder.

    A finished image's row comes from its record alone; only where there is none are commit records counted.
    """
    from unetpp_workflows.outputs import read_state

    try:
        record = ImageRecord.read(folder)
    except StoreError as error:
        return _head(folder.name, "damaged", str(error))
    if record is None or record.status in ("partial", "failed"):
        state = read_state(folder)
        if record is None or state.status != record.status:
            return _head(folder.name, state.status, state.message) | _planned(folder)
    return _row(folder, record)


def _head(name: str, status: str, message: str | None) -> Row:
    return {"name": name, "uri": None, "status": status, "message": message or None}


def _planned(folder: Path) -> Row:
    """Return what is known of an image that is being segmented, or was interrupted."""
    from unetpp.commit import limiting_stage
    from unetpp.job import SegmentJob, progress

    try:
        job = SegmentJob.load(folder)
    except StoreError:
        return {}
    if job is None:
        return {}
    state = progress(job)
    return {
        "uri": job.uri,
        "fingerprint": job.fingerprint,
        "model": job.model_ref.get("name"),
        "model_version": _text(job.model_ref.get("version")),
        "model_digest": job.model_ref.get("digest"),
        "height": job.plan.height,
        "width": job.plan.width,
        "valid_px": state.valid_px,
        "valid_share": state.valid_px / (job.plan.height * job.plan.width),
        "shards": state.shards,
        "committed": state.committed,
        "retries": state.retried,
        "labels_sha256": state.labels,
        **{f"seconds_{stage}": seconds for stage, seconds in state.seconds.items()},
        "limited_by": limiting_stage(state.seconds),
    }


def _row(folder: Path, record: ImageRecord) -> Row:
    height, width = record.grid.get("height"), record.grid.get("width")
    valid = record.shards.get("valid_px")
    row = _head(folder.name, record.status, record.message) | {
        "uri": record.input.get("uri"),
        "fingerprint": record.input.get("fingerprint"),
        "model": record.model.get("name"),
        "model_version": _text(record.model.get("version")),
        "model_digest": record.model.get("digest"),
        "spacing": _spacing(record),
        "height": height,
        "width": width,
        "valid_px": valid,
        "valid_share": valid / (height * width) if height and width and valid is not None else None,
    }
    for info in record.figures.get("classes", ()):
        row[f"area_{info['unit']}_{info['name']}"] = info["area"]
        for counted in ("objects", "instances"):
            if info.get(counted) is not None:
                row[f"{counted}_{info['name']}"] = info[counted]
    if record.shadow is not None:
        row["shadow_agreement"] = record.shadow["agreement"]
    if (attention := record.figures.get("attention")) and attention["mean"] is not None:
        row["uncertainty_mean"] = attention["mean"]
    row |= {
        "shards": record.shards.get("total"),
        "committed": record.shards.get("committed"),
        "retries": record.shards.get("retries"),
    }
    row |= {f"seconds_{stage}": seconds for stage, seconds in record.seconds.items()}
    row["limited_by"] = record.limited_by
    row |= {f"{PROFILE}{name}": value for name, value in record.profile.items()}
    row["unusual"] = words(record.unusual) or None
    return row | {"labels_sha256": record.shards.get("sha256"), "finished": record.finished or None}


def _spacing(record: ImageRecord) -> str | None:
    """Return the size of a pixel of the result."""
    from unetpp.geometry import Spacing

    spacing = record.grid.get("spacing")
    return str(Spacing(**spacing)) if spacing else None


def _ranked(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with their uncertainty_rank, where they have an uncertainty; equal ones in order of name."""
    found = list(rows)
    measured = [row for row in found if "uncertainty_mean" in row]
    for rank, row in enumerate(sorted(measured, key=lambda row: (-row["uncertainty_mean"], row["name"])), 1):
        row["uncertainty_rank"] = rank
    return found


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _arrow_type(name: str) -> str:
    """Return the type of a column: of values alone, one that is empty in this folder would have another elsewhere."""
    if name in _TEXT:
        return "string"
    return "int64" if name in _WHOLE or name.startswith(_COUNTED) else "float64"


def _columns(found: Sequence[Row]) -> dict[str, list[Any]]:
    """Turn rows into columns of equal length: those of every image first, then by kind, classes and stages by name."""
    names = dict.fromkeys(_FIRST) | dict.fromkeys(sorted({name for row in found for name in row if name not in _LAST}))
    return {name: [row.get(name) for row in found] for name in (*names, *_LAST)}


_TEXT = (
    *("name", "uri", "status", "message", "fingerprint", "model", "model_version", "model_digest", "spacing"),
    *("labels_sha256", "finished", "limited_by", "unusual"),
)
_WHOLE = ("height", "width", "valid_px", "shards", "committed", "retries", "uncertainty_rank")
_COUNTED = ("objects_", "instances_")
_FIRST = (*_TEXT[:9], "height", "width", "valid_px", "valid_share")
_LAST = ("unusual", "limited_by", "shards", "committed", "retries", "labels_sha256", "finished")
