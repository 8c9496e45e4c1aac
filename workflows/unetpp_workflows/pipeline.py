"""Runs one call from image names to figures, records and reports; knows the order of the steps, not how any is done.

    expand -> prepare each -> one queue of all shards -> complete each: products, score, picture, record -> MLflow run

Images are prepared several at once. Each is finished as soon as its own shards are done, beside the shards of the
others: its results are there early, and a run that is killed late has little left to finish. A cluster's CPUs prepare
and finish; the driver writes MLflow's runs.

A bad image is one line in the summary and never stops the others. Everything resumes: a finished, unchanged image is
recognised by its record alone.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from unetpp.errors import ConfigError, OutputError, UnetppError
from unetpp.io.remote import is_remote, local_path, open_object
from unetpp_workflows.archive import write_summary
from unetpp_workflows.config import RunConfig
from unetpp_workflows.events import EventLog
from unetpp_workflows.executors.local import run_local
from unetpp_workflows.finishing import Finishing, images_at_once
from unetpp_workflows.fitting import fitted
from unetpp_workflows.inputs import Source, assign_folders, expand, identity
from unetpp_workflows.lease import Lease
from unetpp_workflows.machine import rare_collections, worker_count
from unetpp_workflows.metrics import RunMetrics, exported
from unetpp_workflows.preparing import Prepared, all_prepared
from unetpp_workflows.progress import Display
from unetpp_workflows.selection import Selection
from unetpp_workflows.steps import Call, complete, failed, shown_config, track
from unetpp_workflows.summary import ImageResult, Summary

if TYPE_CHECKING:
    from unetpp.commit import CommitRecord
    from unetpp.job import SegmentJob
    from unetpp_workflows.executors.base import OnEnded, Outcome
    from unetpp_workflows.truth import Truth

Away = Callable[..., ImageResult]
"""`complete` of one call, elsewhere: takes the image's values and `stop`, an event that ends it."""


def segment(
    inputs: str | Path | Iterable[str | Path],
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
        inputs: What the command takes, see `unetpp_workflows.inputs`; one of them may be given by itself.
        model: `models:/name@alias`, `models:/name/3`, a bundled model's name or a package folder; wins over `config`.
        config: All other settings. Its `shadow` is for `unetpp_workflows.shadow.run_shadow`, which takes the summary.
        truths: Image -> known labels; the record and the report then hold the IoU per class.
        selection: Which of the images are worked on; all that are not finished by default.
        console: Where progress goes; standard output by default.

    Raises:
        ModelNotFoundError, ModelPackageError, ConfigError: Nothing can be segmented at all.
        EngineError: This machine cannot run the model as the configuration wants it.
        StoreError: Another run is writing the output folder.
        OutputError: The output folder cannot be made. What is wrong with single images is in the summary instead.
    """
    started = time.perf_counter()
    selection = selection or Selection()
    call, display = start_call(config or RunConfig(), model, truths or {}), Display(console)
    output = Path(output)
    make_folder(output)
    with (
        Lease(output) as lease,
        exported(call.config.metrics, output) as metrics,
        closing(EventLog(output)) as log,
    ):
        sources, results = find_sources([inputs] if isinstance(inputs, str | Path) else inputs, output)
        sources = selection.of(sources)
        log.write("run_started", images=len(sources), model=call.model.reference(), config=shown_config(call.config))
        found: list[Prepared] = []
        with rare_collections(len(sources)), _cluster(call):
            with display.images(len(sources), "opening images") as opened:
                for source, ready in all_prepared(call, sources, force=selection.force):
                    opened()
                    if isinstance(ready, ImageResult):
                        results[source.uri] = ready
                        log_result(log, ready)
                        continue
                    found.append(ready)
                    log.write("image_prepared", image=source.name, uri=source.uri, shards=len(ready.job.plan.shards()))
                    results[source.uri] = ImageResult(name=source.name, uri=source.uri, status="failed")  # its place
            if replaced := sum(ready.replaces for ready in found):
                display.say(
                    f"the results of {replaced} image(s) were made by another model, of other pixels or with other "
                    "settings, and are replaced"
                )
            if found:
                call = fitted(call, [ready.job for ready in found], display.say)
                results |= _finished(call, found, display, lease, log, metrics)
        summary = Summary(tuple(results.values()), time.perf_counter() - started)
        return _written_down(summary, output, log, metrics)


def start_call(config: RunConfig, model: str | Path | None, truths: Mapping[str, Truth]) -> Call:
    """Resolve the model once for all images; raises `ModelNotFoundError`, `ModelPackageError` or `ConfigError`."""
    from unetpp.package import load_package
    from unetpp_workflows.registry import resolve

    reference = str(model or config.model)
    if not reference:
        raise ConfigError("no model; give --model nuclei, models:/name@alias or a package folder")
    _check_mask(config.input.mask)
    config = config.model_copy(update={"model": reference})
    resolved = resolve(reference, tracking_uri=config.tracking.uri)
    return Call(
        config=config,
        model=resolved,
        package=load_package(resolved.folder),
        workers=config.executor.workers
        or worker_count(config.engine.threads, gpus=config.engine.name not in ("native", "openvino")),
        truths={identity(uri): truth for uri, truth in truths.items()},
    )


def _check_mask(mask: str | None) -> None:
    """Raise `ConfigError` where a mask for all images is not there."""
    try:
        if mask is not None and is_remote(mask):
            open_object(mask)
        elif mask is not None and not local_path(mask).exists():
            raise ConfigError(f"mask {mask} does not exist; correct --mask")
    except UnetppError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"mask {error}") from None


def make_folder(output: Path) -> None:
    """Make the output folder; raises `OutputError`."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{output}: {error.strerror or error}; choose an output folder that you may write to"
        ) from None


