"""Makes one training store from a data set, or continues to: surveys, plan and shards in their order; draws nothing.

    STORE.zarr               the store, see `unetpp.train.store`
    STORE.zarr.work/         surveys and markers of what is finished; deleted when the store is
    STORE.html               the page, see `unetpp_workflows.prepare.page`

Tasks are a survey of one image and the filling of one shard. Both are Dask tasks, on threads of this process or on a
Ray cluster, and both write their result before they end: only names travel, and a killed run starts where it ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import discard_folder, output_errors, sync_tree, write_file
from unetpp.errors import StoreError
from unetpp.lock import FolderLock
from unetpp.train.store import ATTRIBUTES, FORMAT
from unetpp_workflows.prepare.dataset import Dataset
from unetpp_workflows.prepare.faults import Fault
from unetpp_workflows.prepare.finish import finish
from unetpp_workflows.prepare.layout import Layout, create_arrays, plan_layout, stored_boxes
from unetpp_workflows.prepare.rows import list_rows
from unetpp_workflows.prepare.shards import MARKERS, PLAN, SURVEYS, TABLES, Work, run_shard, run_survey
from unetpp_workflows.prepare.survey import Survey, survey_key
from unetpp_workflows.prepare.whole_set import set_faults

if TYPE_CHECKING:
    pass

Progress = Callable[[str, int, int], None]
"""Called with what is counted, how many are done, and of how many."""


@dataclass(frozen=True)
class Run:
    """Who computes; never changes a result. `workers` 0 means one per CPU core."""

    executor: str = "local"
    workers: int = 0
    address: str | None = None


@dataclass(frozen=True)
class Prepared:
    """What came of it: the store's attributes, None where errors kept it from being made."""

    store: Path
    facts: dict[str, Any] | None
    faults: tuple[Fault, ...]
    fresh: bool = True

    @property
    def errors(self) -> list[Fault]:
        return [fault for fault in self.faults if fault.level == "error"]


def prepare(
    dataset: Dataset, root: Path, store: Path, *, run: Run | None = None, progress: Progress | None = None
) -> Prepared:
    """Make the store, continue a killed run, or find it finished.

    Args:
        root: folder that the data set's paths start from.
        store: path that ends in .zarr; its parent is made when missing.

    Raises:
        DataError: the data set cannot be listed or split.
        StoreError: something else lies at `store`, or it was made from other data or settings.
        OutputError: the disk is full or cannot be written. CorruptImageError: an image does not decode.
    """
    rows = list_rows(dataset.data, root)
    settings = json.dumps([FORMAT, dataset.model_dump(mode="json", exclude={"name"})], sort_keys=True)
    keys = [survey_key(row, settings, root) for row in rows]
    key = hashlib.sha256("\n".join([settings, *keys]).encode()).hexdigest()
    before = stored_facts(store)
    if before is not None and before["complete"]:
        if before["key"] != key:
            raise StoreError(f"{store} was made from other data or settings; delete it, or choose another --output")
        return Prepared(store, before, tuple(Fault(**fault) for fault in before["faults"]), fresh=False)
    work = Work(store, work_folder(store))
    with output_errors(store):
        work.folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(work.folder, exclusive=True), _scheduler(run or Run(), len(rows)) as compute:
        for name in (SURVEYS, MARKERS):
            (work.folder / name).mkdir(exist_ok=True)
        plan = {
            "key": key,
            "keys": keys,
            "dataset": dataset.model_dump(mode="json"),
            "rows": [r.to_json() for r in rows],
        }
        write_file(work.folder / PLAN, json.dumps(plan).encode())
        pending = [image for image in range(len(rows)) if work.survey(image) is None]
        compute(partial(run_survey, work), pending, len(rows), _told(progress, "images"))
        surveys, boxes = _collect(work)
        faults = [*(fault for found in surveys for fault in found.faults), *set_faults(dataset, rows, surveys)]
        faults = sorted(set(faults))
        if any(fault.level == "error" for fault in faults):
            return Prepared(store, None, tuple(faults))
        layout = _plan(work, dataset, surveys, boxes)
        _create(work, dataset, surveys, layout, keep=before is not None and before["key"] == key)
        pending = [shard for shard in range(layout.shards) if work.marker(shard) is None]
        compute(partial(run_shard, work), pending, layout.shards, _told(progress, "shards"))
        facts = finish(work, dataset, surveys, layout, faults)
    return Prepared(store, facts, tuple(faults))


