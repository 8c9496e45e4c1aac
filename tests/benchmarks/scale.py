"""What one driver costs at the scale of a million slides: its memory, its seconds, its share of the makespan.

    python tests/benchmarks/scale.py --images 1000000 --gpus 1000
    python tests/benchmarks/scale.py --check

Only the driver's own processor time is measured, with its real code, and workers are simulated:

listing       `find_sources` on a folder of empty files
preparing     `all_prepared` on Ray, whose tasks open small pictures; the driver sends batches and takes jobs back
queue, memory the real queue with all jobs; in virtual time workers take shards, and spot machines are taken away
scheduling    `run_ray`'s loop against simulated actors, ten times as fast as the real ones: a few processes of Ray
              stand for all of them and sleep instead of computing
reporting     what logging and counting every commit adds to that
finishing     `complete` on Ray for small pictures, the driver again only sends and takes back

`--check` simulates this machine instead, with the rates of reading, computing and writing that a small slide had on one
worker, and then runs a larger one for real.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import random
import resource
import shutil
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from unetpp import commit
from unetpp.commit import CommitRecord
from unetpp.job import SegmentJob, pending, progress
from unetpp.segment import prepare_job
from unetpp_workflows import preparing
from unetpp_workflows.config import load_config
from unetpp_workflows.events import EventLog
from unetpp_workflows.executors.base import SHARDS_PER_SLOT, Outcome, Result, ShardQueue, Task, pending_places
from unetpp_workflows.executors.local import run_local
from unetpp_workflows.executors.ray import _SLOTS_PER_SHARD, Shards, _Actors
from unetpp_workflows.executors.session import ray_session
from unetpp_workflows.finishing import Finishing, images_at_once
from unetpp_workflows.inputs import Source
from unetpp_workflows.machine import cpu_count, rare_collections
from unetpp_workflows.metrics import RunMetrics
from unetpp_workflows.pipeline import _away, _completed, find_sources, start_call
from unetpp_workflows.preparing import Prepared, all_prepared
from unetpp_workflows.summary import ImageResult

_PROCESSES, _CALLS_PER_SLOT = 2, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=30_000, help="pixels of a slide's side; 10 shards and more")
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--mpx", type=float, default=100.0, help="Mpx/s of a GPU end to end; an assumption")
    parser.add_argument("--lost", type=float, default=0.01, help="share of shards whose worker is taken away")
    parser.add_argument("--check", action="store_true", help="compare predictions with real runs on this machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(check(Path(folder)) if options.check else measure(options, Path(folder)), indent=1))


def check(folder: Path) -> dict[str, Any]:
    """Predict real runs of one and two workers from the stages of a smaller slide on one, and run them."""
    for _ in range(2):  # the first also compiles
        job, _ = _run(folder, "small", 3072, 1)
    stages = {name: spent / (job.plan.height * job.plan.width) for name, spent in progress(job).seconds.items()}
    found: dict[str, Any] = {"s per Mpx on one worker": {name: round(s * 1e6, 4) for name, s in stages.items()}}
    for workers in (1, 2):
        job, real = _run(folder, "large", 8192, workers)
        record, job = _record(job).to_json(), replace(job, out=folder / "not-begun")
        shard = _period({name: rate * job.plan.shard**2 for name, rate in stages.items()})
        _, predicted, _ = _simulate(ShardQueue([job]), workers, shard, lost=0.0, record=record)
        found[f"{workers} workers"] = {
            "shards": len(job.plan.shards()),
            "predicted s": round(predicted, 1),
            "real s": round(real, 1),
            "predicted / real": round(predicted / real, 3),
        }
    return found


def _period(seconds: dict[str, float]) -> float:
    """Return the time in which a worker ends a shard: one computes while another is read or written."""
    return max(seconds["compute"], sum(seconds.values()) / SHARDS_PER_SLOT)


def _run(folder: Path, name: str, side: int, workers: int) -> tuple[SegmentJob, float]:
    """Compute all shards of a drawn slide; returns the job and the seconds it took."""
    from unetpp.drawing.slide import draw_slide
    from unetpp.package import bundled_package

    slide, out = folder / f"{name}.tif", folder / f"{name}-{time.monotonic_ns()}"
    if not slide.exists():
        draw_slide(slide, folder / "truth.tif", side=side, seed=0)
    job = prepare_job(slide, out, bundled_package("nuclei"), tissue="none", core=1024, shard=1024)
    start = time.perf_counter()
    run_local([job], workers=workers)
    assert not pending(job)
    return job, time.perf_counter() - start


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures; seconds are of one core of this machine, on storage that answers at once."""
    listing = _per_listed(folder)
    template = _template(folder, options.side)
    shards = len(template.plan.shards())
    before = _rss()
    text = json.dumps(template.to_json())
    found = [_prepared(template, text, folder, index) for index in range(options.images)]
    results = {ready.source.uri: ImageResult(name="", uri=ready.source.uri, status="failed") for ready in found}
    clock = time.process_time()
    queue = ShardQueue([ready.job for ready in found], places=[ready.places for ready in found])
    queued = time.process_time() - clock
    rss = _rss()
    total = len(queue)
    seconds = template.plan.shard**2 / 1e6 / options.mpx
    record = _record(template).to_json()
    _, makespan, lost = _simulate(queue, options.gpus, seconds, lost=options.lost, record=record)
    outcomes = queue.outcomes()
    assert len(results) == options.images
    assert sum(outcome.done for outcome in outcomes) == total and not any(outcome.failed for outcome in outcomes)
    check = _commit_check(template)
    with ray_session(None, cpus=cpu_count()), rare_collections(options.images):
        opened, finishing = _per_image(folder)
        scheduling = _per_shard(template, options.gpus, seconds, record, folder)
    spent = {
        "listing": listing * options.images,
        "preparing": opened * options.images,
        "queue": queued,
        "scheduling": scheduling * total,
    }
    return {
        "images": options.images,
        "shards": total,
        "shards per image": shards,
        "peak RSS in GiB": round(rss / 2**30, 3),
        "bytes per shard": round((rss - before) / total, 1),
        "driver's seconds": {name: round(value, 1) for name, value in spent.items()},
        "driver's seconds for reporting": round(_per_report(template, folder) * total, 1),
        "driver's seconds for finishing": round(finishing * options.images, 1),
        "cluster's seconds for checking all commits": round(check * total, 1),
        "makespan in s (simulated)": round(makespan, 1),
        "driver's share of the makespan": round(sum(spent.values()) / makespan, 4),
        "shards computed again": lost,
        "cores": cpu_count(),
    }


