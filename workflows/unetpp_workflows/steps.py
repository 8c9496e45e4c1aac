"""Takes one image of a call from its name to its record; knows the steps of one image, not the other images.

reuse, prepare, complete    on any machine that sees the files
track                       where the call began
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetpp.commit import limiting_stage
from unetpp.errors import RegistryError, UnetppError
from unetpp.geometry import Spacing
from unetpp.job import RECORD
from unetpp.package import WEIGHTS
from unetpp.store import OUTPUT_FORMAT
from unetpp_workflows.attention import write_attention
from unetpp_workflows.config import RunConfig
from unetpp_workflows.drift import job_profile, unlike_training
from unetpp_workflows.inputs import Source, identity
from unetpp_workflows.machine import freed_memory_kept
from unetpp_workflows.mlflow_store import Silence, shown, store_uri
from unetpp_workflows.record import CONFIG, ImageRecord, software, write_json
from unetpp_workflows.report import PICTURE, REPORT, SIDE, write_picture, write_report
from unetpp_workflows.stac import ITEM, write_item
from unetpp_workflows.summary import ImageResult

if TYPE_CHECKING:
    from unetpp.finalize import Figures, Report
    from unetpp.job import EngineChoice, Progress, SegmentJob
    from unetpp.package import Package
    from unetpp.profile import Profile
    from unetpp.segment import JobOptions
    from unetpp_workflows.registry import ResolvedModel
    from unetpp_workflows.truth import Truth

log = logging.getLogger(__name__)
_one_writer = threading.Lock()


@dataclass
class Call:
    """What all images of a call share; may travel to the machines of a cluster.

    `choice` is the engine where it is chosen once for all of them, `seconds` the time of each image's steps.
    """

    config: RunConfig
    model: ResolvedModel
    package: Package
    workers: int
    truths: Mapping[str, Truth] = field(default_factory=dict)
    choice: EngineChoice | None = None
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    silence: Silence = field(default_factory=Silence)

    @property
    def address(self) -> str | None:
        """Return where the cluster is, None where all runs on this machine."""
        return self.config.executor.address if self.config.executor.kind == "ray" else None

    def config_of(self, source: Source) -> RunConfig:
        """Return the configuration with what a manifest says of this image."""
        given = (("spacing", source.spacing), ("mask", source.mask), ("region", source.region))
        own = {name: value for name, value in given if value is not None}
        if not own:
            return self.config
        return self.config.model_copy(update={"input": self.config.input.model_copy(update=own)})

    @contextmanager
    def timed(self, uri: str, step: str) -> Iterator[None]:
        """Add the time of a step to the seconds of one image."""
        started = time.perf_counter()
        try:
            yield
        finally:
            steps = self.seconds.setdefault(uri, {})
            steps[step] = steps.get(step, 0.0) + time.perf_counter() - started


def reuse(call: Call, source: Source) -> ImageResult | None:
    """Return the result of an earlier call when nothing that could change it has changed, else None."""
    from unetpp.io.base import fingerprint

    record = ImageRecord.read(source.folder)
    if record is None or record.status not in ("done", "empty") or record.output_format != OUTPUT_FORMAT:
        return None
    configured = record.config_hash == result_hash(call, source)
    same = configured and record.model.get("digest") == call.package.digest
    recorded = record.warning is None and (record.tracking_run is not None or not call.config.tracking.enabled)
    there = _has_formats(call, record) and all((source.folder / path).exists() for path in record.outputs.values())
    if not (same and recorded and there) or fingerprint(source.uri) != record.input.get("fingerprint"):
        return None
    return ImageResult.of(source.folder, record, uri=source.uri, reused=True)


def _has_formats(call: Call, record: ImageRecord) -> bool:
    """Say whether an image has what this call wants of it."""
    from unetpp.finalize import default_formats
    from unetpp.io.resample import OutputGrid

    formats = call.config.output.formats
    wanted = default_formats(OutputGrid.from_json(record.grid)) if formats is None else formats
    if call.config.output.into_source and not _holds_label(record):
        return False
    maps = set(call.config.output.maps) <= set(record.outputs)
    return (
        maps and set(wanted) <= set(record.formats) and call.config.output.instances == ("instances" in record.outputs)
    )


def _holds_label(record: ImageRecord) -> bool:
    """Say whether the source holds this very result's label: one of another output may have replaced it."""
    from unetpp.finalize.source_label import label_key

    return record.source_label is not None and label_key(Path(record.source_label)) == record.key


