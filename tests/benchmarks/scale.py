"""What one driver costs at the scale of a million slides: its memory, its seconds, its share of the makespan.

    python tests/benchmarks/scale.py --images 1000000 --gpus 1000
    python tests/benchmarks/scale.py --check

The real plan, job and queue are run against simulated workers: each takes a time per shard that is given, not measured
here, and is taken away now and then like a spot machine. Only the driver's own work is timed. `--check` simulates this
machine instead, with the time per shard that a small slide took on one worker, and then runs a larger one for real.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from unetpp import commit
from unetpp.commit import CommitRecord
from unetpp.job import SegmentJob, pending
from unetpp.segment import prepare_job
from unetpp_workflows.executors.base import SHARDS_PER_SLOT, Result, ShardQueue, Task
from unetpp_workflows.machine import cpu_count


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
    """Predict real runs of one and two workers from what a smaller slide took on one, and run them."""
    for _ in range(2):  # the first also compiles
        job, seconds = _run(folder, "small", 3072, 1)
    rate = seconds / (job.plan.height * job.plan.width)
    found: dict[str, Any] = {"s per Mpx on one worker": round(rate * 1e6, 4)}
    for workers in (1, 2):
        job, real = _run(folder, "large", 8192, workers)
        record, job = _record(job).to_json(), replace(job, out=folder / "not-begun")
        _, predicted, _ = _simulate(ShardQueue([job]), workers, job.plan.shard**2 * rate, lost=0.0, record=record)
        found[f"{workers} workers"] = {
            "shards": len(job.plan.shards()),
            "predicted s": round(predicted, 1),
            "real s": round(real, 1),
            "predicted / real": round(predicted / real, 3),
        }
    return found


def _run(folder: Path, name: str, side: int, workers: int) -> tuple[SegmentJob, float]:
    """Compute all shards of a drawn slide; returns the job and the seconds it took."""
    from unetpp.drawing.slide import draw_slide
    from unetpp.package import bundled_package
    from unetpp_workflows.executors.local import run_local

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
    template = _template(folder, options.side)
    shards = len(template.plan.shards())
    before, clock = _rss(), time.process_time()
    text = json.dumps(template.to_json())
    jobs = [_job(text, folder, index) for index in range(options.images)]
    made = time.process_time() - clock
    clock = time.process_time()
    queue = ShardQueue(jobs)
    queued = time.process_time() - clock
    rss = _rss()
    total = len(queue)
    seconds = template.plan.shard**2 / 1e6 / options.mpx
    scheduled, makespan, lost = _simulate(
        queue, options.gpus, seconds, lost=options.lost, record=_record(template).to_json()
    )
    check = _commit_check(template)
    outcomes = queue.outcomes()
    assert sum(outcome.done for outcome in outcomes) == total and not any(outcome.failed for outcome in outcomes)
    driver = made + queued + scheduled
    return {
        "images": options.images,
        "shards": total,
        "shards per image": shards,
        "peak RSS in GiB": round(rss / 2**30, 3),
        "bytes per shard": round((rss - before) / total, 1),
        "seconds": {
            "jobs": round(made, 2),
            "queue": round(queued, 2),
            "scheduling": round(scheduled, 2),
            "commit check, of all": round(check * total, 2),
        },
        "makespan in s (simulated)": round(makespan, 1),
        "driver's share of the makespan": round(driver / makespan, 5),
        "share of a run that finds all shards done and checks them": round((driver + check * total) / makespan, 5),
        "shards computed again": lost,
        "cores": cpu_count(),
    }


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
