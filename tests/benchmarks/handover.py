"""Compares two ways for pixels to reach a network on Ray: our actors, and Ray Data's stages; writes handover.json.

    UNETPP_DATA=DATA python tests/benchmarks/handover.py [--rounds 3] [--height 8192 --width 8192]

actors    run_ray: an actor reads a shard's window, computes and writes it; two calls at a time, so that reading and
          writing go on beside computing. No pixel leaves the process that read it.
raydata   ray.data: tasks read windows, a pool of actors computes them, tasks write shards. Pixels and labels go
          through Ray's object store.

Both have a session of Ray with two CPUs for computing, the same shards, engine and output; the labels must be equal
to the byte. `nuclei` is the bundled model. `small` is a network of two levels and random weights, an order of
magnitude faster, as a GPU would be: there the hand-over shows. Then a shard whose worker dies each time it is tried:
which way ends, when, and with what done. Ray's own start is not counted. Memory is that of all processes; watch.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import torch
from archive import SOURCE, make_slide
from speed import provenance
from watch import watch

from unetpp import commit
from unetpp.commit import CommitRecord
from unetpp.durable import file_sha256
from unetpp.geometry import Box
from unetpp.io import open_raster
from unetpp.io.resample import GridReader
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.package import bundled_package, load_package, save_package
from unetpp.segment import SegmentJob, prepare_job
from unetpp.shard_worker import shared_engine
from unetpp.store import LabelStore
from unetpp.tiling import Shard, cut
from unetpp_workflows.executors import ray as executor
from unetpp_workflows.executors.base import Result

HERE = Path(__file__).resolve().parent
RESULT = HERE / "handover.json"
WORKERS, CORE, SHARD = 2, 1024, 1024
GIVE_UP_S = 90.0
"""How long a way may try the shard that kills its worker."""
POISON = "1.1"
Row = dict[str, Any]


def small_package(folder: Path) -> Path:
    """Save a network of two levels with random weights and the nuclei model's classes."""
    spec = load_package(bundled_package("nuclei")).spec
    torch.manual_seed(0)
    config = GridConfig(filters=(8, 16), conv="pw_dw", classes=spec.architecture.classes)
    return save_package(
        folder, UNetPlusPlus(config), replace(spec, name="small", architecture=config), "# small\n"
    ).folder


class Poisoned(executor.ShardActor):
    """Dies with one of the shards."""

    def run(self, jobs: Any, attempt: int) -> list[Result]:
        if any(POISON in shards for _, _, shards in jobs):
            os._exit(1)
        return super().run(jobs, attempt)


def by_actors(job: SegmentJob, poison: bool) -> dict[str, str]:
    """Compute a job as `unetpp segment --executor ray` does; returns what failed."""
    if poison:
        executor.ShardActor = Poisoned  # type: ignore[misc]  # the poison must sit inside of the actor
    (outcome,) = executor.run_ray([job], workers=WORKERS)
    return outcome.failed


@cache
def loaded(folder: str) -> SegmentJob:
    job = SegmentJob.load(Path(folder))
    assert job is not None
    return job


@cache
def reader(folder: str) -> GridReader:
    """The image of a job, kept open in every process that reads."""
    job = loaded(folder)
    return GridReader(open_raster(job.uri), job.grid)


@cache
def shards(folder: str) -> dict[str, Shard]:
    return {shard.id: shard for shard in loaded(folder).plan.shards()}


def window(job: SegmentJob, shard: Shard) -> Box:
    """Return what a shard's tiles read, inside of the image."""
    boxes = [tile.read_box for tile in job.plan.tiles(shard)]
    y0, x0 = min(box.y0 for box in boxes), min(box.x0 for box in boxes)
    y1, x1 = max(box.y1 for box in boxes), max(box.x1 for box in boxes)
    return Box(y0, x0, y1, x1).clip(job.plan.height, job.plan.width)


def read(row: Row) -> Row:
    job = loaded(row["folder"])
    found = reader(row["folder"]).read(window(job, shards(row["folder"])[row["shard"]]))
    return {**row, "pixels": found.pixels}


class Compute:
    """One place to compute: the labels of a shard from its pixels."""

    def __init__(self, folder: str) -> None:
        job = loaded(folder)
        choice = job.engine
        package = load_package(job.package)
        self._engine = shared_engine(package, name=choice.name, precision=choice.precision, threads=choice.threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        folder, name = str(batch["folder"][0]), str(batch["shard"][0])
        if batch["poison"][0] and name == POISON:
            os._exit(1)
        job, shard = loaded(folder), shards(folder)[name]
        inside, pixels = window(job, shard), batch["pixels"][0]
        labels = np.empty(shard.box.shape, np.uint8)
        for tile in job.plan.tiles(shard):
            margins = top, left, bottom, right = job.plan.margins(tile, exact=self._engine.any_margins)
            box = tile.read_box
            inner = Box(box.y0 + top, box.x0 + left, box.y1 - bottom, box.x1 - right)
            tile_pixels = cut(pixels, inside, box, job.plan.height, job.plan.width)
            found = self._engine.labels(tile_pixels, margins)
            labels[tile.write_box.slices(shard.box)] = found[tile.write_box.slices(inner)]
        return {"folder": [folder], "shard": [name], "labels": labels[None]}


def write(row: Row) -> Row:
    job, shard, labels = loaded(row["folder"]), shards(row["folder"])[row["shard"]], row["labels"]
    store = LabelStore(job.out, job.plan)
    path = store.write_shard(shard, labels)
    counts = {c.value: int(np.count_nonzero(labels == c.value)) for c in job.classes}
    record = CommitRecord(
        shard=shard.id,
        key=job.key,
        sha256=file_sha256(path),
        size=path.stat().st_size,
        valid_px=labels.size,
        counts=counts,
    )
    commit.write(store, record)
    return {"shard": shard.id}


def by_raydata(job: SegmentJob, poison: bool) -> dict[str, str]:
    """Compute a job as a pipeline of Ray Data; returns what failed, as far as it says so."""
    import ray.data

    folder = str(job.out)
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"folder": folder, "shard": shard.id, "poison": poison} for shard in job.plan.shards()]
    pool = ray.data.ActorPoolStrategy(size=WORKERS)
    stages = ray.data.from_items(items, override_num_blocks=len(items)).map(read, num_cpus=0.5)
    stages = stages.map_batches(Compute, fn_constructor_args=(folder,), batch_size=1, compute=pool, num_cpus=1)
    for _ in stages.map(write, num_cpus=0.49).iter_batches(batch_size=None):
        pass
    return {}