def prepare(call: Call, source: Source, *, anew: bool = False) -> SegmentJob:
    """Open, check and plan one image, and write its job and configuration. Raises what is wrong with the image.

    Args:
        anew: forget what its folder holds, once it is planned.
    """
    from unetpp.finalize import discard_products
    from unetpp.segment import SegmentJob, prepare_job

    config = call.config_of(source)
    before = None if anew else SegmentJob.load(source.folder)
    with call.timed(source.uri, "prepare"):
        job = prepare_job(source.uri, source.folder, call.package, anew=anew, **job_options(call, source))
    if before is not None and before.key != job.key:
        discard_products(source.folder)
    (source.folder / ITEM).unlink(missing_ok=True)
    (source.folder / RECORD).unlink(missing_ok=True)  # from here on the folder is this job's, and not finished
    write_json(source.folder / CONFIG, {"config": shown_config(config), "hash": result_hash(call, source)})
    return job


def result_hash(call: Call, source: Source) -> str:
    """Return the hash of all that can change an image's result but the image and the model."""
    try:
        truth = _truth(call, source.uri, source.folder.name)
    except UnetppError:
        truth = None  # the folder has none for this image, which is said where it is scored
    return call.config_of(source).result_hash(truth.path if truth is not None else None)


def stored_config_hash(folder: Path) -> str | None:
    """Return the hash of the configuration that an image's folder was prepared with, None where it says none."""
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def job_options(call: Call, source: Source) -> JobOptions:
    """Return an image's configuration as the options of `unetpp.segment`."""
    config = call.config_of(source)
    return {
        "spacing": config.input.parsed_spacing(),
        "mask": config.input.mask,
        "region": config.input.region,
        "tissue": config.input.tissue,
        "engine": config.engine.name,
        "precision": config.engine.precision,
        "threads": config.engine.threads,
        "tta": config.engine.tta,
        "core": config.tiling.core,
        "shard": config.tiling.shard,
        "maps": config.output.maps,
        "model_ref": call.model.reference(),
        "choice": call.choice,
    }


def failed(source: Source, error: BaseException) -> ImageResult:
    """Turn an error into the image's result, and into its record unless an earlier success is recorded there."""
    if isinstance(error, UnetppError):
        message = " ".join(str(error).split())
    else:
        log.error("%s: unexpected error", source.uri, exc_info=error)
        message = f"{source.uri}: unexpected {type(error).__name__}: {' '.join(str(error).split())}"
    record = ImageRecord(
        name=source.name, status="failed", message=message, input={"uri": source.uri}, finished=utc_now()
    )
    try:
        source.folder.mkdir(parents=True, exist_ok=True)
        earlier = ImageRecord.read(source.folder)
        if earlier is None or earlier.status == "failed":
            record.write(source.folder)
    except (UnetppError, OSError) as second:
        message += f" (and no record could be written: {second})"
    return ImageResult(name=source.name, uri=source.uri, status="failed", folder=source.folder, message=message)


