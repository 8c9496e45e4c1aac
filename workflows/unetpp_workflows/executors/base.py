"""Decides which shard is tried next, how often, and what has failed; knows no threads, no processes and no pixels."""

from __future__ import annotations

import logging
import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from unetpp.errors import OutputError, UnetppError, one_line
from unetpp_workflows.machine import return_freed_memory

if TYPE_CHECKING:
    from unetpp.commit import CommitRecord
    from unetpp.segment import SegmentJob, ShardWorker
    from unetpp.tiling import Shard
    from unetpp.turns import Turns

ATTEMPTS = 3
SHARDS_PER_SLOT = 2
"""One computes while the other is read or written."""
OnCommit = Callable[["SegmentJob", "CommitRecord"], None]
OnEnded = Callable[["SegmentJob", "Outcome"], None]
"""Gets a job when none of its shards waits or runs any more."""
Only = Callable[["SegmentJob", "Shard"], bool]
"""Says whether a run computes a shard; without one it computes all."""
Places: TypeAlias = "array[int]"
"""Shards of one job, counted row by row: four bytes each, for a driver may have ten million."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one job in this run.

    Attributes:
        done: shards that this run committed (not those found finished).
        failed: shard id ("row.col") -> one line saying why it is not committed.
    """

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)


class Task(NamedTuple):
    """One try of one shard; a driver makes ten million."""

    job: int
    shard: str
    attempt: int = 1


@dataclass(frozen=True)
class Result:
    """What a worker says about a task: a commit record, or one line of error.

    `job_failed` means that no other shard of the job can succeed either (disk full, model or image unreadable).
    """

    record: dict[str, Any] | None = None
    error: str = ""
    job_failed: bool = False


def pending_places(job: SegmentJob, only: Only | None = None) -> Places:
    """Return where a job's shards are that a run is to compute: not committed, and those of `only`."""
    from unetpp import commit
    from unetpp.segment import pending

    rows, columns = job.plan.grid_shape
    if only is None and not commit.listed(job.store):
        return array("I", range(rows * columns))
    mine = (shard for shard in pending(job) if only is None or only(job, shard))
    return array("I", (shard.row * columns + shard.col for shard in mine))


class ShardQueue:
    """Hands out the pending shards of all jobs, in order; failed ones come again, last, until their tries are used.

    Args:
        attempts: tries per shard, counting those whose worker died, before it is recorded as failed.
        on_commit: called after each committed shard, in the thread that settles it.
        on_ended: called once per job, in the thread that settles its last shard; at once where nothing is pending.
        places: what is to be computed of every job; `pending_places` when None.

    >>> queue = ShardQueue(jobs, attempts=3)
    >>> while (task := queue.take()) is not None:
    ...     queue.settle(task, work(task))
    >>> queue.outcomes()
    """

    def __init__(
        self,
        jobs: Sequence[SegmentJob],
        attempts: int = ATTEMPTS,
        on_commit: OnCommit | None = None,
        on_ended: OnEnded | None = None,
        places: Sequence[Places] | None = None,
    ) -> None:
        self.jobs = tuple(jobs)
        self._attempts = max(1, attempts)
        self._on_commit, self._on_ended = on_commit, on_ended
        self._done = [0] * len(self.jobs)
        self._failed: list[dict[str, str]] = [{} for _ in self.jobs]
        # Tasks are made when they are taken.
        self._fresh = [pending_places(job) for job in self.jobs] if places is None else list(places)
        self._left = array("I", map(len, self._fresh))
        self._waiting = sum(self._left)
        self._job, self._place = 0, 0
        self._again: deque[Task] = deque()
        for index, left in enumerate(self._left):
            if not left:
                self._end(index)

    def __len__(self) -> int:
        """Return how many tasks wait; running ones may still come back."""
        return self._waiting + len(self._again)

    @property
    def retrying(self) -> bool:
        """Say whether the next task failed before."""
        return not self._waiting and bool(self._again)

    def take(self) -> Task | None:
        """Return the next task, None when none waits."""
        if not self._waiting:
            return self._again.popleft() if self._again else None
        while self._place >= len(self._fresh[self._job]):
            self._job, self._place = self._job + 1, 0
        row, column = divmod(self._fresh[self._job][self._place], self.jobs[self._job].plan.grid_shape[1])
        self._place += 1
        self._waiting -= 1
        return Task(self._job, f"{row}.{column}")

    def take_some(self, most: int) -> list[Task]:
        """Return the next tasks; one that failed before comes alone, and none when none waits."""
        count = min(most, self._waiting) or 1
        return [task for _ in range(count) if (task := self.take()) is not None]

    def settle(self, task: Task, result: Result) -> None:
        """Count a finished task."""
        from unetpp.commit import CommitRecord

        if result.record is not None:
            self._done[task.job] += 1
            self._left[task.job] -= 1
            if self._on_commit is not None:
                self._on_commit(self.jobs[task.job], CommitRecord.from_json(result.record))
        elif not result.job_failed and task.attempt < self._attempts:
            self._again.append(Task(task.job, task.shard, task.attempt + 1))
        else:
            self._fail(task, result.error)
            if result.job_failed:
                self._give_up(task.job, result.error)
        if not self._left[task.job]:
            self._end(task.job)

    def outcomes(self) -> tuple[Outcome, ...]:
        """Return one outcome per job, in the order of the jobs."""
        return tuple(Outcome(done, failed) for done, failed in zip(self._done, self._failed, strict=True))

    def _end(self, job: int) -> None:
        if self._on_ended is not None:
            self._on_ended(self.jobs[job], Outcome(self._done[job], self._failed[job]))

    def _give_up(self, job: int, message: str) -> None:
        """Fail every waiting shard of a job."""
        columns = self.jobs[job].plan.grid_shape[1]
        first = self._place if job == self._job else 0
        fresh = self._fresh[job][first:] if job >= self._job else array("I")
        self._fresh[job] = self._fresh[job][: len(self._fresh[job]) - len(fresh)]
        self._waiting -= len(fresh)
        for place in fresh:
            self._fail(Task(job, "{}.{}".format(*divmod(place, columns))), message)
        for other in [other for other in self._again if other.job == job]:
            self._again.remove(other)
            self._fail(other, message)

    def _fail(self, task: Task, message: str) -> None:
        self._failed[task.job][task.shard] = message
        self._left[task.job] -= 1


