"""Says what a segmentation would do, image by image, without computing or writing anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from unetpp.errors import EngineError, ModelPackageError, UnetppError
from unetpp.geometry import Box
from unetpp.model.orientations import turns
from unetpp.region import Region
from unetpp_workflows.cli_options import DONE, PART_FAILED, plain_table
from unetpp_workflows.config import RunConfig
from unetpp_workflows.estimates import Measured, computed_pixels, estimate, load
from unetpp_workflows.fitting import fitted, need_of
from unetpp_workflows.pipeline import find_sources, start_call
from unetpp_workflows.steps import Call, job_options

if TYPE_CHECKING:
    from unetpp.job import EngineChoice, SegmentJob
    from unetpp.package import ModelSpec
    from unetpp_workflows.inputs import Source

_THUMBNAIL_SIDE = 1024
_WIDE = 100
"""Columns of a terminal that hold all of the table's."""


@dataclass(frozen=True)
class ImagePlan:
    """The plan of one image.

    Attributes:
        valid_share: Of the pixels, estimated on a thumbnail.
        source_bytes: Size of the input file, 0 where it is no single file.
        committed: Shards that are finished already in the output folder.
        spec: Of the model.
        seconds: Of the whole image's computing, None where this machine was not measured.
    """

    name: str
    job: SegmentJob
    valid_share: float
    source_bytes: int
    committed: int
    spec: ModelSpec
    seconds: float | None = None

    @property
    def pixels(self) -> int:
        return self.job.plan.height * self.job.plan.width

    @property
    def shards(self) -> int:
        return len(self.job.plan.shards())

    @property
    def seconds_left(self) -> float | None:
        return None if self.seconds is None else self.seconds * (1 - self.committed / self.shards)


def print_plan(inputs: Iterable[str], config: RunConfig, output: Path | None, console: Console) -> int:
    """Print the plan of every image and their sum; returns the exit code: 1 where an image cannot be planned.

    Raises:
        EngineError, ModelPackageError: see `unetpp_workflows.preparing.prepared`.
    """
    call = start_call(config, None, {})
    sources, unnamed = find_sources(inputs, output or Path("segmented"))
    measured = load()
    problems = [str(result.message) for result in unnamed.values()]
    plans = []
    for source in sources:
        try:
            plans.append(plan_image(call, source, measured))
        except (EngineError, ModelPackageError):
            raise
        except (UnetppError, OSError) as error:
            problems.append(" ".join(str(error).split()))
    if plans:
        console.print(_table(plans, wide=console.width >= _WIDE))
    for problem in problems:
        console.print(f"failed: {problem}", markup=False, highlight=False, soft_wrap=True)
    if plans:
        console.print(_totals(plans), highlight=False, soft_wrap=True)
        console.print(_time(plans, measured), highlight=False, soft_wrap=True)
        for line in _memory(call, plans):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return PART_FAILED if problems else DONE


def plan_image(call: Call, source: Source, measured: Measured | None = None) -> ImagePlan:
    """Plan one image; raises what is wrong with it."""
    from unetpp.io import open_raster
    from unetpp.io.base import thumbnail
    from unetpp.job import SegmentJob, progress
    from unetpp.segment import plan_job

    job, coverage = plan_job(source.uri, source.folder, call.package, **job_options(call, source))
    if coverage.mask is not None:
        valid = coverage.mask.mask
    else:
        with open_raster(source.uri) as raster:
            valid = thumbnail(raster, _THUMBNAIL_SIDE).valid
    before = SegmentJob.load(source.folder)
    same = before is not None and before.key == job.key
    spec = call.package.spec
    share = float((valid & _inside(coverage.region, job, valid.shape)).mean())
    return ImagePlan(
        name=source.name,
        job=job,
        valid_share=share,
        source_bytes=_size(source.uri),
        committed=progress(job).committed if same else 0,
        spec=spec,
        seconds=estimate(measured, job, spec, share) if measured else None,
    )


