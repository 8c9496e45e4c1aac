"""Threads of this process: the same bytes for any number, real faults named, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.data import immunohistochemistry

from unetpp import commit
from unetpp.commit import CommitRecord, verify
from unetpp.errors import CorruptImageError
from unetpp.segment import SegmentJob, ShardWorker, pending, progress
from unetpp.windows import Windows
from unetpp_workflows.executors.base import Crew, Outcome, Worker
from unetpp_workflows.executors.local import run_local

Prepare = Callable[..., SegmentJob]
Files = Callable[[SegmentJob], dict[str, str]]


def test_any_number_of_threads_makes_the_same_bytes(prepare: Prepare, hashes: Files) -> None:
    one, three = prepare("one"), prepare("three")
    assert run_local([one], workers=1) == (Outcome(35),)
    assert run_local([three], workers=3) == (Outcome(35),)
    assert hashes(one) == hashes(three) and len(hashes(one)) == 3 + 35


def test_one_queue_over_all_images(prepare: Prepare) -> None:
    jobs = [prepare("a", shard=256), prepare("b", shard=128), prepare("c", tissue="none")]
    seen: list[tuple[Path, str]] = []

    def on_commit(job: SegmentJob, record: CommitRecord) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((job.out, record.shard))

    assert run_local(jobs, workers=2, on_commit=on_commit) == (Outcome(4), Outcome(12), Outcome(35))
    assert len(seen) == len(set(seen)) == 51
    assert [progress(job).status for job in jobs] == ["done"] * 3
    assert run_local(jobs, workers=2, on_commit=on_commit) == (Outcome(),) * 3 and len(seen) == 51


def test_nothing_to_do() -> None:
    assert run_local([]) == ()


def save_scene_with_a_corrupt_tile(path: Path) -> None:
    import rasterio
    import tifffile

    pixels = np.maximum(immunohistochemistry()[:300, :300], 1)
    profile = {"driver": "GTiff", "height": 300, "width": 300, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    with rasterio.open(path, "w", **profile, **tiles, transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6)) as scene:
        scene.write(np.moveaxis(pixels, -1, 0))
    with tifffile.TiffFile(path) as tiff:
        start, size = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * size)


def test_a_corrupt_tile_is_named_and_the_rest_is_done(prepare: Prepare, tmp_path: Path) -> None:
    save_scene_with_a_corrupt_tile(tmp_path / "scene.tif")
    bad, good = prepare("bad", uri=tmp_path / "scene.tif"), prepare("good")
    first, second = run_local([bad, good], workers=2)
    assert set(first.failed) == {"0.0", "0.1", "1.0", "1.1"} and first.done == 21 and second == Outcome(35)
    assert all("scene.tif" in message and "\n" not in message for message in first.failed.values())
    assert {shard.id for shard in pending(bad)} == set(first.failed)
    assert progress(bad).status == "partial"


def test_a_full_disk_stops_its_image_only_and_keeps_what_is_done(
    prepare: Prepare,
    small_disk: Callable[[int], Path],
    hashes: Files,
    records: Callable[[SegmentJob], dict[str, tuple[int, int]]],
) -> None:
    ballast = small_disk(400) / "ballast"
    full, good = prepare("disk/full", shard=64), prepare("good", shard=128)
    ballast.write_bytes(bytes(200_000))
    first, second = run_local([full, good], workers=1)
    assert 0 < first.done < 35 and len(first.failed) == 35 - first.done and second == Outcome(12)
    messages = set(first.failed.values())
    assert all("No space left on device; free disk space" in m and "\n" not in m for m in messages)
    done = records(full)
    assert len(done) == first.done
    ballast.unlink()
    again = prepare("disk/full", shard=64)
    assert run_local([again]) == (Outcome(35 - first.done),)
    assert {shard: stat for shard, stat in records(again).items() if shard in done} == done
    whole = prepare("whole", shard=64)
    run_local([whole])
    assert hashes(again) == hashes(whole) and verify(again.store, again.key) == {}


INTERRUPTED = """
import json, os, signal, sys, threading
from pathlib import Path
from unetpp.segment import SegmentJob
from unetpp_workflows.executors.local import run_local

job = SegmentJob.load(Path(sys.argv[1]))
seen = []

def on_commit(_, record):
    seen.append(record.shard)
    if len(seen) == 4:
        os.kill(os.getpid(), signal.SIGINT)

try:
    run_local([job], workers=2, on_commit=on_commit)
except KeyboardInterrupt:
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("shard")]
    print(json.dumps([seen, left]))