WAYS: dict[str, Callable[[SegmentJob, bool], dict[str, str]]] = {"actors": by_actors, "raydata": by_raydata}


def child(asked: argparse.Namespace) -> None:
    """Run one way in this process and print what came of it as JSON."""
    options: dict[str, Any] = {"tissue": "none", "core": CORE, "shard": SHARD, "threads": 1}
    job = prepare_job(asked.slide, asked.out, load_package(asked.package), **options)
    # Ray Data's readers and writers need CPUs beside those of its actors; our actors have theirs inside.
    cpus = WORKERS if asked.way == "actors" else 2 * WORKERS
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="ho-", dir="/tmp")  # a socket's path must be short
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ray.init(num_cpus=cpus, include_dashboard=False, _temp_dir=folder, log_to_driver=False, logging_level="ERROR")
        stack.callback(ray.shutdown)
        began = time.perf_counter()
        failed = WAYS[asked.way](job, asked.poison)
        seconds = time.perf_counter() - began
    print(json.dumps({"run_seconds": round(seconds, 2), "failed": failed}))


def run(way: str, package: Path, slide: Path, folder: Path, poison: bool = False) -> dict[str, Any]:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    # By its name: Ray's processes import what they run, and cannot from a program.
    command = [sys.executable, "-c", "import handover; handover.main()"]
    command += ["--way", way, "--package", str(package), "--slide", str(slide), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    most = GIVE_UP_S if poison else None
    watched = watch(command + ["--poison"] * poison, environment=environment, most_seconds=most)
    figures = watched.figures() | {"done": len(list((out / "commits").glob("*.json")))}
    if watched.ended == "done":
        figures |= json.loads([line for line in watched.text.splitlines() if line.startswith("{")][-1])
    elif not poison:
        sys.exit(f"{way} {watched.ended}:\n{watched.text[-3000:]}")
    print(way, package.name, json.dumps(figures), flush=True)
    return figures


def digests(out: Path) -> dict[str, str]:
    labels = out / "labels.ome.zarr" / "classes" / "0"
    return {str(path.relative_to(labels)): file_sha256(path) for path in sorted(labels.rglob("*")) if path.is_file()}


def compare(folder: Path, slide: Path, asked: argparse.Namespace) -> dict[str, Any]:
    packages = {"nuclei": bundled_package("nuclei"), "small": small_package(folder / "small")}
    mpx = asked.height * asked.width / 1e6
    rows: list[dict[str, Any]] = []
    for name, package in packages.items():
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        found: dict[str, dict[str, str]] = {}
        for _ in range(asked.rounds):
            for way in WAYS:
                runs[way].append(run(way, package, slide, folder))
                found[way] = digests(folder / "out")
        if found["actors"] != found["raydata"]:
            sys.exit(f"{name}: the two ways wrote different labels")
        for way in WAYS:
            seconds = median(figures["run_seconds"] for figures in runs[way])
            peak = round(median(figures["peak_pss_mb"] for figures in runs[way]))
            rows.append(
                {"network": name, "way": way, "mpx_s": round(mpx / seconds, 3), "peak_pss_mb": peak, "runs": runs[way]}
            )
    poisoned = {way: run(way, packages["small"], slide, folder, poison=True) for way in WAYS}
    return {"rows": rows, "poisoned": poisoned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--height", type=int, default=8192)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--work", type=Path, help="folder for slide and results, a temporary one by default")
    parser.add_argument("--output", type=Path, default=RESULT)
    inner = parser.add_argument_group("one run, as this program starts itself")
    inner.add_argument("--way", choices=WAYS)
    for name in ("package", "slide", "out"):
        inner.add_argument(f"--{name}", type=Path)
    inner.add_argument("--poison", action="store_true")
    asked = parser.parse_args()
    if asked.way:
        child(asked)
        return
    source = Path(os.environ.get("UNETPP_DATA", "")) / "slides" / SOURCE
    if not source.is_file():
        sys.exit("set UNETPP_DATA to the folder of sample images")
    facts = provenance("tests/benchmarks/handover.py", ("ray", "torch", "openvino"))
    with tempfile.TemporaryDirectory(prefix="unetpp-handover-", dir=asked.work) as folder:
        slide = Path(folder) / "slide.tif"
        make_slide(source, slide, asked.height, asked.width)
        size = {
            "height": asked.height,
            "width": asked.width,
            "shard": SHARD,
            "workers": WORKERS,
            "rounds": asked.rounds,
        }
        facts |= {**size, "give_up_s": GIVE_UP_S, **compare(Path(folder), slide, asked)}
    asked.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
