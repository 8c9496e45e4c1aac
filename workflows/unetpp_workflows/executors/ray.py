"""Runs shards on Ray actors, on this machine or on a cluster; knows nothing about what a shard is.

One actor is one place to compute and one call is one try of one shard: the actor reads its own window and writes its
own shard, and only names and numbers travel. An actor has two calls at a time, so that one reads or writes while the
other computes. A shard that failed comes again alone: if its worker dies once more, no other shard pays for it.

Every node needs the same software and sees inputs, model and outputs under the same
paths. Ray's own retries are off: they would repeat a shard that kills its worker forever.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetpp.errors import EngineError
from unetpp_workflows.executors.base import (
    ATTEMPTS,
    SHARDS_PER_SLOT,
    Crew,
    OnCommit,
    Only,
    Outcome,
    Result,
    ShardQueue,
    Task,
    one_line,
)
from unetpp_workflows.machine import return_freed_memory

if TYPE_CHECKING:
    from unetpp.segment import SegmentJob

log = logging.getLogger(__name__)
_OBJECT_STORE_BYTES = 100 * 2**20
_PAYLOADS_KEPT = 256
_STARTS = 4
"""Ray gives its own processes 30 s to start, which is too short on a busy machine."""
_LONGEST_TEMP = 24
"""Ray appends about 60 characters to its folder and a socket's path may have 107."""
_LOCAL_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


def run_ray(
    jobs: Sequence[SegmentJob],
    *,
    workers: int = 1,
    address: str | None = None,
    attempts: int = ATTEMPTS,
    on_commit: OnCommit | None = None,
    only: Only | None = None,
) -> tuple[Outcome, ...]:
    """Compute every pending shard of the jobs on `workers` actors; returns one outcome per job, in their order.

    Args:
        address: of a running cluster ("auto", "host:6379", "ray://..."); None starts Ray on this machine and stops it
            afterwards. A session that this process has open already is used, whatever the address, and left open.
        attempts: tries per shard, counting those whose worker died, before it is recorded as failed.
        on_commit: called in the calling thread after each committed shard.
        only: which of the shards are computed.

    Raises:
        EngineError: Ray cannot run here, or no worker could start.
    """
    queue = ShardQueue(jobs, attempts, on_commit, only)
    if not len(queue):
        return queue.outcomes()
    workers = max(1, min(workers, len(queue)))
    threads = max(job.engine.threads for job in queue.jobs)
    # Ray reports dead workers on standard output, which belongs to the program's results.
    with redirect_stdout(sys.stderr), ray_session(address, cpus=workers * threads):
        actors = _Actors(queue, workers, threads)
        try:
            actors.drain()
        finally:
            actors.close()
    return queue.outcomes()


def run_each(work: Callable[[SegmentJob], object], jobs: Sequence[SegmentJob], *, address: str) -> None:
    """Do the same for every job on the CPUs of a cluster; what fails there is logged and left to the caller.

    Args:
        work: can be pickled.
        address: of a running cluster; a session that this process has open already is used.
    """
    import ray

    with redirect_stdout(sys.stderr), ray_session(address, cpus=1):
        task = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_work_on)
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting, running = iter(jobs), dict[Any, str]()
        while True:
            for job in islice(waiting, most - len(running)):
                running[task.remote(work, job.to_json())] = job.out.name
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1)[0]:
                name = running.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    why = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                    log.warning("%s: not finished on the cluster, but here: %s", name, one_line(why))


def _work_on(work: Callable[[SegmentJob], object], values: dict[str, Any]) -> None:
    from unetpp.segment import SegmentJob

    return_freed_memory()
    work(SegmentJob.from_json(values))


class ShardActor:
    """The process that computes shards, one at a time; Ray gives it as many OpenMP threads as CPUs."""

    def __init__(self) -> None:
        self._crew = Crew(slots=1, threads=SHARDS_PER_SLOT)

    def ready(self) -> int:
        """Return the process id: the actor runs."""
        return os.getpid()

    def run(self, job: dict[str, Any], shard: str, attempt: int) -> Result:
        from unetpp.segment import SegmentJob

        return self._crew.run(SegmentJob.from_json(job), shard, attempt)