"""


def test_ctrl_c_ends_soon_and_keeps_what_is_done(prepare: Prepare) -> None:
    job = prepare()
    command = [sys.executable, "-c", INTERRUPTED, str(job.out)]
    driver = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert driver.returncode == 0 and driver.stdout, driver.stderr
    seen, threads = json.loads(driver.stdout)
    left = {shard.id for shard in pending(job)}
    assert threads == [] and len(seen) == 4 and not left & set(seen) and len(left) > 20
    assert run_local([prepare()], workers=2) == (Outcome(len(left)),)


def test_one_shard_is_read_while_another_computes(
    prepare: Prepare, hashes: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, job = prepare("expected", shard=128), prepare("overlapped", shard=128)
    run_local([expected])
    running = {"read": 0, "compute": 0}
    together = {"read": 0, "compute": 0, "both": 0}
    lock = threading.Lock()

    def watched(stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with lock:
                running[stage] += 1
                together[stage] = max(together[stage], running[stage])
                together["both"] += all(running.values())
            time.sleep(0.005)
            try:
                return work(*arguments)
            finally:
                with lock:
                    running[stage] -= 1

        return run

    monkeypatch.setattr(Windows, "read", watched("read", Windows.read))
    monkeypatch.setattr(ShardWorker, "_tile", watched("compute", ShardWorker._tile))
    assert run_local([job], workers=1) == (Outcome(12),)
    assert together["compute"] == 1 and 1 <= together["read"] <= 2 and together["both"] > 5
    assert hashes(job) == hashes(expected)


def test_threads_without_a_shard_compute_tiles_of_others(
    prepare: Prepare, hashes: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, job = prepare("expected", shard=448), prepare("helped", shard=448)
    monkeypatch.setattr(Crew, "help", lambda self: None)
    run_local([expected])
    monkeypatch.undo()
    by: dict[str, set[str]] = {}
    tile = ShardWorker._tile

    def watched(self: ShardWorker, *arguments: Any) -> Any:
        by.setdefault(str(self.job.out.name), set()).add(threading.current_thread().name)
        time.sleep(0.005)
        return tile(self, *arguments)

    monkeypatch.setattr(ShardWorker, "_tile", watched)
    opened, closed = [], []
    make, close = ShardWorker.__init__, ShardWorker.close
    monkeypatch.setattr(ShardWorker, "__init__", lambda *a, **k: (opened.append(a[0]), make(*a, **k))[1])
    monkeypatch.setattr(ShardWorker, "close", lambda self: (closed.append(self), close(self))[1])

    def on_commit(_: SegmentJob, __: CommitRecord) -> None:
        assert len(opened) >= 3 and len(closed) == len(opened) - 1  # nobody who helped keeps the folder from finishing

    assert len(job.plan.shards()) == 1
    assert run_local([job], workers=3, on_commit=on_commit) == (Outcome(1),)
    assert len(by["helped"]) >= 3
    assert hashes(job) == hashes(expected)
    kept, made = (commit.committed_record(j.store, j.plan.shards()[0], j.key) for j in (expected, job))
    assert kept is not None and made is not None and kept.counts == made.counts and kept.sha256 == made.sha256


def test_a_tile_that_fails_a_helper_fails_the_shard_and_is_tried_again(
    prepare: Prepare, hashes: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, job = prepare("expected", shard=448), prepare("helped", shard=448)
    run_local([expected])
    tile, failed = ShardWorker._tile, threading.Event()
    owner: list[int] = []

    def failing(self: ShardWorker, *arguments: Any) -> Any:
        owner.append(threading.get_ident())
        if threading.get_ident() != owner[0] and not failed.is_set():
            failed.set()
            raise CorruptImageError("tile 3: once only")
        time.sleep(0.01)
        return tile(self, *arguments)

    monkeypatch.setattr(ShardWorker, "_tile", failing)
    assert run_local([job], workers=2, attempts=2) == (Outcome(1),) and failed.is_set()
    record = commit.committed_record(job.store, job.plan.shards()[0], job.key)
    assert record is not None and record.attempt == 2 and hashes(job) == hashes(expected)


def test_nobody_computes_more_of_a_shard_that_has_failed(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(shard=448)
    owner, tries = threading.Event(), []

    def failing(self: ShardWorker, *arguments: Any) -> Any:
        if not owner.is_set():
            owner.set()
            time.sleep(1)
            return None
        tries.append(arguments[0])
        raise CorruptImageError("a server that answers nothing takes minutes of every tile")

    monkeypatch.setattr(ShardWorker, "_tile", failing)
    [outcome] = run_local([job], workers=2, attempts=1)
    assert "takes minutes" in outcome.failed["0.0"] and 1 <= len(tries) <= 2  # by two helpers


def test_what_no_shard_survives_in_its_own_thread_none_survives_in_a_helper(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library in Rust that panics raises something that is no `Exception`."""

    class PanicError(BaseException):
        pass

    job = prepare(shard=448)
    tile = ShardWorker._tile
    owner: list[int] = []

    def failing(self: ShardWorker, *arguments: Any) -> Any:
        owner.append(threading.get_ident())
        if threading.get_ident() != owner[0]:
            raise PanicError("tile 3")
        time.sleep(0.01)
        return tile(self, *arguments)

    monkeypatch.setattr(ShardWorker, "_tile", failing)
    with pytest.raises(PanicError, match="tile 3"):
        run_local([job], workers=2)
    assert len(set(owner)) > 1 and [shard.id for shard in pending(job)] == ["0.0"]


def test_a_helper_that_cannot_open_the_image_is_done_without(
    prepare: Prepare, hashes: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, job = prepare("expected", shard=448), prepare("alone", shard=448)
    run_local([expected])
    first, opened = Worker._worker, threading.Event()

    def once(self: Worker, job: SegmentJob) -> ShardWorker:
        if opened.is_set():
            raise CorruptImageError("it was there a moment ago")
        opened.set()
        return first(self, job)

    monkeypatch.setattr(Worker, "_worker", once)
    assert run_local([job], workers=3) == (Outcome(1),)
    assert "cannot help" in caplog.text and hashes(job) == hashes(expected)
