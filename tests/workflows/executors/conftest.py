"""Fixtures of the executors: one Ray session for all tests, one real image, and the bytes that every executor makes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unetpp.segment import SegmentJob, prepare_job

Prepare = Callable[..., SegmentJob]
Hashes = dict[str, str]


@pytest.fixture(scope="session")
def ray_on_this_machine() -> Iterator[None]:
    """A Ray session of two CPUs, started as `run_ray` starts it, that all tests share."""
    from unetpp_workflows.executors.session import ray_session

    with ray_session(None, cpus=2):
        yield


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real stained section, 301 x 413 pixels."""
    from PIL import Image
    from skimage.data import immunohistochemistry

    path = tmp_path_factory.mktemp("image") / "section.png"
    Image.fromarray(immunohistochemistry()[:301, :413]).save(path)
    return path


@pytest.fixture
def prepare(tmp_path: Path, image: Path, tiny_package: Path) -> Prepare:
    """Prepare a job in a named folder: 35 shards of one tile each."""

    def prepare(name: str = "out", **options: Any) -> SegmentJob:
        uri = options.pop("uri", image)
        return prepare_job(uri, tmp_path / name, tiny_package, **{"core": 64, "shard": 64, **options})

    return prepare


@pytest.fixture
def hashes() -> Callable[[SegmentJob], Hashes]:
    """Return the SHA-256 of every file of a job's label store, by relative path."""

    def hashes(job: SegmentJob) -> Hashes:
        files = (path for path in job.store.root.rglob("*") if path.is_file())
        return {str(p.relative_to(job.store.root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    return hashes


@pytest.fixture
def records() -> Callable[[SegmentJob], dict[str, tuple[int, int]]]:
    """Return inode and time of every commit record, by shard: a record that was written again has another."""

    def records(job: SegmentJob) -> dict[str, tuple[int, int]]:
        found = {path.stem: path.stat() for path in (job.out / "commits").glob("*.json")}
        return {shard: (stat.st_ino, stat.st_mtime_ns) for shard, stat in found.items()}

    return records
