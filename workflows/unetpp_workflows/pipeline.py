"""Runs one call from image names to figures, records and reports; knows the order of the steps, not how any is done.

    expand -> prepare each -> one queue of all shards -> finalize each -> score, picture, record, report, MLflow run

Images are prepared several at once; on a cluster they are finalized by its CPUs, and else one after the other here.

A bad image is one line in the summary and never stops the others. Everything resumes: a finished, unchanged image is
recognised by its record alone.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from unetpp.durable import discard_folder
from unetpp.errors import ConfigError, OutputError, UnetppError
from unetpp.io.remote import shown
from unetpp_workflows.archive import write_summary
from unetpp_workflows.config import RunConfig
from unetpp_workflows.events import EventLog
from unetpp_workflows.inputs import Source, assign_folders, expand, identity, owner
from unetpp_workflows.lease import Lease
from unetpp_workflows.machine import cpu_count, worker_count
from unetpp_workflows.manifest import Entry
from unetpp_workflows.metrics import RunMetrics, exported
from unetpp_workflows.progress import Display
from unetpp_workflows.selection import Selection
from unetpp_workflows.steps import Call, complete, failed, prepare, reuse, shown_config
from unetpp_workflows.summary import ImageResult, Summary

if TYPE_CHECKING:
    from unetpp.commit import CommitRecord
    from unetpp.job import SegmentJob
    from unetpp_workflows.executors.base import Only, Outcome
    from unetpp_workflows.truth import Truth

_PREPARED_AT_ONCE = 8
"""Opening an image mostly waits for its storage; each that is open may hold a thumbnail."""


def segment(
    inputs: Iterable[str | Path],
    model: str | Path | None = None,
    output: str | Path = "segmented",
    *,
    config: RunConfig | None = None,
    truths: Mapping[str, Truth] | None = None,
    selection: Selection | None = None,
    console: Console | None = None,
) -> Summary:
    """Segment images, folders and globs of images with one model into `output`, one folder per image.

    Args:
        model: `models:/name@alias`, `models:/name/3`, a bundled model's name or a package folder; wins over `config`.
        truths: Image -> known labels; the record and the report then hold the IoU per class.
        selection: Which of the images are worked on; all that are not finished by default.
        console: Where progress goes; standard output by default.

    Raises:
        ModelNotFoundError, ModelPackageError, ConfigError: Nothing can be segmented at all.
        StoreError: Another run is writing the output folder.
        OutputError: The output folder cannot be made. What is wrong with single images is in the summary instead.
    """
    started = time.perf_counter()
    selection = selection or Selection()
    call = start_call(config or RunConfig(), model, Display(console), truths or {})
    output = Path(output)
    make_folder(output)
    with Lease(output) as lease, exported(call.config.metrics, call.workers) as metrics:
        log = EventLog(output)
        sources, results = find_sources(inputs, output)
        sources = [source for source in sources if selection.takes(source)]
        log.write("run_started", images=len(sources), model=call.model.reference(), config=shown_config(call.config))
        jobs: dict[str, SegmentJob] = {}
        for source, ready in _all_prepared(call, sources, force=selection.force):
            if isinstance(ready, ImageResult):
                results[source.uri] = ready
                log_result(log, ready)
            else:
                jobs[source.uri] = ready
                log.write("image_prepared", image=source.name, uri=source.uri, shards=len(ready.plan.shards()))
                results[source.uri] = ImageResult(name=source.name, uri=source.uri, status="failed")  # keeps the place
        if jobs:
            outcomes = run_shards(call, list(jobs.values()), lease, log, metrics)
            _finish_on_cluster(call, [job for job, out in zip(jobs.values(), outcomes, strict=True) if not out.failed])
            for source, (uri, job), outcome in zip(
                (source for source in sources if source.uri in jobs), jobs.items(), outcomes, strict=True
            ):
                metrics.ended(outcome)
                for shard, message in outcome.failed.items():
                    log.write("shard_failed", image=source.name, shard=shard, message=message)
                results[uri] = _completed(call, source, job, outcome)
                log_result(log, results[uri])
        write_summary(output)
        summary = Summary(tuple(results.values()), time.perf_counter() - started)
        metrics.finished(Counter(image.status for image in summary.images), summary.exit_code)
        log.write("run_finished", exit_code=summary.exit_code, seconds=round(summary.seconds, 3))
    return summary


def start_call(config: RunConfig, model: str | Path | None, display: Display, truths: Mapping[str, Truth]) -> Call:
    """Resolve the model once for all images; raises `ModelNotFoundError`, `ModelPackageError` or `ConfigError`."""
    from unetpp.package import load_package
    from unetpp_workflows.registry import resolve

    reference = str(model or config.model)
    if not reference:
        raise ConfigError("no model; give --model nuclei, models:/name@alias or a package folder")
    if config.input.mask is not None and not config.input.mask.is_file():
        raise ConfigError(f"mask {config.input.mask} is no file; correct --mask")
    config = config.model_copy(update={"model": reference})
    resolved = resolve(reference, tracking_uri=config.tracking.uri)
    return Call(
        config=config,
        model=resolved,
        package=load_package(resolved.folder),
        display=display,
        workers=config.executor.workers or worker_count(config.engine.threads, gpus=config.engine.name != "openvino"),
        truths={identity(uri): truth for uri, truth in truths.items()},
    )


def make_folder(output: Path) -> None:
    """Make the output folder; raises `OutputError`."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{output}: {error.strerror or error}; choose an output folder that you may write to"
        ) from None


