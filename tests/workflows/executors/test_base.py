"""The queue: every shard is tried, failed ones at most the allowed times, and a hopeless job stops early."""

from __future__ import annotations

import logging
import threading
from array import array
from concurrent.futures import CancelledError

import pytest

from unetpp.errors import OutputError
from unetpp.segment import SegmentJob
from unetpp_workflows.executors import base
from unetpp_workflows.executors.base import Outcome, Result, ShardQueue, Task, Worker

RECORD = {"shard": "0.0", "key": "k", "sha256": None, "size": 0, "valid_px": 0, "counts": {"0": 0}}


@pytest.fixture
def two_jobs(prepare) -> list[SegmentJob]:  # type: ignore[no-untyped-def]
    return [prepare("a", shard=256), prepare("b", shard=256)]


def test_shards_of_all_jobs_come_in_order(two_jobs: list[SegmentJob]) -> None:
    queue = ShardQueue(two_jobs)
    tasks = [queue.take() for _ in range(len(queue))]
    assert tasks == [Task(job, shard) for job in (0, 1) for shard in ("0.0", "0.1", "1.0", "1.1")]
    assert queue.take() is None and queue.outcomes() == (Outcome(), Outcome())


def test_a_failed_shard_is_tried_again_last_and_given_up(two_jobs: list[SegmentJob]) -> None:
    queue = ShardQueue(two_jobs[:1], attempts=3)
    order = []
    while (task := queue.take()) is not None:
        order.append((task.shard, task.attempt))
        queue.settle(task, Result(error=f"bad {task.attempt}") if task.shard == "0.1" else Result(record=RECORD))
    assert order == [("0.0", 1), ("0.1", 1), ("1.0", 1), ("1.1", 1), ("0.1", 2), ("0.1", 3)]
    assert queue.outcomes() == (Outcome(3, {"0.1": "bad 3"}),)


def test_a_hopeless_job_stops_and_the_others_go_on(two_jobs: list[SegmentJob]) -> None:
    queue = ShardQueue(two_jobs)
    done = []
    while (task := queue.take()) is not None:
        done.append(task)
        full = Result(error="disk full", job_failed=True)
        queue.settle(task, full if (task.job, task.shard) == (0, "0.1") else Result(record=RECORD))
    assert [task.shard for task in done if task.job == 0] == ["0.0", "0.1"]
    first, second = queue.outcomes()
    assert first == Outcome(1, dict.fromkeys(("0.1", "1.0", "1.1"), "disk full")) and second == Outcome(4)


def test_the_callback_gets_job_and_record(two_jobs: list[SegmentJob]) -> None:
    seen = []
    queue = ShardQueue(two_jobs, on_commit=lambda job, record: seen.append((job, record.shard, record.counts)))
    task = queue.take()
    assert task is not None
    queue.settle(task, Result(record=RECORD))
    assert seen == [(two_jobs[0], "0.0", {0: 0})]