def find_sources(inputs: Iterable[str | Path], output: Path) -> tuple[list[Source], dict[str, ImageResult]]:
    """Return the images to segment with their folders, and a failed result for each input, or part of it, without."""
    entries, faults = expand(inputs)
    results = {name: ImageResult(name=name, uri=name, status="failed", message=why) for name, why in faults.items()}
    return assign_folders(entries, output), results


def _written_down(summary: Summary, output: Path, log: EventLog, metrics: RunMetrics) -> Summary:
    """Write how the call ended, and return the summary with what had no room: the images are done all the same."""
    try:
        write_summary(output)
    except OutputError as error:
        summary = summary.with_fault(error)
    log.write("run_finished", exit_code=summary.exit_code, seconds=round(summary.seconds, 3))
    summary = summary.with_fault(log.fault)
    metrics.finished(Counter(image.status for image in summary.images), summary.exit_code)
    metrics.update()
    return summary.with_fault(metrics.fault)


def log_result(log: EventLog, result: ImageResult) -> None:
    """Write down how an image ended."""
    facts = {"status": result.status, "reused": result.reused, "seconds": round(result.seconds, 3)}
    log.write("image_finished", image=result.name, uri=result.uri, message=result.message, **facts)


@contextmanager
def _cluster(call: Call) -> Iterator[None]:
    """Keep the session with a cluster open for all steps of the call."""
    if call.address is None:
        yield
        return
    from unetpp_workflows.executors.session import ray_session

    with redirect_stdout(sys.stderr), ray_session(call.address, cpus=1):
        yield