def complete(
    call: Call,
    source: Source,
    job: SegmentJob,
    failures: Mapping[str, str],
    before: Mapping[str, float],
    report: Report | None = None,
) -> ImageResult:
    """Finalize an image whose shards have run, score it, and write picture, report and record.

    Args:
        before: seconds of its earlier steps, which another machine may have made.
        report: the progress callback of `finalize`; what it raises ends the work, and the next call goes on with it.
    """
    from unetpp.finalize import finalize
    from unetpp.job import progress

    state, output = progress(job), call.config.output
    record = _record(call, source, job, state, failures)
    if state.status != "partial":
        with call.timed(job.uri, "finalize"), freed_memory_kept(), ThreadPoolExecutor(1, "look") as beside:
            looks = beside.submit(_looked_at, call, job)
            figures = finalize(job, formats=output.formats, instances=output.instances, progress=report)
            profile = looks.result()
        record = replace(record, figures=_figures(job, figures), outputs=dict(figures.outputs))
        unusual = [item.to_json() for item in unlike_training(profile, call.package.spec.training)]
        record = replace(record, formats=list(figures.formats), profile=profile, unusual=unusual)
        record = _scored(call, job, record)
        record = _labelled(call, job, record)
    with call.timed(job.uri, "report"):
        if state.status == "partial":
            _write_picture(job)
        if "attention" in record.figures:
            _write_attention(job, record)
    record = replace(
        record,
        seconds={**state.seconds, **before, **call.seconds[job.uri]},
        limited_by=limiting_stage(state.seconds),
        outputs={**record.outputs, "report": REPORT},
        finished=utc_now(),
    )
    if record.figures:
        item = write_item(job.out, record, call.package.spec, str(job.package / WEIGHTS))
        record = replace(record, outputs={**record.outputs, **({"stac": item} if item else {})})
    write_report(job.out, record)
    record = record.write(job.out)
    return ImageResult.of(job.out, record, uri=job.uri, seconds=sum(record.seconds.values()))