def test_a_worker_turns_errors_into_one_line(
    two_jobs: list[SegmentJob], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_with(error: Exception) -> Result:
        def run(*_: object) -> None:
            raise error

        monkeypatch.setattr("unetpp.segment.ShardWorker.run", run)
        worker = Worker()
        result = worker.run(two_jobs[0], "0.0", 1)
        worker.close()
        return result

    assert fail_with(OutputError("disk full")) == Result(error="disk full", job_failed=True)
    with caplog.at_level(logging.WARNING, base.__name__):
        assert fail_with(IndexError("a bug\nin two lines")) == Result(error="IndexError: a bug")
    assert "in two lines" in caplog.text, "the traceback of a bug must reach the log"


def test_what_fails_because_of_a_stop_is_no_fault_of_the_shard(
    two_jobs: list[SegmentJob], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()

    def run(*_: object) -> None:
        stop.set()
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr("unetpp.segment.ShardWorker.run", run)
    worker = Worker(stop)
    try:
        with pytest.raises(CancelledError):
            worker.run(two_jobs[0], "0.0", 1)
    finally:
        worker.close()
    assert not caplog.records


def test_an_image_that_vanished_fails_the_job(two_jobs: list[SegmentJob], image) -> None:  # type: ignore[no-untyped-def]
    hidden = image.rename(image.with_suffix(".hidden"))
    try:
        result = Worker().run(two_jobs[0], "0.0", 1)
    finally:
        hidden.rename(image)
    assert result.job_failed and str(image) in result.error and "\n" not in result.error


def test_many_waiting_shards_take_a_few_bytes_each(two_jobs: list[SegmentJob]) -> None:
    import tracemalloc
    from dataclasses import replace

    job = two_jobs[0]
    large = replace(job, plan=replace(job.plan, height=job.plan.shard * 200, width=job.plan.shard * 200))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    queue = ShardQueue([large])
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(queue) == 40_000 and kept < 8 * len(queue)
    first = queue.take()
    assert first is not None and first.attempt == 1


def test_shards_given_up_in_the_middle_are_named_once(two_jobs: list[SegmentJob]) -> None:
    queue = ShardQueue(two_jobs[:1], attempts=2)
    total = len(queue)
    first, second = queue.take(), queue.take()
    assert first is not None and second is not None
    queue.settle(first, Result(error="flaky"))
    queue.settle(second, Result(error="disk full", job_failed=True))
    assert len(queue) == 0 and queue.take() is None
    assert len(queue.outcomes()[0].failed) == total and set(queue.outcomes()[0].failed.values()) == {"disk full"}


def test_a_job_has_ended_when_its_last_shard_is_settled(two_jobs: list[SegmentJob]) -> None:
    ended: list[tuple[str, Outcome]] = []
    queue = ShardQueue(two_jobs, attempts=2, on_ended=lambda job, outcome: ended.append((job.out.name, outcome)))
    tasks = [queue.take() for _ in range(8)]
    for task in (*tasks[4:], *tasks[:3]):
        assert task is not None
        queue.settle(task, Result(record=RECORD))
    assert ended == [("b", Outcome(4))]
    last = tasks[3]
    while last is not None:
        assert len(ended) == 1
        queue.settle(last, Result(error="bad"))
        last = queue.take()
    assert ended[1:] == [("a", Outcome(3, {"1.1": "bad"}))]


def test_a_hopeless_job_has_ended_with_the_last_of_its_running_shards(two_jobs: list[SegmentJob]) -> None:
    ended: list[Outcome] = []
    queue = ShardQueue(two_jobs[:1], on_ended=lambda job, outcome: ended.append(outcome))
    full, running = queue.take(), queue.take()
    assert full is not None and running is not None
    queue.settle(full, Result(error="disk full", job_failed=True))
    assert not ended
    queue.settle(running, Result(record=RECORD))
    assert ended == [Outcome(1, dict.fromkeys(("0.0", "1.0", "1.1"), "disk full"))]


def test_a_job_of_which_nothing_is_left_has_ended_at_once(two_jobs: list[SegmentJob]) -> None:
    ended: list[str] = []
    places = [array("I"), array("I", [2])]
    queue = ShardQueue(two_jobs, on_ended=lambda job, _: ended.append(job.out.name), places=places)
    assert ended == ["a"] and len(queue) == 1
    assert queue.take() == Task(1, "1.0") and queue.take() is None


def test_some_tasks_come_at_once_and_failed_ones_alone(two_jobs: list[SegmentJob]) -> None:
    queue = ShardQueue(two_jobs, attempts=2)
    first = queue.take_some(3)
    assert [task.shard for task in first] == ["0.0", "0.1", "1.0"]
    for task in first:
        queue.settle(task, Result(error="bad"))
    assert queue.take_some(3) == [Task(0, "1.1"), Task(1, "0.0"), Task(1, "0.1")]
    assert queue.take_some(9) == [Task(1, "1.0"), Task(1, "1.1")]
    assert [queue.take_some(9) for _ in range(4)] == [[Task(0, s, 2)] for s in ("0.0", "0.1", "1.0")] + [[]]
