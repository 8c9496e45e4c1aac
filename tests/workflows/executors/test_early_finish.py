"""With every executor an image can be finished, under its folder's lock, while the next one is computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest

from unetpp.commit import CommitRecord
from unetpp.finalize import finalize
from unetpp.segment import SegmentJob
from unetpp_workflows.executors.base import Outcome
from unetpp_workflows.executors.local import run_local
from unetpp_workflows.executors.ray import run_ray
from unetpp_workflows.finishing import Finishing

Prepare = Callable[..., SegmentJob]
Run = Callable[..., tuple[Outcome, ...]]


@pytest.mark.parametrize("run", [run_local, run_ray])
@pytest.mark.usefixtures("ray_on_this_machine")
def test_an_image_can_be_finished_while_another_is_computed(prepare: Prepare, run: Run) -> None:
    first, second = prepare("first", engine="torch"), prepare("second", engine="torch")
    finished: list[str] = []
    before_commits: list[int] = []

    def finish(job: SegmentJob) -> None:
        finalize(job)  # waits for the folder's lock: nobody may hold the image open for long
        finished.append(job.out.name)

    def on_commit(job: SegmentJob, _: CommitRecord) -> None:
        if job == first:
            return
        # A second each: until it gets a shard of the second image, a worker may hold the first one open.
        waits_until = time.monotonic() + 1
        while not finished and time.monotonic() < waits_until:
            time.sleep(0.01)
        before_commits.append(len(finished))

    with Finishing(2) as finishing:
        ended = lambda job, _: finishing.begin(partial(finish, job))  # noqa: E731
        assert run([first, second], workers=2, on_commit=on_commit, on_ended=ended) == (Outcome(35),) * 2
        finishing.wait()
    assert finished == ["first", "second"]
    assert before_commits[-1] == 1
