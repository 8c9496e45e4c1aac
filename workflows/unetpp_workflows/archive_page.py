"""Draws one self-contained page of an output folder: all its images, figures, failures and runs; segments nothing.

Of many images the page shows those most worth a look; summary.csv has every image. Memory grows with the number of
images and of runs, a row each, and not with objects or shards: those are counted in bins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import write_file
from unetpp.errors import StoreError, one_line
from unetpp_workflows.archive import Row, rows_of
from unetpp_workflows.events import LOGS
from unetpp_workflows.plots import Line, curves, dot_rows
from unetpp_workflows.plots import Row as PlotRow
from unetpp_workflows.prepare.page import jpeg
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.report import PICTURE, REPORT, area_text, labels_or_fault

_SHOWN, _SIDE, _OPACITY = 60, 320, 0.5
_BINS, _RUNS, _LINES = 48, 12, 200
_FINE = 1024
_OBJECT_TABLE = "instances.parquet"
_STATUS = ("done", "empty", "partial", "failed", "damaged", "running or interrupted")


@dataclass
class Run:
    """One call of `unetpp segment`, from its log: when, how many images, and when its shards were finished.

    `bins` holds valid pixels by the time their shard was finished: `width` seconds each, which double as time goes on,
    so that a run of any length has as many. `last` is when the last shard was.
    """

    started: str
    images: int = 0
    exit_code: int | None = None
    seconds: float = 0.0
    shards: int = 0
    valid_px: int = 0
    last: float = 0.0
    width: float = 1e-3
    bins: list[int] = field(default_factory=lambda: [0] * _FINE)

    def add(self, seconds: float, valid_px: int) -> None:
        """Count a shard that was finished `seconds` after the start."""
        self.shards, self.valid_px, self.last = self.shards + 1, self.valid_px + valid_px, seconds
        while seconds >= self.width * _FINE:
            self.bins = [a + b for a, b in zip(self.bins[::2], self.bins[1::2], strict=True)] + [0] * (_FINE // 2)
            self.width *= 2
        self.bins[max(0, int(seconds / self.width))] += valid_px


@dataclass
class Sizes:
    """Objects of one class: how many there are in bins of area, four per doubling, and in all."""

    unit: str
    color: tuple[int, int, int]
    count: int = 0
    bins: dict[int, int] = field(default_factory=dict)

    def add(self, areas: NDArray[np.float64]) -> None:
        numbers = np.floor(4 * np.log2(areas[areas > 0])).astype(int)
        self.count += len(areas)
        for number, found in zip(*np.unique(numbers, return_counts=True), strict=True):
            self.bins[int(number)] = self.bins.get(int(number), 0) + int(found)

    def median(self) -> float:
        """Return the middle of the bin that half of the objects are below; NaN without objects."""
        below = 0
        for number in sorted(self.bins):
            below += self.bins[number]
            if 2 * below >= self.count:
                return float(2 ** ((number + 0.5) / 4))
        return math.nan


def write_archive_page(output: Path, folders: Sequence[Path]) -> Path:
    """Write report.html of an output folder and return its path.

    Raises:
        StoreError: labels, picture or objects of an image are damaged; the page is written without them and says so.
        OutputError: the page cannot be written.
    """
    import jinja2

    rows = rows_of(folders)
    by_name = {folder.name: folder for folder in folders}
    shown = sorted(rows, key=_interest)[:_SHOWN]
    cards = [card for row in shown if (card := _card(by_name[row["name"]], row)) is not None]
    sizes, unread = object_sizes(folders)
    runs = read_runs(output)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unetpp_workflows"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("archive.html.j2").render(
        name=output.absolute().name,
        counts=[(status, number) for status in _STATUS if (number := sum(r["status"] == status for r in rows))],
        lead=_lead(rows),
        failures=[row for row in rows if row["status"] not in ("done", "empty")][:_LINES],
        unusual=[row for row in rows if row.get("unusual")][:_LINES],
        areas=area_plots(folders),
        objects=[_object_row(name, found) for (name, _), found in sorted(sizes.items())],
        sizes=_size_plot(sizes),
        unread=unread,
        throughput=_throughput_plot(runs),
        stages=_stage_plot(rows),
        runs=[_run_row(run) for run in runs[-_RUNS:][::-1]],
        images=cards,
        total=len(rows),
        ranked=any("uncertainty_rank" in row for row in rows),
    )
    path = output / REPORT
    write_file(path, page.encode())
    faults = [*unread, *(fault for card in cards for fault in card["faults"])]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise StoreError(f"{path} is drawn without what is damaged: {faults[0]}{more}")
    return path


def read_runs(output: Path) -> list[Run]:
    """Return the runs into a folder from their logs, oldest first; a line that was cut short is passed over."""
    runs = []
    for path in sorted((output / LOGS).glob("*.jsonl")):
        run, start = None, None
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    event = json.loads(line)
                    moment = datetime.fromisoformat(event["time"])
                except (ValueError, KeyError, TypeError):
                    continue
                if event["event"] == "run_started":
                    run, start = Run(event["time"], int(event.get("images", 0))), moment
                elif run is not None and start is not None:
                    run.seconds = (moment - start).total_seconds()
                    if event["event"] == "shard_committed":
                        run.add(run.seconds, int(event.get("valid_px", 0)))
                    elif event["event"] == "run_finished":
                        run.exit_code = int(event["exit_code"])
        if run is not None:
            runs.append(run)
    return runs


def object_sizes(folders: Iterable[Path]) -> tuple[dict[tuple[str, str], Sizes], list[str]]:
    """Return the sizes of all split objects per class name and unit, read in batches, and which tables do not read.

    No sizes where no objects were split; of a damaged table what comes before the damage counts.
    """
    import pyarrow as pa

    sizes: dict[tuple[str, str], Sizes] = {}
    faults = []
    for folder in folders:
        path, record = folder / _OBJECT_TABLE, _record(folder)
        if record is None or not path.is_file():
            continue
        try:
            _add_sizes(sizes, path, {info["name"]: info for info in record.figures.get("classes", ())})
        except (pa.ArrowException, OSError) as error:
            faults.append(f"{path} is damaged ({one_line(error)}); run `unetpp verify --repair`, then segment again")
    return sizes, faults


def _add_sizes(sizes: dict[tuple[str, str], Sizes], path: Path, classes: Mapping[str, Mapping[str, Any]]) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as table:
        area = next((c for c in ("area_um2", "area_m2", "area_px") if c in table.schema_arrow.names), None)
        if area is None:
            return
        for batch in table.iter_batches(columns=["name", area]):
            names = np.asarray(batch.column(0).to_pylist(), object)
            values = batch.column(1).to_numpy(zero_copy_only=False).astype(np.float64)
            for name in set(names):
                info = classes.get(name, {"color": (128, 128, 128)})
                unit = {"area_um2": "µm²", "area_m2": "m²"}.get(area, "px")
                sizes.setdefault((str(name), unit), Sizes(unit, tuple(info["color"]))).add(values[names == name])


def area_plots(folders: Iterable[Path]) -> dict[str, Any]:
    """Return the share of the valid pixels that every class has, over all images and in each, as a plot and totals."""
    shares: dict[str, list[float]] = {}
    totals: dict[str, dict[str, float]] = {}
    px: dict[str, int] = {}
    colors: dict[str, tuple[int, int, int]] = {}
    valid = 0
    for record in filter(None, map(_record, folders)):
        here = int(record.figures.get("valid_px", 0))
        valid += here
        for info in record.figures.get("classes", ()) if here else ():
            name = str(info["name"])
            shares.setdefault(name, []).append(info["px"] / here)
            px[name] = px.get(name, 0) + info["px"]
            colors[name] = tuple(info["color"])
            units = totals.setdefault(name, {})
            units[info["unit"]] = units.get(info["unit"], 0.0) + info["area"]
    rows = [PlotRow(name, px[name] / valid, dots=_thinned(shares[name]), color=colors[name]) for name in shares]
    return {
        "plot": dot_rows(rows, x="share of the valid pixels", title="Share of every class") if rows else None,
        "rows": [
            {"name": name, "color": colors[name], "areas": ", ".join(area_text(a, u) for u, a in totals[name].items())}
            for name in totals
        ],
    }


def _thinned(values: list[float], most: int = 400) -> list[float]:
    ordered = sorted(values)
    return ordered if len(ordered) <= most else [ordered[k * len(ordered) // most] for k in range(most)]


def _interest(row: Row) -> tuple[Any, ...]:
    """Order rows: what is not done first, then by rank of uncertainty, then by name."""
    done = row["status"] in ("done", "empty")
    return done, row.get("uncertainty_rank", math.inf), row["name"]


def _lead(rows: Sequence[Row]) -> str:
    models = sorted({f"{r['model']} {r.get('model_version') or ''}".strip() for r in rows if r.get("model")})
    pixels = sum(r.get("valid_px") or 0 for r in rows)
    size = f"{pixels / 1e9:,.1f} Gpx" if pixels >= 1e9 else f"{pixels / 1e6:,.1f} Mpx"
    told = f"{len(rows):,} images · {size} valid"
    return told + (f" · model {', '.join(models[:5])}" if models else "")


def _object_row(name: str, found: Sizes) -> dict[str, Any]:
    return {"name": name, "color": found.color, "count": f"{found.count:,}",
            "median": f"{found.median():.4g} {found.unit}"}  # fmt: skip


def _size_plot(sizes: Mapping[Any, Sizes]) -> Any:
    """Plot how many objects of each class have which size, in octaves; classes measured in one unit only."""
    if len({found.unit for found in sizes.values()}) != 1:
        return None
    numbers = [number for found in sizes.values() for number in found.bins]
    low, high = min(numbers), max(numbers) + 1
    lines = [
        Line([((b + 0.5) / 4, found.bins.get(b, 0) / found.count) for b in range(low, high)], found.color)
        for found in sizes.values()
    ]
    top = max(y for line in lines for _, y in line.points)
    unit = next(iter(sizes.values())).unit
    return curves(lines, x=f"area, log2 of {unit}", y="share of the objects", x_range=(low / 4, high / 4),
                  y_range=(0, top * 1.05), title="Sizes of objects")  # fmt: skip


def _throughput_plot(runs: Sequence[Run]) -> Any:
    """Plot valid megapixels per second over the last run that computed anything."""
    run = next((run for run in reversed(runs) if run.shards), None)
    if run is None:
        return None
    end = max(1e-3, run.last)
    rates = np.zeros(min(_BINS, run.shards))
    width = end / len(rates)
    for number, pixels in enumerate(run.bins):
        rates[min(len(rates) - 1, int((number + 0.5) * run.width / width))] += pixels / 1e6 / width
    minutes = end > 300
    scale, name = (60.0, "minutes") if minutes else (1.0, "seconds")
    bars = [(k * width / scale, (k + 1) * width / scale, float(rate)) for k, rate in enumerate(rates)]
    mean = run.valid_px / 1e6 / end
    return curves([Line([(0, mean), (end / scale, mean)], dashed=True)], x=f"{name} since {run.started[:16]} UTC",
                  y="Mpx/s", x_range=(0, end / scale), y_range=(0, max(float(rates.max()), 1e-9) * 1.05),
                  bars=bars, title="Throughput of the last run")  # fmt: skip


def _stage_plot(rows: Sequence[Row]) -> Any:
    totals: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("seconds_") and value:
                stage = name.removeprefix("seconds_")
                totals[stage] = totals.get(stage, 0.0) + value
    if not totals:
        return None
    longest = max(totals.values())
    ordered = sorted(totals.items(), key=lambda item: -item[1])[:10]
    return dot_rows([PlotRow(stage, value, 0.0, value) for stage, value in ordered], x="seconds over all workers",
                    x_range=(0, longest), title="Time per stage")  # fmt: skip


def _run_row(run: Run) -> list[str]:
    speed = f"{run.valid_px / 1e6 / run.seconds:.2f}" if run.seconds > 0 and run.valid_px else "-"
    end = {None: "did not end", 0: "done"}.get(run.exit_code, "a part failed")
    return [run.started[:19].replace("T", " "), f"{run.images:,}", f"{run.shards:,}", f"{run.valid_px / 1e6:,.1f}",
            f"{run.seconds:,.0f}", speed, end]  # fmt: skip


def _card(folder: Path, row: Row) -> dict[str, Any] | None:
    """Return the thumbnail of an image with its classes over it, and its figures; None for one without a record."""
    record = _record(folder)
    if record is None:
        return None
    labels, fault = labels_or_fault(folder, record, 2 * _SIDE)
    faults = [fault] if fault else []
    try:
        picture = _thumbnail(folder, record, labels)
    except (OSError, ValueError, SyntaxError) as error:  # all that Pillow raises for files that are no pictures
        picture = None
        faults.append(f"{folder / PICTURE} is damaged ({one_line(error)}); segment it again with --force")
    figures = [
        {"name": info["name"], "color": info["color"], "area": area_text(info["area"], info["unit"]),
         "objects": info.get("instances", info["objects"])}
        for info in record.figures.get("classes", ()) if not info["background"]
    ]  # fmt: skip
    return {
        "name": row["name"],
        "status": row["status"],
        "message": row.get("message"),
        "link": f"{folder.name}/{REPORT}" if (folder / REPORT).is_file() else None,
        "picture": picture,
        "faults": faults,
        "figures": figures,
        "rank": row.get("uncertainty_rank"),
        "uncertainty": f"{row['uncertainty_mean']:.4f}" if row.get("uncertainty_mean") is not None else None,
        "agreement": f"{row['shadow_agreement']:.4f}" if row.get("shadow_agreement") is not None else None,
    }


def _thumbnail(folder: Path, record: ImageRecord, labels: NDArray[np.uint8] | None) -> str | None:
    from PIL import Image

    if not (folder / PICTURE).is_file():
        return None
    with Image.open(folder / PICTURE) as picture:
        picture.thumbnail((_SIDE, _SIDE))
        rgb = np.asarray(picture.convert("RGB"), np.float32).copy()
    if labels is not None:
        rows = np.arange(rgb.shape[0]) * labels.shape[0] // rgb.shape[0]
        cols = np.arange(rgb.shape[1]) * labels.shape[1] // rgb.shape[1]
        small = labels[np.ix_(rows, cols)]
        for info in record.model.get("classes", []):
            if not info["background"]:
                here = small == info["value"]
                rgb[here] = rgb[here] * (1 - _OPACITY) + np.array(info["color"], np.float32) * _OPACITY
    return jpeg(rgb.clip(0, 255).astype(np.uint8))


def _record(folder: Path) -> ImageRecord | None:
    try:
        return ImageRecord.read(folder)
    except StoreError:
        return None  # the row of the table says so
