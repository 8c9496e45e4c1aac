"""Makes many images ready to be computed, several at once, here or on a cluster's CPUs; knows no shard of them.

Whoever opens an image also looks which of its shards are done: a driver that checked the ten million records of a large
archive by itself would take minutes, and network storage longer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from unetpp.errors import EngineError, ModelPackageError
from unetpp.native.support import WHOLE
from unetpp_workflows.inputs import JOB, Source
from unetpp_workflows.machine import cpu_count
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.steps import Call, failed, prepare, reuse
from unetpp_workflows.summary import ImageResult

if TYPE_CHECKING:
    from unetpp.job import EngineChoice, SegmentJob
    from unetpp.segment import JobOptions
    from unetpp_workflows.executors.base import Places

log = logging.getLogger(__name__)
_PREPARED_AT_ONCE = 8
"""Opening an image mostly waits for its storage; each that is open may hold a thumbnail."""
_BATCHES_AT_ONCE, _IMAGES_PER_BATCH = 64, 256
"""On a cluster: asking it for one batch costs the driver as much as for one image."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image that can be computed: its job, which of its shards, and the seconds of each step so far.

    `replaces` says that the image's folder held a finished result of another job, which is gone now.
    """

    source: Source
    job: SegmentJob
    places: Places
    seconds: Mapping[str, float]
    replaces: bool = False


def all_prepared(
    call: Call, sources: Sequence[Source], *, force: bool
) -> Iterator[tuple[Source, Prepared | ImageResult]]:
    """Yield every image, in order, with what `prepared` says of it; several are opened at once."""
    stop = threading.Event()
    work: Callable[..., list[Prepared | ImageResult]]
    if call.address is not None:
        call = replace(call, choice=_choice(call))
    if call.address is not None and len(sources) > 1:
        # Every CPU gets some: of few images each has a call of its own.
        at_once, size = _BATCHES_AT_ONCE, max(1, min(_IMAGES_PER_BATCH, len(sources) // _BATCHES_AT_ONCE))
        from unetpp_workflows.executors.session import share

        call = share(call)
        work = partial(_prepared_there, stop)
    else:
        at_once, size = min(_PREPARED_AT_ONCE, 2 * cpu_count()), 1
        work = _prepared_batch
    waiting: deque[tuple[Sequence[Source], Future[list[Prepared | ImageResult]]]] = deque()
    with ThreadPoolExecutor(at_once, thread_name_prefix="prepare") as pool:
        try:
            for begin in range(0, len(sources), size):
                batch = sources[begin : begin + size]
                waiting.append((batch, pool.submit(work, call, batch, force=force)))
                if len(waiting) > at_once:
                    first, future = waiting.popleft()
                    yield from zip(first, future.result(), strict=True)
            while waiting:
                first, future = waiting.popleft()
                yield from zip(first, future.result(), strict=True)
        finally:
            stop.set()
            for _, future in waiting:
                future.cancel()


def _prepared_batch(call: Call, sources: Sequence[Source], *, force: bool) -> list[Prepared | ImageResult]:
    return [prepared(call, source, force=force) for source in sources]


def _prepared_there(
    stop: threading.Event, shared: Call, sources: Sequence[Source], *, force: bool
) -> list[Prepared | ImageResult]:
    """Prepare images on the cluster; one that takes its process with it is found by preparing each alone."""
    from unetpp_workflows.executors.session import on_cluster

    try:
        return on_cluster(partial(_prepared_batch, force=force), shared, sources, stop=stop)
    except EngineError as error:
        if len(sources) == 1:
            return [failed(sources[0], error)]
    return [ready for source in sources for ready in _prepared_there(stop, shared, [source], force=force)]


def prepared(call: Call, source: Source, *, force: bool = False) -> Prepared | ImageResult:
    """Return an image's job, ready to be computed, or its result where nothing is to do or it cannot be prepared.

    Raises:
        EngineError, ModelPackageError: the model cannot run here as the call wants it: no image of it would end better.
    """
    from unetpp_workflows.executors.base import pending_places

    try:
        # Whatever it says: the folder is this image's, see `assign_folders`, and a damaged job is made anew, too.
        anew = force and (source.folder / JOB).exists()
        if not anew and (found := reuse(call, source)) is not None:
            return found
        before = None if anew else ImageRecord.read(source.folder)
        job = prepare(call, source, anew=anew)
        places = pending_places(job)
        # A copy, without what the job has opened: a call may keep a million.
        replaces = before is not None and before.status == "done" and before.key != job.key
        return Prepared(source, replace(job), places, call.seconds[source.uri], replaces)
    except (EngineError, ModelPackageError):
        raise
    except Exception as error:  # noqa: BLE001 (one bad image of an archive must not stop the others; it is reported)
        return failed(source, error)


def _choice(call: Call) -> EngineChoice:
    """Return the engine that a cluster's workers will take, for the machines that prepare images may have another one.

    It is that of this machine, or of one with a GPU: where the cluster has any, or the engine for them is named, for
    which a cluster that grows starts its first. A head seldom has one.
    """
    from unetpp.segment import chosen_engine
    from unetpp_workflows.executors.session import gpus_there, on_cluster

    engine = call.config.engine
    options: JobOptions = {
        "engine": engine.name, "precision": engine.precision, "threads": engine.threads, "tta": engine.tta
    }  # fmt: skip
    there = gpus_there() > 0
    if engine.name == "triton" and not there:
        log.warning("the Ray cluster has no GPU for the engine triton: waiting for one")
    elif not there or engine.name in ("native", "openvino") or engine.precision in WHOLE:
        return chosen_engine(call.package, options)
    return on_cluster(chosen_engine, call.package, options, stop=threading.Event(), gpu=True)