def _inside(region: Region | None, job: SegmentJob, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which pixels of a thumbnail (h, w) of the output grid have their centre in the region."""
    if region is None:
        return np.ones(shape, bool)
    scale = np.array([shape[1] / job.plan.width, shape[0] / job.plan.height])
    small = Region(tuple(tuple(ring * scale for ring in polygon) for polygon in region.polygons))
    return small.crop(Box(0, 0, shape[0], shape[1]))


def _size(uri: str) -> int:
    from unetpp.io.remote import find_object, is_remote

    if is_remote(uri):
        found = find_object(uri.rstrip("/"))
        return found.size if found is not None else 0
    path = Path(uri)
    return path.stat().st_size if path.is_file() else 0


def _table(plans: list[ImagePlan], *, wide: bool) -> Table:
    """Return one row per image; where it is narrow, names matter more than how tiles are cut."""
    tiles = ("tile", "useful") if wide else ()
    table = plain_table("image", "pixels", "at", "valid", "done/shards", *tiles, "time left")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for plan in plans:
        tiling = plan.job.plan
        table.add_row(
            escape(plan.name),
            f"{tiling.width} x {tiling.height}",
            str(plan.job.grid.spacing or "?"),
            f"{plan.valid_share:.0%}",
            f"{plan.committed}/{plan.shards}",
            *(_tiles(plan) if wide else ()),
            _duration(plan.seconds_left),
        )
    return table


def _tiles(plan: ImagePlan) -> tuple[str, str]:
    """Return the tiles' size and how much of what they compute, in each orientation, is written."""
    shape = "x".join(str(side) for side in reversed(plan.job.plan.tile_shape))
    written = plan.pixels * len(turns(plan.job.engine.tta))
    return shape, f"{written / computed_pixels(plan.job, plan.spec):.0%}"


def _totals(plans: list[ImagePlan]) -> str:
    pixels, shards, done = (sum(getattr(plan, name) for plan in plans) for name in ("pixels", "shards", "committed"))
    valid = sum(plan.valid_share * plan.pixels for plan in plans)
    engines = dict.fromkeys(_engine(plan.job.engine) for plan in plans)
    return (
        f"{len(plans)} image{'s' if len(plans) > 1 else ''}, {pixels / 1e6:,.1f} Mpx of which {valid / pixels:.0%} are "
        f"valid, {shards:,} shards of which {done:,} are done; {decimal(sum(plan.source_bytes for plan in plans))} in, "
        f"{decimal(pixels)} of labels before compression; engine {', '.join(engines)}"
    )


def _engine(choice: EngineChoice) -> str:
    orientations = "" if choice.tta == "none" else f" with tta {choice.tta}"
    return f"{choice.name} {choice.precision}{orientations}"


def _time(plans: list[ImagePlan], measured: Measured | None) -> str:
    """Say how long the rest will compute here."""
    if measured is None or any(plan.seconds is None for plan in plans):
        return "estimated time: unknown; run `unetpp doctor --bench` once on this machine"
    left, workers = _duration(sum(plan.seconds_left or 0.0 for plan in plans)), measured.rows[0]["workers"]
    return (
        f"estimated from the bench of {measured.date}: {left} of computing with {workers} workers on this machine; "
        "finishing (polygons, pyramid) comes on top"
    )


def _memory(call: Call, plans: list[ImagePlan]) -> list[str]:
    """Say how much memory that takes on this machine, and whether the run will take fewer workers for want of it."""
    if call.address is not None or any(plan.job.engine.device != "cpu" for plan in plans):
        return []
    jobs = [plan.job for plan in plans]
    lines: list[str] = []
    call = fitted(call, jobs, lines.append)
    workers = f"{call.workers} worker{'s' if call.workers > 1 else ''}"
    return [*lines, f"estimated memory: about {need_of(call, jobs).of(call.workers) / 1e9:.1f} GB with {workers}"]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
