"""Dask graphs on Ray: the values of Dask's own scheduler, errors as they were raised, dead workers replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.array
import numpy as np
import pytest
import zarr

from unetpp.errors import DataError
from unetpp_workflows.dask_ray import RayScheduler
from unetpp_workflows.executors.session import ray_session


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with ray_session(None, cpus=2):
        yield


def test_graphs_with_shared_parts_and_zarr_arrays(tmp_path: Path) -> None:
    stored = zarr.create_array(tmp_path / "a.zarr", shape=(40, 60), chunks=(20, 20), dtype="int64")
    stored[...] = np.arange(2400).reshape(40, 60)
    lazy = dask.array.from_zarr(str(tmp_path / "a.zarr"))
    blurred = lazy.map_overlap(lambda block: block + 1, depth=2)
    counted = []
    scheduler = RayScheduler(on_task=lambda: counted.append(1))
    total, corner = dask.compute((blurred * 2).sum(), blurred[:2, :2], scheduler=scheduler)
    assert total == 2 * (2400 * 2399 // 2 + 2400)
    assert corner.tolist() == [[1, 2], [61, 62]]
    assert len(counted) > 6


def test_the_error_of_a_task_arrives_as_it_was_raised() -> None:
    def fail() -> None:
        raise DataError("no such label; draw one")

    with pytest.raises(DataError, match=r"^no such label; draw one$"):
        dask.compute(dask.delayed(fail)(), scheduler=RayScheduler())


def test_a_task_whose_worker_is_killed_runs_again(tmp_path: Path) -> None:
    def die_once(marker: str) -> int:
        if not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), 9)
        return 7

    assert dask.compute(dask.delayed(die_once)(str(tmp_path / "m")), scheduler=RayScheduler())[0] == 7