def _finished(
    call: Call, found: Sequence[Prepared], display: Display, lease: Lease, log: EventLog, metrics: RunMetrics
) -> dict[str, ImageResult]:
    """Compute all shards, finish every image as soon as it has its own, and return the results by URI."""
    by_folder = {ready.job.out: ready for ready in found}
    results: dict[str, ImageResult] = {}
    at_once = images_at_once(remote=call.address is not None)

    def ended(job: SegmentJob, outcome: Outcome) -> None:
        metrics.ended(outcome)
        finishing.begin(partial(finish, by_folder[job.out], outcome))

    def finish(ready: Prepared, outcome: Outcome) -> None:
        for shard, message in outcome.failed.items():
            log.write("shard_failed", image=ready.source.name, shard=shard, message=message)
        result = results[ready.source.uri] = _completed(call, away, ready, outcome, finishing)
        log_result(log, result)

    def note() -> str:
        return f"{len(results)} of {len(found)} images finished" if len(found) > 1 else ""

    with _away(call, at_once) as away, Finishing(at_once) as finishing:
        before = sum(math.prod(ready.job.plan.grid_shape) - len(ready.places) for ready in found)
        run_shards(call, found, display, lease, log, metrics, on_ended=ended, note=note, before=before)
        left = found[0].source.name if len(found) == 1 else f"{finishing.left} images"
        with display.step(f"finishing {left}") if finishing.left else nullcontext():
            finishing.wait()
    return results


@contextmanager
def _away(call: Call, at_once: int) -> Iterator[Away | None]:
    """Yield what completes images on a cluster or, where several are finished at once, in processes of this machine."""
    if call.address is not None:
        from unetpp_workflows.executors.session import on_cluster, share

        yield partial(on_cluster, complete, share(call))
    elif at_once > 1:
        from unetpp_workflows.executors.processes import Processes

        with Processes(partial(complete, call)) as processes:
            yield processes.call
    else:
        yield None


def _completed(call: Call, away: Away | None, ready: Prepared, outcome: Outcome, finishing: Finishing) -> ImageResult:
    """Finish an image elsewhere where that is possible, else here."""
    try:
        result = None if away is None or outcome.failed else _completed_away(away, ready, finishing)
        if result is None:
            result = complete(call, ready.source, ready.job, outcome.failed, ready.seconds, finishing.check)
        return track(call, ready.job, result)
    except CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 (one bad image of an archive must not stop the others; it is reported)
        return failed(ready.source, error)


def _completed_away(away: Away, ready: Prepared, finishing: Finishing) -> ImageResult | None:
    """Complete an image elsewhere; None where that failed, and the work there is continued here."""
    try:
        return away(ready.source, ready.job, {}, ready.seconds, stop=finishing.stop)
    except UnetppError as error:
        logging.getLogger(__name__).warning("%s: is finished once more, here: %s", ready.source.name, error)
        return None


def run_shards(
    call: Call,
    found: Sequence[Prepared],
    display: Display,
    lease: Lease,
    log: EventLog,
    metrics: RunMetrics,
    *,
    on_ended: OnEnded | None = None,
    note: Callable[[], str] = str,
    before: int = 0,
) -> Sequence[Outcome]:
    """Compute the shards of all images in one queue under one progress display; `before` were done by earlier calls."""
    total = sum(len(ready.places) for ready in found)
    options = call.config.executor
    metrics.queued(total, found[0].job.engine.device, call.workers)
    title = f"segmenting {len(found)} image{'s' if len(found) > 1 else ''}"
    with display.shards(total, title, note, before=before) as (meter, shown):

        def on_commit(job: SegmentJob, record: CommitRecord) -> None:
            lease.check()
            facts = {"valid_px": record.valid_px, "attempt": record.attempt, "seconds": record.seconds}
            log.write("shard_committed", image=job.out.name, shard=record.shard, **facts)
            meter.add(record.valid_px, record.seconds)
            metrics.committed(record)
            shown()

        run = partial(run_local, [ready.job for ready in found], workers=call.workers)
        if options.kind == "ray":
            from unetpp_workflows.executors.ray import run_ray

            run = partial(run_ray, *run.args, workers=call.workers, gpus=options.gpus, address=call.address)
        return run(
            attempts=options.attempts,
            on_commit=on_commit,
            on_ended=on_ended,
            places=[ready.places for ready in found],
        )