def find_sources(inputs: Iterable[str | Path], output: Path) -> tuple[list[Source], dict[str, ImageResult]]:
    """Return the images to segment with their folders, and a failed result for each input that names no image."""
    entries: dict[str, Entry] = {}
    results: dict[str, ImageResult] = {}
    for item in inputs:
        try:
            for entry in expand([item]):
                entries.setdefault(entry.uri, entry)
        except UnetppError as error:
            name = shown(str(item))
            results[name] = ImageResult(name=name, uri=name, status="failed", message=str(error))
    return assign_folders(entries.values(), output), results


def log_result(log: EventLog, result: ImageResult) -> None:
    """Write down how an image ended."""
    facts = {"status": result.status, "reused": result.reused, "seconds": round(result.seconds, 3)}
    log.write("image_finished", image=result.name, uri=result.uri, message=result.message, **facts)


def _all_prepared(
    call: Call, sources: Iterable[Source], *, force: bool
) -> Iterator[tuple[Source, SegmentJob | ImageResult]]:
    """Yield every image, in order, with what `prepared` says of it; several are opened at once."""
    threads = min(_PREPARED_AT_ONCE, 2 * cpu_count())
    waiting: deque[tuple[Source, Future[SegmentJob | ImageResult]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
        try:
            for source in sources:
                waiting.append((source, pool.submit(prepared, call, source, force=force)))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def prepared(call: Call, source: Source, *, force: bool) -> SegmentJob | ImageResult:
    """Return an image's job, ready to be computed, or its result where nothing is to do or it cannot be prepared."""
    try:
        if force and owner(source.folder) is not None:
            discard_folder(source.folder)
        return reuse(call, source) or prepare(call, source)
    except Exception as error:  # noqa: BLE001 (one bad image of an archive must not stop the others; it is reported)
        return failed(source, error)


def _completed(call: Call, source: Source, job: SegmentJob, outcome: Outcome) -> ImageResult:
    try:
        with call.display.step(f"finishing {source.name}"):
            return complete(call, source, job, outcome.failed)
    except Exception as error:  # noqa: BLE001 (as above)
        return failed(source, error)


def _finish_on_cluster(call: Call, jobs: Sequence[SegmentJob]) -> None:
    """Make the products of several images on a cluster's CPUs; `complete` finds them, or makes what is missing."""
    options, output = call.config.executor, call.config.output
    if options.kind != "ray" or options.address is None or len(jobs) < 2:
        return
    from unetpp.finalize import finalize
    from unetpp_workflows.executors.ray import run_each

    with call.display.step(f"finishing {len(jobs)} images on the cluster"):
        run_each(partial(finalize, formats=output.formats, instances=output.instances), jobs, address=options.address)


def run_shards(
    call: Call,
    jobs: Sequence[SegmentJob],
    lease: Lease,
    log: EventLog,
    metrics: RunMetrics,
    only: Only | None = None,
) -> Sequence[Outcome]:
    """Compute all pending shards of all images, or only some, in one queue under one progress display."""
    from unetpp.job import pending

    total = sum(only is None or only(job, shard) for job in jobs for shard in pending(job))
    options = call.config.executor
    metrics.queued(total, jobs[0].engine.device)
    title = f"segmenting {len(jobs)} image{'s' if len(jobs) > 1 else ''}"
    with call.display.shards(total, title) as (meter, shown):

        def on_commit(job: SegmentJob, record: CommitRecord) -> None:
            lease.check()
            facts = {"valid_px": record.valid_px, "attempt": record.attempt, "seconds": record.seconds}
            log.write("shard_committed", image=job.out.name, shard=record.shard, **facts)
            meter.add(record.valid_px, record.seconds)
            metrics.committed(record)
            shown()

        if options.kind == "ray":
            from unetpp_workflows.executors.ray import run_ray

            return run_ray(
                jobs,
                workers=call.workers,
                address=options.address,
                attempts=options.attempts,
                on_commit=on_commit,
                only=only,
            )
        from unetpp_workflows.executors.local import run_local

        return run_local(jobs, workers=call.workers, attempts=options.attempts, on_commit=on_commit, only=only)