def _per_listed(folder: Path, count: int = 10_000) -> float:
    """Return the seconds of the driver for finding one image and giving it a folder."""
    images = folder / "listed"
    images.mkdir()
    for index in range(count):
        (images / f"slide-{index:07d}.svs").touch()
    clock = time.process_time()
    sources, _ = find_sources([images], folder / "not-begun")
    assert len(sources) == count
    return (time.process_time() - clock) / count


def _per_image(folder: Path, count: int = 4096, finished: int = 256) -> tuple[float, float]:
    """Return the seconds of the driver for preparing and for finishing one image on a cluster."""
    images = folder / "small"
    images.mkdir()
    for index in range(count):
        shutil.copy(folder / "image.png", images / f"{index:04d}.png")
    sets = ("executor.kind=ray", "executor.address=auto", "tracking.enabled=false", "engine.name=torch")
    call = start_call(load_config(sets=sets), "landcover", {})
    sources, _ = find_sources([images], folder / "out")
    list(all_prepared(call, sources[: 4 * cpu_count()], force=False))  # the cluster's processes start
    preparing._BATCHES_AT_ONCE = count // preparing._IMAGES_PER_BATCH  # the batches of a large archive
    clock = time.process_time()
    found = [ready for _, ready in all_prepared(call, sources, force=False)]
    prepared = (time.process_time() - clock) / count
    images_ready = [ready for ready in found if isinstance(ready, Prepared)]
    assert len(images_ready) == count
    del images_ready[finished:]
    run_local([ready.job for ready in images_ready])
    at_once = images_at_once(remote=True)
    with _away(call, at_once) as away, Finishing(at_once) as finishing:
        clock = time.process_time()
        for ready in images_ready:
            finishing.begin(partial(_completed, call, away, ready, Outcome(1), finishing))
        finishing.wait()
        completed = (time.process_time() - clock) / finished
    assert all((ready.job.out / "record.json").exists() for ready in images_ready)
    return prepared, completed


