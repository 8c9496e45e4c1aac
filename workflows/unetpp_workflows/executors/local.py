"""Runs shards on threads of this process; knows nothing about what a shard is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from unetpp_workflows.executors.base import ATTEMPTS, OnCommit, Outcome, Result, ShardQueue, Task, Worker

if TYPE_CHECKING:
    from unetpp.segment import SegmentJob


def run_local(
    jobs: Sequence[SegmentJob], *, workers: int = 1, attempts: int = ATTEMPTS, on_commit: OnCommit | None = None
) -> tuple[Outcome, ...]:
    """Compute every pending shard of the jobs on `workers` threads; returns one outcome per job, in their order.

    Args:
        attempts: tries per shard before it is recorded as failed.
        on_commit: called in the calling thread after each committed shard.

    Raises:
        KeyboardInterrupt: after the running tiles have ended; committed shards stay committed.
    """
    queue = ShardQueue(jobs, attempts, on_commit)
    stop = threading.Event()
    kept = threading.local()
    opened: list[Worker] = []

    def work(task: Task) -> Result:
        if not hasattr(kept, "worker"):
            kept.worker = Worker(stop)
            opened.append(kept.worker)
        worker: Worker = kept.worker
        return worker.run(queue.jobs[task.job], task.shard, task.attempt)

    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="shard") as pool:
        running: dict[Future[Result], Task] = {}
        try:
            while True:
                while len(running) < max(1, workers) and (task := queue.take()) is not None:
                    running[pool.submit(work, task)] = task
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    queue.settle(running.pop(future), future.result())
        finally:
            # Also on Ctrl-C and on errors of the callback: threads end at their next tile instead of their last shard.
            stop.set()
    for worker in opened:
        worker.close()
    return queue.outcomes()
