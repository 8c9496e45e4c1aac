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
    crew = _Crew(queue)
    workers = max(1, min(workers, len(queue)))
    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="shard") as pool:
            try:
                _drain(queue, crew, pool, workers)
            finally:
                # Also on Ctrl-C and on an error of the callback: threads end at their next tile.
                crew.stop.set()
    finally:
        crew.close()
    return queue.outcomes()


def _drain(queue: ShardQueue, crew: _Crew, pool: ThreadPoolExecutor, workers: int) -> None:
    running: dict[Future[Result], Task] = {}
    while True:
        while len(running) < workers and (task := queue.take()) is not None:
            running[pool.submit(crew.work, task)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            queue.settle(running.pop(future), future.result())


class _Crew:
    """One worker per thread, made when its thread first works."""

    def __init__(self, queue: ShardQueue) -> None:
        self.stop = threading.Event()
        self._queue = queue
        self._own = threading.local()
        self._all: list[Worker] = []

    def work(self, task: Task) -> Result:
        if not hasattr(self._own, "worker"):
            self._own.worker = Worker(self.stop)
            self._all.append(self._own.worker)
        worker: Worker = self._own.worker
        return worker.run(self._queue.jobs[task.job], task.shard, task.attempt)

    def close(self) -> None:
        for worker in self._all:
            worker.close()
