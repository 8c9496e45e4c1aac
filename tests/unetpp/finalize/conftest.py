"""A finished segmentation made from given labels, without any model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from unetpp import commit
from unetpp.commit import CommitRecord
from unetpp.durable import file_sha256
from unetpp.geometry import Spacing, Transform
from unetpp.io.resample import OutputGrid
from unetpp.job import EngineChoice, SegmentJob
from unetpp.package import ClassInfo
from unetpp.store import LabelStore
from unetpp.tiling import Shard, make_plan

CLASSES = (
    ClassInfo(value=0, name="background", color=(0, 0, 0), background=True),
    ClassInfo(value=1, name="nucleus", color=(200, 10, 20)),
    ClassInfo(value=4, name="Gebäude", color=(0, 90, 255)),
)
MakeJob = Callable[..., SegmentJob]


def commit_shard(job: SegmentJob, shard: Shard, labels: NDArray[np.uint8]) -> None:
    part = labels[shard.box.slices()]
    digest, size = None, 0
    if (part != 255).any():
        path = job.store.write_shard(shard, part)
        digest, size = file_sha256(path), path.stat().st_size
    counts = {info.value: int((part == info.value).sum()) for info in CLASSES}
    record = CommitRecord(
        shard=shard.id, key=job.key, sha256=digest, size=size, valid_px=sum(counts.values()), counts=counts
    )
    commit.write(job.store, record)


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """Return `make(labels, ...)`: the job whose committed shards hold these labels."""

    def make(
        labels: NDArray[np.uint8],
        *,
        crs: str | None = None,
        transform: Transform | None = None,
        spacing: Spacing | None = None,
        shard: int = 128,
        step: float = 1.0,
        name: str = "out",
    ) -> SegmentJob:
        height, width = labels.shape
        out = tmp_path / name
        out.mkdir()
        grid = OutputGrid(height, width, step, step, 0, spacing, transform, crs)
        plan = make_plan(height, width, halo=16, multiple=16, core=128 if shard % 128 == 0 else 64, shard=shard)
        engine = EngineChoice(name="torch", version="0", precision="fp32", threads=1)
        job = SegmentJob(
            uri="image",
            out=out,
            package=out,
            model_ref={},
            classes=CLASSES,
            engine=engine,
            grid=grid,
            plan=plan,
            fingerprint="f",
            key="5ca1ab1e" * 8,
        )
        LabelStore.create(out, plan, grid, CLASSES)
        job.save()
        for part in plan.shards():
            commit_shard(job, part, labels)
        return job

    return make
