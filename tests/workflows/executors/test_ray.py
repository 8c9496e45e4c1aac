"""Actors on this machine: the bytes of a local run, dead workers replaced, poison recorded, foreign sessions kept."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import psutil
import pytest

from unetpp import commit
from unetpp.commit import CommitRecord
from unetpp.errors import EngineError
from unetpp.segment import SegmentJob, pending
from unetpp_workflows.executors import ray as ray_executor
from unetpp_workflows.executors.base import Outcome, Result, ShardQueue
from unetpp_workflows.executors.local import run_local
from unetpp_workflows.executors.ray import ShardActor, Shards, _Actors, run_ray
from unetpp_workflows.executors.session import ray_session

Prepare = Callable[..., SegmentJob]
Files = Callable[[SegmentJob], dict[str, str]]
pytestmark = pytest.mark.usefixtures("ray_on_this_machine")


def actor_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ShardActor" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_one_and_two_actors_make_the_bytes_of_a_local_run(prepare: Prepare, hashes: Files) -> None:
    local, one, two = prepare("local"), prepare("one"), prepare("two")
    run_local([local], workers=2)
    seen: list[str] = []
    assert run_ray([one], workers=1) == (Outcome(35),)
    assert run_ray([two], workers=2, on_commit=lambda _, record: seen.append(record.shard)) == (Outcome(35),)
    assert hashes(local) == hashes(one) == hashes(two) and len(hashes(local)) == 38
    assert sorted(seen) == sorted(shard.id for shard in two.plan.shards())


def test_a_killed_worker_is_replaced(prepare: Prepare, hashes: Files) -> None:
    expected, job = prepare("expected", engine="torch"), prepare("killed", engine="torch")
    run_local([expected])
    commits: list[str] = []

    def kill_now_and_then(_: SegmentJob, record: CommitRecord) -> None:
        commits.append(record.shard)
        if len(commits) in (5, 15):
            random.choice(actor_processes()).send_signal(signal.SIGKILL)  # noqa: S311  # no secret

    assert run_ray([job], workers=2, on_commit=kill_now_and_then) == (Outcome(35),)
    assert len(commits) == len(set(commits)) == 35
    assert hashes(job) == hashes(expected)
    _, alive = psutil.wait_procs(actor_processes(), timeout=20)
    assert alive == [], "actors outlive the call"


def test_workers_that_cannot_start_end_nothing_while_another_lives(
    prepare: Prepare, hashes: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on spot nodes that go together: their workers start anew, some on a node that is going, too."""
    starts = tmp_path / "starts"
    starts.mkdir()

    class Going(ShardActor):
        def __init__(self, calls: int) -> None:
            mine = starts / str(os.getpid())
            mine.touch()
            order = [path.name for path in sorted(starts.iterdir(), key=lambda path: path.stat().st_mtime_ns)]
            if 0 < order.index(mine.name) < 6:
                os.kill(os.getpid(), signal.SIGKILL)
            super().__init__(calls)

        def run(self, jobs: Sequence[Shards], attempt: int) -> list[Result]:
            if len(list(starts.iterdir())) < 7:
                time.sleep(3)  # or all is done before the others have failed so often: 35 calls, two at a time
            return super().run(jobs, attempt)

    class Gone(ShardActor):
        def __init__(self, calls: int) -> None:
            raise ImportError("no module named unetpp")

    monkeypatch.setattr(ray_executor, "ShardActor", Going)
    expected, job = prepare("expected", engine="torch"), prepare("job", engine="torch")
    run_local([expected])
    assert run_ray([job], workers=2) == (Outcome(35),)
    assert hashes(job) == hashes(expected)
    assert len(list(starts.iterdir())) == 7, "one that started, five that did not, one that started at last"
    monkeypatch.setattr(ray_executor, "ShardActor", Gone)
    with pytest.raises(EngineError, match=r"Ray cannot start a worker \(.*; is unetpp installed on every node\?"):
        run_ray([prepare("none", engine="torch")], workers=2)


def test_starts_that_failed_beside_others_do_not_count_when_these_die(prepare: Prepare) -> None:
    with ray_session(None, cpus=2):
        actors = _Actors(ShardQueue([prepare(engine="torch")]), 2)
        (first, _), (second, _) = list(actors._running.values())
        actors._set_free(first, actors._most)
        for _ in range(20):
            actors._replace(second, (), RuntimeError("a node that cannot have one"))
        actors._forget(first)
        actors._replace(second, (), RuntimeError("the first that counts"))
        for _ in range(4):
            actors._replace(second, (), RuntimeError("again"))
        with pytest.raises(EngineError, match="Ray cannot start a worker"):
            actors._replace(second, (), RuntimeError("the sixth, of two workers"))
        actors.close()


