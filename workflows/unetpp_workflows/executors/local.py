"""Runs shards on threads of this process, idle ones helping; knows of a shard only how many tiles it has."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from unetpp.io.remote import is_remote
from unetpp_workflows.executors.base import (
    ATTEMPTS,
    SHARDS_PER_SLOT,
    Crew,
    OnCommit,
    OnEnded,
    Outcome,
    Places,
    Result,
    ShardQueue,
    Task,
)
from unetpp_workflows.machine import cpu_count

if TYPE_CHECKING:
    from unetpp.segment import SegmentJob


def run_local(
    jobs: Sequence[SegmentJob],
    *,
    workers: int = 1,
    attempts: int = ATTEMPTS,
    on_commit: OnCommit | None = None,
    on_ended: OnEnded | None = None,
    places: Sequence[Places] | None = None,
) -> tuple[Outcome, ...]:
    """Compute every pending shard of the jobs, `workers` at once; returns one outcome per job, in their order.

    Args:
        workers: tiles that are computed at once; half as many shards again are read or written meanwhile, as many again
            of remote images, and one per core on a GPU. Threads that no shard is left for help with those of others.
        attempts, on_commit, on_ended, places: see `ShardQueue`; called in the calling thread.

    Raises:
        KeyboardInterrupt: after the running tiles have ended; committed shards stay committed.
    """
    queue = ShardQueue(jobs, attempts, on_commit, on_ended, places)
    workers = max(1, min(workers, len(queue) * max((_tiles_per_shard(job) for job in jobs), default=1)))
    # From a local disk reading is short, from afar it mostly waits.
    remote = any(is_remote(job.uri) for job in jobs)
    threads = SHARDS_PER_SLOT * workers if remote else workers + (workers + 1) // 2
    if any(job.engine.device != "cpu" for job in jobs):
        threads = max(threads, workers + cpu_count())
    crew = Crew(workers, threads)
    try:
        # Twice: a shard that failed may be tried again when all threads help.
        with ThreadPoolExecutor(2 * threads, thread_name_prefix="shard") as pool:
            try:
                _drain(queue, crew, pool, threads)
            finally:
                # Also on Ctrl-C and on an error of the callback: threads end at their next tile.
                crew.stop.set()
                crew.send_helpers_home()
    finally:
        crew.close()
    return queue.outcomes()


def _drain(queue: ShardQueue, crew: Crew, pool: ThreadPoolExecutor, threads: int) -> None:
    running: dict[Future[Result], Task] = {}
    helpers = 0
    while True:
        while len(running) < threads and (task := queue.take()) is not None:
            job = queue.jobs[task.job]
            running[pool.submit(crew.run, job, task.shard, task.attempt)] = task
        if not running:
            return
        while helpers < threads - len(running):
            pool.submit(crew.help)
            helpers += 1
        if len(running) < threads:
            crew.rest()
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            queue.settle(running.pop(future), future.result())


def _tiles_per_shard(job: SegmentJob) -> int:
    return (job.plan.shard // job.plan.core) ** 2