class _Crowd(_Actors):
    """A driver's actors, of which a few processes stand for all."""

    def __init__(self, queue: ShardQueue, workers: int, seconds: float, record: dict[str, Any]) -> None:
        import ray

        sleeper = ray.remote(num_cpus=0, max_concurrency=workers * SHARDS_PER_SLOT)(_Sleeper)
        self._real = itertools.cycle([sleeper.remote(seconds, record) for _ in range(_PROCESSES)])
        super().__init__(queue, workers, threads=1)

    def _start(self) -> None:
        actor = _Handle(next(self._real))
        self._send(actor.ready.remote(), actor, ())

    def _per_call(self) -> int:
        return max(1, self._slots // _SLOTS_PER_SHARD)  # as long as many shards wait

    def close(self) -> None:
        pass


class _Handle:
    """One of many names of an actor."""

    def __init__(self, real: Any) -> None:
        self.run, self.ready, self.rest = real.run, real.ready, real.ready


class _Sleeper:
    def __init__(self, seconds: float, record: dict[str, Any]) -> None:
        self._seconds, self._record = seconds, record

    async def ready(self) -> None:
        """Return at once."""

    async def run(self, jobs: list[Shards], attempt: int) -> list[Result]:
        shards = [shard for _, _, shards in jobs for shard in shards]
        # Two calls of a worker share its time.
        await asyncio.sleep(len(shards) * SHARDS_PER_SLOT * self._seconds * random.uniform(0.8, 1.2))  # noqa: S311
        return [Result(record={**self._record, "shard": shard}) for shard in shards]


def _per_shard(template: SegmentJob, workers: int, seconds: float, record: dict[str, Any], folder: Path) -> float:
    """Return the seconds of the driver for a shard where so many workers compute."""
    shards = len(template.plan.shards())
    per_call = workers * SHARDS_PER_SLOT // _SLOTS_PER_SHARD
    images = max(1, _CALLS_PER_SLOT * workers * SHARDS_PER_SLOT * per_call // shards)
    text = json.dumps(template.to_json())
    jobs = [_job(text, folder, index) for index in range(images)]
    queue = ShardQueue(jobs, places=[pending_places(job) for job in jobs])
    total = len(queue)
    crowd = _Crowd(queue, workers, seconds / 10, record)
    clock = time.process_time()
    crowd.drain()
    return (time.process_time() - clock) / total


def _per_report(job: SegmentJob, folder: Path, count: int = 20_000) -> float:
    """Return the seconds of the driver for logging and counting a shard."""
    record = replace(_record(job), seconds={"read": 0.1, "compute": 0.5, "write": 0.1})
    metrics = RunMetrics(folder)
    metrics.queued(count, "cuda", 1)
    with closing(EventLog(folder / "log")) as log:
        clock = time.process_time()
        for _ in range(count):
            facts = {"valid_px": record.valid_px, "attempt": record.attempt, "seconds": record.seconds}
            log.write("shard_committed", image=job.out.name, shard=record.shard, **facts)
            metrics.committed(record)
        return (time.process_time() - clock) / count


def _template(folder: Path, side: int) -> SegmentJob:
    """Return the real job of a small picture with the plan of a large one."""
    import numpy as np
    from PIL import Image

    from unetpp.package import bundled_package
    from unetpp.tiling import make_plan

    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "image.png")
    job = prepare_job(folder / "image.png", folder / "image", bundled_package("landcover"), engine="torch")
    plan = make_plan(side, side, halo=job.plan.halo, multiple=job.plan.multiple, core=2048, shard=8192)
    return replace(job, plan=plan)


def _prepared(template: SegmentJob, text: str, folder: Path, index: int) -> Prepared:
    """Return all that a driver keeps of an image while its shards are computed."""
    job = _job(text, folder, index)
    # What images of one model share is one object in a driver, too.
    shared = {name: getattr(template, name) for name in ("classes", "engine", "package")}
    return Prepared(Source(job.uri, job.out), replace(job, **shared), pending_places(job), {"prepare": index / 7})


def _job(text: str, folder: Path, index: int) -> SegmentJob:
    """Return a job that shares nothing with another, as they are prepared one by one."""
    name = f"slide-{index:07d}"
    own = {"uri": f"s3://archive/{name}.svs", "out": str(folder / name), "key": f"{index:064x}"}
    return SegmentJob.from_json({**json.loads(text), **own})


def _simulate(
    queue: ShardQueue, workers: int, seconds: float, *, lost: float, record: dict[str, Any]
) -> tuple[float, float, int]:
    """Return the driver's seconds, the simulated makespan and how many shards were lost with a worker.

    Args:
        seconds: that a worker takes for a shard, give or take a fifth; each has several open, which share its time.
        lost: share of the shards whose worker is taken away.
    """
    chance = random.Random(0)  # noqa: S311 (no secret)
    events: list[tuple[float, int, Task]] = []
    order = itertools.count()
    now, again = 0.0, 0
    clock = time.process_time()
    for _ in range(workers * SHARDS_PER_SLOT):
        if (task := queue.take()) is not None:
            heapq.heappush(events, (now + SHARDS_PER_SLOT * seconds * chance.uniform(0.8, 1.2), next(order), task))
    while events:
        now, _, task = heapq.heappop(events)
        if task.attempt == 1 and chance.random() < lost:
            again += 1
            queue.settle(task, Result(error="taken away"))
        else:
            queue.settle(task, Result(record=record))
        if (following := queue.take()) is not None:
            heapq.heappush(events, (now + SHARDS_PER_SLOT * seconds * chance.uniform(0.8, 1.2), next(order), following))
    return time.process_time() - clock, now, again


def _record(job: SegmentJob) -> CommitRecord:
    counts = {entry.value: 1 for entry in job.classes}
    return CommitRecord(shard="0.0", key=job.key, sha256=None, size=0, valid_px=0, counts=counts)


def _commit_check(template: SegmentJob) -> float:
    """Return the seconds of a core that looking after one committed shard takes."""
    shards = template.plan.shards()
    for shard in shards:
        commit.write(template.store, replace(_record(template), shard=shard.id))
    rounds = []
    for _ in range(200):
        clock = time.process_time()
        assert not pending(template)
        rounds.append(time.process_time() - clock)
    return median(rounds) / len(shards)


def _rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