def test_a_shard_that_kills_its_worker_is_recorded_and_the_rest_is_done(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoned(ShardActor):
        def run(self, jobs: Sequence[Shards], attempt: int) -> list[Result]:
            if "2.3" in jobs[0][2]:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(jobs, attempt)

    monkeypatch.setattr(ray_executor, "ShardActor", Poisoned)
    poisoned, good = prepare("a", engine="torch", shard=128), prepare("b", engine="torch", shard=256)
    first, second = run_ray([poisoned, good], workers=1)
    assert list(first.failed) == ["2.3"] and "died on try 3" in first.failed["2.3"] and first.done == 11
    assert second == Outcome(4) and [shard.id for shard in pending(poisoned)] == ["2.3"]


def test_many_actors_get_several_shards_at_a_call(
    prepare: Prepare, hashes: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()

    class Poisoned(ShardActor):
        def run(self, jobs: Sequence[Shards], attempt: int) -> list[Result]:
            asked = [f"{Path(folder).name}:{shard}" for folder, _, shards in jobs for shard in shards]
            (calls / f"{time.time_ns()}").write_text(" ".join([str(attempt), *asked]))
            if "bad:0.2" in asked:
                folder, key, shards = jobs[-1]
                super().run([*jobs[:-1], (folder, key, shards[: shards.index("0.2")])], attempt)
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(jobs, attempt)

    monkeypatch.setattr(ray_executor, "ShardActor", Poisoned)
    monkeypatch.setattr(ray_executor, "_SLOTS_PER_SHARD", 1)
    expected, good, bad = prepare("expected"), prepare("good"), prepare("bad", engine="torch")
    run_local([expected])
    assert run_ray([good, bad], workers=2) == (Outcome(35), Outcome(34, {"0.2": ANY}))
    assert hashes(good) == hashes(expected) and [shard.id for shard in pending(bad)] == ["0.2"]
    found = [path.read_text().split() for path in sorted(calls.iterdir())]
    first = [len(shards) for attempt, *shards in found if attempt == "1"]
    # Four slots' last 15 shards are calls of one, or their last six where the eight of a dead actor wait behind them.
    # When it dies is chance, and whether its other call, of which then nobody wrote, has begun: one more or fewer.
    assert max(first) == 4 and first.count(1) >= 5, first
    assert {shard for _, *shards in found for shard in shards} == {
        f"{job.out.name}:{shard.id}" for job in (good, bad) for shard in job.plan.shards()
    }
    assert any({shard.partition(":")[0] for shard in shards} == {"good", "bad"} for _, *shards in found)
    assert all(len(shards) == 1 for attempt, *shards in found if attempt != "1")


def test_the_other_shards_of_a_job_that_has_failed_are_not_tried(prepare: Prepare, image: Path, tmp_path: Path) -> None:
    gone, there = prepare("gone", uri=shutil.copy(image, tmp_path / "gone.png")), prepare("there")
    (tmp_path / "gone.png").unlink()
    asked = [(str(job.out), job.key, ["0.0", "0.1", "0.2"]) for job in (gone, there)]
    results = ShardActor(2).run([*asked, (str(there.out), "another key", ["1.0"])], 1)
    assert [result.job_failed for result in results] == [True] * 3 + [False] * 3 + [True]
    assert results[0] is results[2] and "gone.png" in results[0].error and not results[3].error
    assert "do all machines see the same folder" in results[-1].error


def test_a_shard_beside_a_poisonous_one_is_not_blamed(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "beside"

    class Poisoned(ShardActor):
        def run(self, jobs: Sequence[Shards], attempt: int) -> list[Result]:
            if "0.1" in jobs[0][2]:
                while attempt == 1 and not beside.exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            if "0.0" in jobs[0][2] and attempt == 1:
                beside.touch()
                time.sleep(60)
            return super().run(jobs, attempt)

    monkeypatch.setattr(ray_executor, "ShardActor", Poisoned)
    job = prepare(engine="torch", shard=256)
    [outcome] = run_ray([job], workers=1, attempts=2)
    assert list(outcome.failed) == ["0.1"] and outcome.done == 3
    assert json.loads((job.out / "commits/0.0.json").read_text())["attempt"] == 2


def test_nothing_to_do_starts_nothing(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "ray_session", None)
    assert run_ray([]) == ()


@pytest.mark.parametrize(
    ("device", "workers", "nodes", "share"),
    [
        ("cpu", 2, [(16, 1)], (1, 0.0, 2)),
        ("cuda", 1, [(16, 1)], (8, 1.0, 8)),  # half of the cores: the other half finishes images
        ("cuda", 4, [(16, 2)], (2, 0.5, 2)),
        ("cuda", 1, [(4, 2)], (1, 1.0, 2)),
        ("cuda", 2, [(32, 1), (8, 1), (500, 0)], (4, 1.0, 4)),  # it must fit on every node with a GPU
        ("cuda", 2, [(16, 0)], (1, 0.0, 2)),
    ],
)
def test_a_worker_asks_for_a_part_of_a_gpu_and_cores_beside_it(
    prepare: Prepare,
    device: str,
    workers: int,
    nodes: list[tuple[float, float]],
    share: tuple[int, float, int],
) -> None:
    job = prepare(engine="torch")
    job = replace(job, engine=replace(job.engine, device=device))
    resources = [{"CPU": cpus, **({"GPU": gpus} if gpus else {})} for cpus, gpus in nodes]
    assert ray_executor._share([job], workers, resources) == ray_executor._Share(*share)
    # A cluster that grows starts more for those that wait.
    assert ray_executor._share([job], workers, resources, 1.0).gpus == (1.0 if share[1] else 0.0)


def test_a_worker_that_no_machine_has_the_cores_for_is_told_of(
    prepare: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    for threads, told in ((2, []), (3, ["no machine of the Ray cluster has 3 CPUs for a worker, only 2"])):
        _Actors(ShardQueue([prepare(f"threads {threads}", threads=threads)]), 1).close()
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == told


def test_a_commit_that_the_driver_never_heard_of_is_not_made_again(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, records: Callable[[SegmentJob], dict[str, tuple[int, int]]]
) -> None:
    class Mute(ShardActor):
        def run(self, jobs: Sequence[Shards], attempt: int) -> list[Result]:
            results = super().run(jobs, attempt)
            if "1.1" in jobs[0][2] and attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return results

    monkeypatch.setattr(ray_executor, "ShardActor", Mute)
    job = prepare(engine="torch", shard=128)
    assert run_ray([job], workers=1) == (Outcome(12),)
    assert json.loads((job.out / "commits/1.1.json").read_text())["attempt"] == 1
    found = commit.audit(job.store, job.key)
    assert (found.once, found.twice, found.lost, found.unwitnessed) == (12, {}, {}, ())
