"""Keeps what this machine's engine was measured to do, and estimates from it what a plan will take; measures nothing.

An estimate scales the measured row by the multiply-adds of all tiles that have valid pixels. Reading and writing run
beside computing and are taken to be hidden by it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetpp.durable import write_file
from unetpp.engine.work import leaves_margins_out, useful_share
from unetpp.home import home
from unetpp.model import GridConfig
from unetpp.model.margins import multiply_adds
from unetpp.model.orientations import turns
from unetpp_workflows.machine import cpu_count, cpu_name

if TYPE_CHECKING:
    from unetpp.engine.bench import BenchRow
    from unetpp.job import SegmentJob
    from unetpp.package import ModelSpec


@dataclass(frozen=True)
class Measured:
    """The rows of a bench of one model on this machine, and when they were measured."""

    date: str
    architecture: GridConfig
    rows: tuple[dict[str, Any], ...]


def save(architecture: GridConfig, rows: Sequence[BenchRow]) -> Path:
    """Keep a bench for `load`; returns its file. Raises `OutputError`."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "architecture": dataclasses.asdict(architecture),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_file(path, (json.dumps(values, indent=1) + "\n").encode())
    return path


def load() -> Measured | None:
    """Return this machine's bench; None where there is none, or only one of another machine or version."""
    try:
        values = json.loads(_path().read_bytes())
        if values["machine"] != _machine():
            return None
        return Measured(values["date"], GridConfig.from_dict(values["architecture"]), tuple(values["rows"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def estimate(measured: Measured, job: SegmentJob, spec: ModelSpec, valid_share: float) -> float | None:
    """Estimate the seconds of a whole image's computing; None where the job's engine and precision were not measured.

    Args:
        valid_share: of the image's pixels; tiles are taken to be computed in proportion.
    """
    engine, plan = job.engine, job.plan
    alike = [row for row in measured.rows if (row["engine"], row["precision"]) == (engine.name, engine.precision)]
    if not alike:
        return None
    area = plan.tile_shape[0] * plan.tile_shape[1]
    row = min(alike, key=lambda row: abs(row["tile"] ** 2 - area))
    each = multiply_adds(measured.architecture)
    rate: float = row["written_mpx_s"] * 1e6 * each / row["useful_share"]  # multiply-adds per second, useful or not
    return computed_pixels(job, spec) * multiply_adds(spec.architecture, spec.network) * valid_share / rate


def computed_pixels(job: SegmentJob, spec: ModelSpec) -> float:
    """Return the image's multiply-adds in those that a pixel needs without any halo."""
    height, width = job.plan.tile_shape
    times = len(turns(job.engine.tta))
    if not leaves_margins_out(job.engine.name):
        return float(times * job.plan.tile_count * height * width)
    total = 0.0
    for margins, number in job.plan.margin_kinds(exact=job.engine.name == "native").items():
        if times > 1 and len(set(margins)) > 1:  # see `averaged_tile`
            total += times * number * height * width
            continue
        top, left, bottom, right = margins
        inner = (height - top - bottom) * (width - left - right)
        total += times * number * inner / useful_share(job.engine.name, spec, (height, width), margins)
    return total


def _path() -> Path:
    return home() / "bench.json"


def _machine() -> dict[str, Any]:
    from importlib import metadata

    versions = {name: metadata.version(name) for name in ("torch", "openvino", "llvmlite") if _installed(name)}
    return {"cpu": cpu_name(), "cores": cpu_count(), **versions}


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