def work_folder(store: Path) -> Path:
    return store.with_name(f"{store.name}.work")


def discard_work(store: Path) -> None:
    """Delete what a finished store no longer needs. Raises `OutputError`."""
    if work_folder(store).is_dir():
        discard_folder(work_folder(store))


def stored_facts(store: Path) -> dict[str, Any] | None:
    """Return the attributes of a training store, finished or not; None where there is nothing.

    Raises:
        StoreError: something else lies there.
    """
    if not store.exists():
        return None
    try:
        facts = json.loads((store / "zarr.json").read_bytes())["attributes"][ATTRIBUTES]
        assert isinstance(facts, dict) and facts["format"] == FORMAT and "key" in facts
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise StoreError(f"{store} exists and is no training store of this version; choose another --output") from None
    return facts


def _told(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    return (lambda done, total: None) if progress is None else partial(progress, what)


Compute = Callable[[Callable[[int], None], Sequence[int], int, Callable[[int, int], None]], None]


@contextmanager
def _scheduler(run: Run, tasks: int) -> Iterator[Compute]:
    """Yield what runs one function over many numbers: Dask, on threads or on Ray."""
    workers = run.workers or os.cpu_count() or 1
    if run.executor != "ray":
        yield partial(_compute, workers, None)
        return
    import sys
    from contextlib import redirect_stdout

    from unetpp_workflows.dask_ray import RayScheduler
    from unetpp_workflows.executors.session import ray_session

    # Ray reports dead workers on standard output, which belongs to the program's results.
    with redirect_stdout(sys.stderr), ray_session(run.address, cpus=min(workers, max(1, tasks))):
        yield partial(_compute, workers, RayScheduler)


def _compute(
    workers: int,
    scheduler: Any,
    task: Callable[[int], None],
    numbers: Sequence[int],
    total: int,
    told: Callable[[int, int], None],
) -> None:
    from dask.base import compute
    from dask.callbacks import Callback
    from dask.delayed import delayed

    done = [total - len(numbers)]
    told(done[0], total)

    def count(*_: object) -> None:
        done[0] += 1
        told(done[0], total)

    if not numbers:
        return
    calls = [delayed(task, pure=False, traverse=False)(number) for number in numbers]
    if scheduler is not None:
        compute(*calls, scheduler=scheduler(on_task=count))
    else:
        with Callback(posttask=count):
            compute(*calls, scheduler="threads", num_workers=workers)


def _collect(work: Work) -> tuple[list[Survey], list[NDArray[np.int32]]]:
    """Return every survey, without its list of blocks, and the boxes of the patches of every image."""
    data, classes = work.dataset.data, len(work.dataset.classes)
    surveys, boxes = [], []
    for image in range(len(work.rows)):
        found = work.survey(image)
        assert found is not None
        boxes.append(stored_boxes(found, side=data.side, context=data.context))
        total = found.labelled(classes)
        surveys.append(replace(found, blocks=((0, 0, *(int(v) for v in total)),)))
    return surveys, boxes


def _plan(work: Work, dataset: Dataset, surveys: Sequence[Survey], boxes: Sequence[NDArray[np.int32]]) -> Layout:
    first = surveys[0]
    layout = plan_layout(
        boxes, side=dataset.data.side, bytes_per_pixel=len(first.bands) * np.dtype(first.dtype).itemsize
    )
    path = work.folder / TABLES
    with output_errors(path):
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez(file, image=layout.image, box=layout.box, sizes=np.array([layout.side, layout.per_shard]))
        path.with_suffix(".tmp").replace(path)
    return layout


def _create(work: Work, dataset: Dataset, surveys: Sequence[Survey], layout: Layout, *, keep: bool) -> None:
    """Make the store's arrays, empty, in one step; an unfinished store of the same key is kept."""
    import zarr

    if keep and work.store.is_dir():
        return
    with output_errors(work.store):
        discard_folder(work.store)
        fresh = work.folder / "new.zarr"
        shutil.rmtree(fresh, ignore_errors=True)
        group = zarr.open_group(fresh, mode="w", zarr_format=3)
        group.attrs.put({ATTRIBUTES: {"format": FORMAT, "complete": False, "key": work.key}})
        first = surveys[0]
        create_arrays(group, layout, bands=len(first.bands), dtype=first.dtype, objects=dataset.data.instances)
        sync_tree(fresh)
        fresh.replace(work.store)
