"""Runs shards on Ray actors, on this machine or on a cluster; knows nothing about what a shard is.

One actor is one place to compute and one call is one try of one shard: the actor reads its own window and writes its
own shard, and only names and numbers travel. An actor has two calls at a time, so that one reads or writes while the
other computes. A GPU computes faster than a core decodes: beside it an actor has half of the cores that are its share
of the machine, and a call for each; the other half finishes images. A shard that failed comes again alone: if its
worker dies once more, no other shard pays for it.

A call costs the driver most of a millisecond, so that a thousand actors would wait for it: with hundreds of actors a
call is several shards, fewer towards the end.

Every node needs the same software and sees inputs, model and outputs under the same
paths. Ray's own retries are off: they would repeat a shard that kills its worker forever.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from unetpp.errors import EngineError, StoreError, UnetppError, one_line
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
from unetpp_workflows.executors.session import ray_session

if TYPE_CHECKING:
    from unetpp.segment import SegmentJob

Value = TypeVar("Value")
Shards = tuple[str, str, list[str]]
"""A job's folder and key, and which of its shards: all that travels."""
log = logging.getLogger(__name__)

_JOBS_KEPT = 64
_SLOTS_PER_SHARD = 16
"""A call is one shard up to so many slots, two up to twice as many: the driver has as many calls a second as ever."""


def run_ray(
    jobs: Sequence[SegmentJob],
    *,
    workers: int = 1,
    gpus: float | None = None,
    address: str | None = None,
    attempts: int = ATTEMPTS,
    on_commit: OnCommit | None = None,
    on_ended: OnEnded | None = None,
    places: Sequence[Places] | None = None,
) -> tuple[Outcome, ...]:
    """Compute every pending shard of the jobs on `workers` actors; returns one outcome per job, in their order.

    Args:
        gpus: of a GPU for each worker, where the engine is for GPUs; all share those that there are when not given.
        address: of a running cluster ("auto", "host:6379", "ray://..."); None starts Ray on this machine and stops it
            afterwards. A session that this process has open already is used, whatever the address, and left open.
        attempts, on_commit, on_ended, places: see `ShardQueue`; called in the calling thread.

    Raises:
        EngineError: Ray cannot run here, or no worker could start.
    """
    queue = ShardQueue(jobs, attempts, on_commit, on_ended, places)
    if not len(queue):
        return queue.outcomes()
    workers = max(1, min(workers, len(queue)))
    threads = _threads(queue.jobs)
    # Ray reports dead workers on standard output, which belongs to the program's results.
    with redirect_stdout(sys.stderr), ray_session(address, cpus=workers * threads):
        actors = _Actors(queue, workers, gpus)
        try:
            actors.drain()
        finally:
            actors.close()
    return queue.outcomes()


class ShardActor:
    """The process that computes shards, one at a time; Ray gives it as many OpenMP threads as CPUs.

    Args:
        calls: that it may have at once.
    """

    def __init__(self, calls: int) -> None:
        self._crew = Crew(slots=1, threads=calls)

    def ready(self) -> int:
        """Return the process id: the actor runs."""
        return os.getpid()

    def rest(self) -> None:
        """Close the images of the last shards: there are no more, and they may be finished now."""
        self._crew.rest()

    def run(self, jobs: Sequence[Shards], attempt: int) -> list[Result]:
        """Compute shards of one job after the other; where a job has failed, its other shards are not tried."""
        results = []
        for folder, key, shards in jobs:
            found = Result()
            for shard in shards:
                found = found if found.job_failed else self._run(folder, key, shard, attempt)
                results.append(found)
        return results

    def _run(self, folder: str, key: str, shard: str, attempt: int) -> Result:
        try:
            job = _prepared(folder, key)
        except UnetppError as error:
            return Result(error=one_line(error), job_failed=True)
        return self._crew.run(job, shard, attempt)


@lru_cache(_JOBS_KEPT)
def _prepared(folder: str, key: str) -> SegmentJob:
    """Read the job that the driver has prepared. Raises `StoreError`."""
    from unetpp.segment import SegmentJob

    job = SegmentJob.load(Path(folder))
    if job is None or job.key != key:
        raise StoreError(f"{folder} is not prepared as the driver did it; do all machines see the same folder there?")
    return job