class _Actors:
    """The actors of one call: starts them, gives them tasks, replaces the dead."""

    def __init__(self, queue: ShardQueue, workers: int, threads: int) -> None:
        import ray

        self._queue = queue
        # Made when asked for: a driver may have a million jobs, and works on a few at a time.
        self._payload = lru_cache(_PAYLOADS_KEPT)(lambda index: queue.jobs[index].to_json())
        gpus = _gpu_share(queue.jobs, workers, ray.cluster_resources().get("GPU", 0.0))
        options = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        options["max_concurrency"] = SHARDS_PER_SLOT
        self._actor_class = ray.remote(**options, scheduling_strategy="SPREAD")(ShardActor)
        self._running: dict[Any, tuple[Any, Task | None]] = {}
        self._free: dict[Any, int] = {}  # calls that each living actor can still take
        self._failed_starts = 0
        for _ in range(workers):
            self._start()

    def drain(self) -> None:
        """Return when every task is settled."""
        import ray

        while self._assign():
            for reference in ray.wait(list(self._running), num_returns=1)[0]:
                self._collect(reference)

    def close(self) -> None:
        import ray

        for actor in {*self._free, *(actor for actor, _ in self._running.values())}:
            ray.kill(actor)

    def _start(self) -> None:
        actor = self._actor_class.remote()
        self._running[actor.ready.remote()] = (actor, None)

    def _assign(self) -> bool:
        """Give tasks to actors; False when nothing is left to wait for."""
        while (actor := self._freest()) is not None and (task := self._queue.take()) is not None:
            self._free[actor] -= _calls(task)
            reference = actor.run.remote(self._payload(task.job), task.shard, task.attempt)
            self._running[reference] = (actor, task)
        return len(self._queue) > 0 or any(task is not None for _, task in self._running.values())

    def _freest(self) -> Any | None:
        """Return the actor that can take the next task and has the least to do, None where all are busy."""
        actor = max(self._free, key=lambda actor: self._free[actor], default=None)
        needed = SHARDS_PER_SLOT if self._queue.retrying else 1
        return actor if actor is not None and self._free[actor] >= needed else None

    def _collect(self, reference: Any) -> None:
        import ray

        actor, task = self._running.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            result = Result(error=one_line(error.cause))
        except ray.exceptions.RayError as error:
            self._replace(actor, task, error)
            return
        if task is None:
            self._failed_starts = 0
            self._free[actor] = SHARDS_PER_SLOT
            return
        if actor in self._free:
            self._free[actor] += _calls(task)
        self._queue.settle(task, result)

    def _replace(self, actor: Any, task: Task | None, error: Exception) -> None:
        """Start another actor for one that died; certainly dead first, for one shard has one writer."""
        import ray

        ray.kill(actor)
        first = task is None or self._free.pop(actor, None) is not None  # the dead actor's other call comes here too
        if task is not None:
            message = f"the worker process died on try {task.attempt} (killed, or out of memory)"
            self._queue.settle(task, Result(error=message))
        else:
            self._failed_starts += 1
            if self._failed_starts >= ATTEMPTS:
                raise EngineError(f"Ray cannot start a worker ({one_line(error)}); is unetpp installed on every node?")
        if first:
            self._start()


def _calls(task: Task) -> int:
    """Return how many of an actor's calls a task takes: all of them where it failed before."""
    return SHARDS_PER_SLOT if task.attempt > 1 else 1


@contextmanager
def ray_session(address: str | None, *, cpus: int) -> Iterator[None]:
    """Use the session this process has, else join the cluster at `address`, else run Ray on this machine meanwhile.

    Raises:
        EngineError: Ray cannot run on this machine.
    """
    import ray

    with ExitStack() as stack:
        if not ray.is_initialized():
            if address is not None:
                ray.init(address=address, **_QUIET)
            else:
                _start_here(stack, cpus)
            stack.callback(ray.shutdown)
        yield


def _start_here(stack: ExitStack, cpus: int) -> None:
    import ray

    _check_loopback()
    stack.enter_context(_environment(_LOCAL_ENVIRONMENT))
    folder = tempfile.mkdtemp(prefix="unetpp-", dir=_short_temp())
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    options = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": folder, **_QUIET}
    if (quoted := shlex.quote(sys.executable)) != sys.executable:
        # Ray starts workers that have an environment of their own (Ray Train's have) by a line of shell and leaves
        # the interpreter's path as it is: in a folder with a space they would never start.
        options["runtime_env"] = {"py_executable": quoted}
    for tries in range(1, _STARTS + 1):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # a plain Exception when a process of Ray is late
            ray.shutdown()
            if tries == _STARTS:
                advice = "stop what else runs on this machine, or use --executor local"
                raise EngineError(f"Ray did not start in {_STARTS} tries ({one_line(error)}); {advice}") from error


def _check_loopback() -> None:
    """Fail at once where this machine cannot talk to itself: Ray would only hang."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        raise EngineError(f"Ray needs the loopback network ({error.strerror}); use the executor local") from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _short_temp() -> Path:
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) <= _LONGEST_TEMP else Path("/tmp")  # noqa: S108  # mkdtemp makes a private folder


def _gpu_share(jobs: Sequence[SegmentJob], workers: int, gpus: float) -> float:
    """Return the part of a GPU that one worker asks for: all workers share those of the session."""
    if all(job.engine.device == "cpu" for job in jobs) or gpus <= 0:
        return 0.0
    return min(1.0, gpus / workers)