class Crew:
    """The workers of one process: one per thread that calls, made at its first call.

    Args:
        slots: shards that may compute at once; threads beyond that read and write meanwhile.
        threads: that call.
    """

    def __init__(self, slots: int, threads: int) -> None:
        from unetpp.turns import Turns

        return_freed_memory()
        self.stop = threading.Event()
        # Writing takes a whole shard's plain labels, up to 17 MB; shards that take turns at computing end together.
        self._turns: Turns[Any] = Turns(compute=slots, write=max(1, threads // 2))
        self._own = threading.local()
        self._all: list[Worker] = []

    def run(self, job: SegmentJob, shard_id: str, attempt: int) -> Result:
        """See `Worker.run`."""
        worker = self._worker()
        # An image whose shards are all done is finished while others are computed: nobody may hold it open.
        for other in self._all:
            other.rest(unless=job)
        return worker.run(job, shard_id, attempt)

    def help(self) -> None:
        """Help with the shards that others compute until helpers are sent home."""
        worker = self._worker()
        while worker.help():
            pass

    def send_helpers_home(self) -> None:
        self._turns.send_helpers_home()

    def rest(self) -> None:
        """Close the images of all workers that have nothing to do."""
        for worker in self._all:
            worker.rest()

    def close(self) -> None:
        for worker in self._all:
            worker.close()

    def _worker(self) -> Worker:
        if not hasattr(self._own, "worker"):
            self._own.worker = Worker(self.stop, self._turns)
            self._all.append(self._own.worker)
        worker: Worker = self._own.worker
        return worker


class Worker:
    """Computes shards one at a time, keeping the image of the last job open."""

    def __init__(self, stop: threading.Event | None = None, turns: Turns[Any] | None = None) -> None:
        self._stop = stop
        self._turns = turns
        self._current: ShardWorker | None = None
        self._busy = threading.Lock()

    def run(self, job: SegmentJob, shard_id: str, attempt: int) -> Result:
        """Compute and commit one shard. Errors come back as results; only a stop raises `CancelledError`."""
        with self._busy:
            return self._run(job, shard_id, attempt)

    def help(self) -> bool:
        """Wait for a shard that another worker computes and compute tiles of it; says whether to call again.

        Its image is closed before the other worker goes on: that may have been the last shard, and finishing wants the
        folder alone. Errors at a tile are the shard's.
        """
        assert self._turns is not None, "a worker without turns knows no other"
        with self._turns.helping() as shard:
            if shard is None:
                return False
            with self._busy:
                try:
                    worker = self._worker(shard.job)
                except Exception:
                    # The other has it open and does without.
                    log.warning("cannot help with %s", shard.job.uri, exc_info=True)
                    return False
                try:
                    worker.help(shard)
                finally:
                    self.close()
        return True

    def rest(self, unless: SegmentJob | None = None) -> None:
        """Close the image where no shard of it is being computed; the next shard opens it again."""
        if self._busy.acquire(blocking=False):
            try:
                if self._current is not None and self._current.job is not unless and self._current.job != unless:
                    self.close()
            finally:
                self._busy.release()

    def _run(self, job: SegmentJob, shard_id: str, attempt: int) -> Result:
        opened = False
        try:
            worker = self._worker(job)
            opened = True
            return Result(record=worker.run(job.plan.shard_by_id(shard_id), attempt).to_json())
        except CancelledError:
            raise
        except UnetppError as error:
            return Result(error=one_line(error), job_failed=not opened or isinstance(error, OutputError))
        except Exception as error:
            if self._stop is not None and self._stop.is_set():
                # At a second Ctrl-C Python takes its threads away from under what still runs: no fault of the shard's.
                raise CancelledError from error
            log.warning("%s shard %s, try %d", job.uri, shard_id, attempt, exc_info=True)
            return Result(error=one_line(error), job_failed=not opened)

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None

    def _worker(self, job: SegmentJob) -> ShardWorker:
        from unetpp.segment import ShardWorker

        if self._current is None or self._current.job != job:
            self.close()
            self._current = ShardWorker(job, stop=self._stop, turns=self._turns)
        return self._current