def track(call: Call, job: SegmentJob, result: ImageResult) -> ImageResult:
    """Write a finished image into MLflow, where the call wants that; a store that does not take it is only a warning.

    A step of its own, for the driver alone: the store may be a file of its machine.
    """
    if result.status not in ("done", "empty") or not call.config.tracking.enabled:
        return result
    record = ImageRecord.read(job.out)
    assert record is not None
    record = _tracked(call, job, record)
    write_report(job.out, record)  # now it names its MLflow run
    return ImageResult.of(job.out, record.write(job.out), uri=job.uri, seconds=result.seconds)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def shown_config(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, without the password of a tracking URI."""
    values = config.model_dump(mode="json")
    if values["tracking"]["uri"]:
        values["tracking"]["uri"] = shown(values["tracking"]["uri"])
    return values


def _record(call: Call, source: Source, job: SegmentJob, state: Progress, failures: Mapping[str, str]) -> ImageRecord:
    messages = {
        "empty": "no pixel of this image is valid (all background or no data): nothing was segmented",
        "partial": f"{state.shards - state.committed} of {state.shards} shards are not done: "
        + (next(iter(failures.values())) if failures else "interrupted"),
    }
    config = call.config_of(source)
    return ImageRecord(
        name=job.out.name,
        status=state.status,
        message=messages.get(state.status),
        input={
            "uri": job.uri,
            "fingerprint": job.fingerprint,
            **job.image,
            "spacing": str(Spacing(**job.image["spacing"])) if job.image["spacing"] else None,
            "spacing_override": str(job.spacing_override) if job.spacing_override else None,
            "tissue": job.tissue,
            "mask": job.mask,
            "region": job.region,
        },
        model={
            **job.model_ref,
            "alias": call.model.alias,
            "spacing": str(call.package.spec.spacing) if call.package.spec.spacing else None,
            "classes": [asdict(c) for c in job.classes],
        },
        key=job.key,
        config=shown_config(config),
        config_hash=result_hash(call, source),
        engine=job.engine.to_json(),
        executor={**call.config.executor.model_dump(exclude={"address"}), "workers": call.workers},
        grid=job.grid.to_json(),
        plan={**job.plan.to_json(), "tile_shape": job.plan.tile_shape, "useful_share": job.plan.useful_share},
        software=software(),
        shards={
            "total": state.shards,
            "committed": state.committed,
            "invalid": state.empty,
            "valid_px": state.valid_px,
            "retries": state.retried,
            "sha256": state.labels,
            "failed": dict(failures),
        },
        started=utc_now(),
    )


def _figures(job: SegmentJob, figures: Figures) -> dict[str, Any]:
    classes = []
    for info in job.classes:
        area, objects = figures.areas[info.name], figures.objects.get(info.name)
        entry = {**asdict(info), "px": area.px, "area": area.value, "unit": area.unit, "objects": objects}
        if figures.instances is not None:
            entry["instances"] = figures.instances.get(info.name)
        classes.append(entry)
    found = {"valid_px": sum(entry["px"] for entry in classes), "method": figures.method, "classes": classes}
    return found if figures.attention is None else {**found, "attention": figures.attention}


def _looked_at(call: Call, job: SegmentJob) -> Profile:
    """Write the picture of an image and return its profile."""
    _write_picture(job)
    return job_profile(job, call.package.spec)


def _scored(call: Call, job: SegmentJob, record: ImageRecord) -> ImageRecord:
    """Return the record with the IoU where there is a truth; a truth that does not fit is only a warning."""
    from unetpp_workflows.truth import score

    try:
        truth = _truth(call, job.uri, job.out.name)
        return replace(record, iou=score(job.store, job.grid, job.classes, truth)) if truth else record
    except UnetppError as error:
        return replace(record, warning=f"not scored: {error}")


def _truth(call: Call, uri: str, name: str) -> Truth | None:
    """Return the known labels of an image whose folder has this name. Raises `DataError` where a folder lacks them."""
    from unetpp.io.bands import split_item
    from unetpp.io.video import split_frame
    from unetpp_workflows.truth import Truth, find_truth

    known = call.truths.get(identity(uri))
    if known is not None or call.config.truth.path is None:
        return known
    # Frames of a video and items of a band list share a file: their folders have names of their own.
    alone = split_frame(uri) is None and split_item(uri) is None
    path = find_truth(call.config.truth.path, Path(uri).stem if alone else name)
    return Truth(path, call.config.truth.classes)


def _labelled(call: Call, job: SegmentJob, record: ImageRecord) -> ImageRecord:
    """Return the record with the label in the source where it is asked for; a source that takes none is a warning."""
    from unetpp.finalize.source_label import write_source_label

    if not call.config.output.into_source:
        return record
    try:
        return replace(record, source_label=str(write_source_label(job)))
    except UnetppError as error:
        warning = "; ".join(filter(None, (record.warning, f"not written into the source: {error}")))
        return replace(record, warning=warning)


def _tracked(call: Call, job: SegmentJob, record: ImageRecord) -> ImageRecord:
    """Return the record with its MLflow run; a store that does not take it is only a warning.

    A dead store costs seconds to minutes of every image that asks it: the next ones do not, for a while. They have the
    same warning, so that the next call records them.
    """
    from unetpp_workflows.tracking import log_segmentation

    uri = store_uri(call.config.tracking.uri)
    # Several images may be finished at once, and SQLite takes one writer.
    turn = _one_writer if uri.startswith("sqlite:") else nullcontext()
    with turn, call.timed(job.uri, "tracking"):
        began = time.monotonic()
        try:
            if call.silence.holds():
                raise RegistryError(call.silence.why)
            run = log_segmentation(record, job.out, tracking_uri=call.config.tracking.uri)
        except UnetppError as error:
            call.silence.begin(began, str(error))
            warning = "; ".join(filter(None, (record.warning, f"not recorded in MLflow: {error}")))
            return replace(record, warning=warning)
    return replace(record, tracking_uri=shown(uri), tracking_run=run)


def _write_picture(job: SegmentJob) -> None:
    from unetpp.io import open_raster
    from unetpp.io.base import thumbnail

    with open_raster(job.uri) as raster:
        window = thumbnail(raster, SIDE)
        write_picture(job.out / PICTURE, window.pixels, window.valid)


def _write_attention(job: SegmentJob, record: ImageRecord) -> None:
    from unetpp.io import open_raster

    with open_raster(job.uri) as raster:
        write_attention(job, raster, record.figures["attention"]["regions"])