class _Actors:
    """The actors of one call: starts them, gives them tasks, replaces the dead."""

    def __init__(self, queue: ShardQueue, workers: int, gpus: float | None = None) -> None:
        import ray

        self._queue = queue
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = _share(queue.jobs, workers, nodes, gpus)
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        if largest < share.cpus:
            # A cluster that grows may get such a machine; Ray itself would wait for it without a word.
            log.warning("no machine of the Ray cluster has %d CPUs for a worker, only %g: waiting for one, or lower "
                        "engine.threads", share.cpus, largest)  # fmt: skip
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0, "max_task_retries": 0}
        options["max_concurrency"] = self._most = share.calls
        self._actor_class = ray.remote(**options, scheduling_strategy="SPREAD")(ShardActor)
        # Whoever waits for the next of a thousand answers must not look at all of them each time: they report here.
        self._answers: SimpleQueue[Future[Any]] = SimpleQueue()
        self._running: dict[Future[Any], tuple[Any, Sequence[Task]]] = {}
        self._calls = 0  # of those running, without the starts
        self._slots = workers * self._most
        self._free: dict[Any, int] = {}  # calls that each living actor can still take
        self._by_free: list[dict[Any, None]] = [{} for _ in range(self._most + 1)]  # the same, the other way round
        self._workers = workers
        self._failed_starts = 0  # while no worker lived
        self._missing = 0  # of the workers, while others live
        for _ in range(workers):
            self._start()

    def drain(self) -> None:
        """Return when every task is settled."""
        while self._assign():
            self._collect(self._answers.get())

    def close(self) -> None:
        import ray

        for actor in {*self._free, *(actor for actor, _ in self._running.values())}:
            ray.kill(actor)

    def _start(self) -> None:
        actor = self._actor_class.remote(self._most)
        self._send(actor.ready.remote(), actor, ())

    def _send(self, reference: Any, actor: Any, tasks: Sequence[Task]) -> None:
        future = reference.future()
        self._running[future] = (actor, tasks)
        self._calls += bool(tasks)
        future.add_done_callback(self._answers.put)

    def _assign(self) -> bool:
        """Give tasks to actors; False when nothing is left to wait for."""
        while (actor := self._freest()) is not None and (tasks := self._queue.take_some(self._per_call())):
            self._set_free(actor, self._free[actor] - self._taken(tasks))
            self._send(actor.run.remote(self._names(tasks), tasks[0].attempt), actor, tasks)
        return len(self._queue) > 0 or self._calls > 0

    def _names(self, tasks: Sequence[Task]) -> list[Shards]:
        by_job = groupby(tasks, key=lambda task: task.job)
        jobs = [(self._queue.jobs[index], [task.shard for task in same]) for index, same in by_job]
        return [(str(job.out), job.key, shards) for job, shards in jobs]

    def _per_call(self) -> int:
        """Return how many shards a call takes: all actors have work to the end, and none waits for the driver."""
        return max(1, min(self._slots // _SLOTS_PER_SHARD, len(self._queue) // (2 * self._slots)))

    def _freest(self) -> Any | None:
        """Return the actor that can take the next task and has the least to do, None where all are busy."""
        needed = self._most if self._queue.retrying else 1
        return next((actor for free in range(self._most, needed - 1, -1) for actor in self._by_free[free]), None)

    def _taken(self, tasks: Sequence[Task]) -> int:
        """Return how many of an actor's calls some tasks take: all of them where they failed before."""
        return self._most if tasks[0].attempt > 1 else 1

    def _set_free(self, actor: Any, calls: int) -> None:
        self._forget(actor)
        self._free[actor] = calls
        self._by_free[calls][actor] = None

    def _forget(self, actor: Any) -> bool:
        """Count with an actor no longer; False where that is so already."""
        calls = self._free.pop(actor, None)
        if calls is not None:
            del self._by_free[calls][actor]
        return calls is not None

    def _collect(self, future: Future[Any]) -> None:
        import ray

        actor, tasks = self._running.pop(future)
        self._calls -= bool(tasks)
        try:
            results = future.result()
        except ray.exceptions.RayTaskError as error:
            results = [Result(error=one_line(error.cause))] * len(tasks)
        except ray.exceptions.RayError as error:
            self._replace(actor, tasks, error)
            return
        if not tasks:
            self._failed_starts = 0
            self._set_free(actor, self._most)
            return
        if actor in self._free:
            self._set_free(actor, self._free[actor] + self._taken(tasks))
            if self._free[actor] == self._most and not len(self._queue):
                actor.rest.remote()
        for task, result in zip(tasks, results, strict=True):
            self._queue.settle(task, result)
        if self._missing and len(self._queue):
            self._missing -= 1
            self._start()

    def _replace(self, actor: Any, tasks: Sequence[Task], error: Exception) -> None:
        """Start another actor for one that died; certainly dead first, for one shard has one writer."""
        import ray

        ray.kill(actor)
        first = self._forget(actor) or not tasks  # the dead actor's other call comes here too
        for task in tasks:
            message = f"the worker process died on try {task.attempt} (killed, or out of memory)"
            self._queue.settle(task, Result(error=message))
        if not tasks:
            if self._free:
                # A node that went, or cannot have one: the others go on, and one of their next answers tries again.
                self._missing += 1
                return
            self._failed_starts += 1
            if self._failed_starts >= ATTEMPTS * self._workers:
                raise EngineError(f"Ray cannot start a worker ({one_line(error)}); is unetpp installed on every node?")
        if first:
            self._start()


@dataclass(frozen=True, slots=True)
class _Share:
    """What one worker has of a session: CPUs, a part of a GPU, and calls at once."""

    cpus: int
    gpus: float
    calls: int


def _share(
    jobs: Sequence[SegmentJob], workers: int, nodes: Sequence[Mapping[str, float]], gpus: float | None = None
) -> _Share:
    """Return what one of the workers asks for: so much of a GPU, or its share of all those that the nodes have."""
    threads = _threads(jobs)
    with_gpu = [node for node in nodes if node.get("GPU", 0.0) > 0]
    if all(job.engine.device == "cpu" for job in jobs) or not with_gpu:
        return _Share(threads, 0.0, SHARDS_PER_SLOT)
    gpus = gpus or min(1.0, sum(node["GPU"] for node in with_gpu) / workers)
    beside = min(node.get("CPU", 0.0) / node["GPU"] for node in with_gpu) * gpus
    cpus = max(threads, int(beside / 2))
    return _Share(cpus, gpus, max(SHARDS_PER_SLOT, cpus))


def _threads(jobs: Sequence[SegmentJob]) -> int:
    return max(job.engine.threads for job in jobs)
