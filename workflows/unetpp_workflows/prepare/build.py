"""Makes one training store from a data set, or continues to: surveys, plan, shards, figures; draws nothing.

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
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import discard_folder, output_errors, sync_tree, write_file
from unetpp.errors import StoreError
from unetpp.io.resample import SPACING_TOLERANCE
from unetpp.lock import FolderLock
from unetpp.train.store import ATTRIBUTES, FORMAT
from unetpp_workflows.prepare.dataset import SPLITS, Dataset
from unetpp_workflows.prepare.duplicates import duplicates
from unetpp_workflows.prepare.faults import Fault, error, some, warning
from unetpp_workflows.prepare.layout import Layout, create_arrays, patch_arrays, plan_layout, stored_boxes, write_table
from unetpp_workflows.prepare.rows import Row, list_rows
from unetpp_workflows.prepare.shards import MARKERS, PLAN, SURVEYS, TABLES, Work, run_shard, run_survey
from unetpp_workflows.prepare.statistics import Statistics
from unetpp_workflows.prepare.survey import Survey, survey_key

if TYPE_CHECKING:
    import zarr

Progress = Callable[[str, int, int], None]
"""Called with what is counted, how many are done, and of how many."""
_UNNAMED = re.compile(r"gray|band\d+")
"""What readers call a band that its file does not name. (The bands of a PNG are red, green and blue.)"""


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
        faults = [*(fault for found in surveys for fault in found.faults), *_set_faults(dataset, rows, surveys)]
        faults = sorted(set(faults))
        if any(fault.level == "error" for fault in faults):
            return Prepared(store, None, tuple(faults))
        layout = _plan(work, dataset, surveys, boxes)
        _create(work, dataset, surveys, layout, keep=before is not None and before["key"] == key)
        pending = [shard for shard in range(layout.shards) if work.marker(shard) is None]
        compute(partial(run_shard, work), pending, layout.shards, _told(progress, "shards"))
        facts = _finish(work, dataset, surveys, layout, faults)
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


def _set_faults(dataset: Dataset, rows: Sequence[Row], surveys: Sequence[Survey]) -> list[Fault]:
    """Return what is wrong with the set as a whole."""
    usable = [(row, found) for row, found in zip(rows, surveys, strict=True) if not found.failed]
    faults = duplicates(rows, surveys)
    if not usable:
        return faults
    kinds = Counter((found.dtype, len(found.bands)) for _, found in usable)
    if len(kinds) > 1:
        (dtype, bands), _ = kinds.most_common(1)[0]
        others = [row.name for row, found in usable if (found.dtype, len(found.bands)) != (dtype, bands)]
        faults.append(
            error(f"most images have {bands} band(s) of {dtype}, others do not: {some(others)}; convert them")
        )
    faults += _mixed_bands(usable)
    names = [c.name for c in dataset.classes]
    counts = {split: np.zeros(len(names), np.int64) for split in SPLITS}
    for row, found in usable:
        counts[row.split] += found.labelled(len(names))
    for split in SPLITS:
        present = any(row.split == split for row in rows)
        if split == "train" and not counts[split].any():
            faults.append(error("no training image has a labelled pixel; check classes, legend and splits"))
        elif present and not counts[split].any():
            faults.append(error(f"no image of the split {split} has a labelled pixel; check legend and splits"))
        elif present:
            empty = [name for name, count in zip(names, counts[split], strict=True) if not count]
            if empty:
                faults.append(warning(f"class without a pixel in {split}: {', '.join(empty)}"))
    if "val" not in {row.split for row in rows}:
        faults.append(warning("no image is in val: training cannot be validated"))
    sizes = [found for _, found in usable]
    if dataset.data.spacing is None and common_spacing(sizes) is None and any(found.spacing for found in sizes):
        faults.append(warning("images have different pixel sizes or state none; set spacing to train at one"))
    return faults


def _mixed_bands(usable: Sequence[tuple[Row, Survey]]) -> list[Fault]:
    """Return an error for the first two images with bands of different names in one place.

    Case makes no difference, and a band without a name fits every other.
    """
    first: dict[tuple[str, ...], str] = {}
    for row, found in usable:
        first.setdefault(found.bands, row.name)
    for (ours, one), (theirs, other) in combinations(first.items(), 2):
        if len(ours) == len(theirs) and any(map(_differ, ours, theirs)):
            what = f"{one} has the bands {', '.join(ours)}, {other} has {', '.join(theirs)}"
            return [error(f"{what}; bring them into one order, or where only names differ, rename in a .bands.toml")]
    return []


def _differ(one: str, other: str) -> bool:
    unnamed = _UNNAMED.fullmatch(one) or _UNNAMED.fullmatch(other)
    return not unnamed and one.casefold() != other.casefold()


def common_spacing(surveys: Sequence[Survey]) -> dict[str, Any] | None:
    """Return the pixel size that all images share, within 1%; None where they do not or one states none."""
    found = [dict(survey.spacing) if survey.spacing else None for survey in surveys]
    first = found[0] if found else None
    if first is None:
        return None
    for other in found[1:]:
        if other is None or other["unit"] != first["unit"]:
            return None
        if any(abs(other[axis] / first[axis] - 1) > SPACING_TOLERANCE for axis in ("y", "x")):
            return None
    return first


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


def _finish(
    work: Work, dataset: Dataset, surveys: Sequence[Survey], layout: Layout, faults: Sequence[Fault]
) -> dict[str, Any]:
    """Write the small arrays and, last, the attributes that make the store a finished one."""
    import zarr

    first, classes = surveys[0], len(dataset.classes)
    whole = np.dtype(first.dtype).kind != "f"
    statistics = Statistics(len(first.bands), whole=whole)
    counts = np.zeros((layout.patches, classes), np.int64)
    sizes = np.zeros((layout.shards, len(patch_arrays(dataset.data.instances))), np.int64)
    hashes = np.zeros((layout.patches, 32), np.uint8)
    for shard in range(layout.shards):
        marker = work.marker(shard)
        if marker is None:
            raise StoreError(f"{work.store}: shard {shard} vanished; run the same command again")
        sizes[shard] = [marker.sizes[name] for name in patch_arrays(dataset.data.instances)]
        for position, patch in enumerate(layout.of_shard(shard)):
            counts[patch] = marker.counts[position]
            hashes[patch] = np.frombuffer(bytes.fromhex(marker.sha256[position]), np.uint8)
            if work.rows[layout.image[patch]].split == "train":
                statistics.add(marker.sums[position])
    group = zarr.open_group(work.store, mode="r+")
    tables: dict[str, NDArray[Any]] = {
        "image": layout.image,
        "box": layout.box,
        "counts": counts,
        "sizes": sizes,
        "sha256": hashes,
    }
    for name, table in tables.items():
        write_table(group, name, table)
    _write_tissue(group, surveys)
    facts = _facts(work, dataset, surveys, layout, counts, hashes, statistics)
    facts["faults"] = [asdict(fault) for fault in faults]
    for name in (*tables, "tissue"):
        if (work.store / name).is_dir():
            sync_tree(work.store / name)
    for litter in work.store.rglob("*.partial"):
        litter.unlink(missing_ok=True)  # what a killed write left
    group.attrs.put({ATTRIBUTES: facts})
    return facts


def _write_tissue(group: zarr.Group, surveys: Sequence[Survey]) -> None:
    if any(found.tissue for found in surveys) and "tissue" not in group:
        group.create_group("tissue")
    for number, found in enumerate(surveys):
        mask = found.tissue_mask()
        if mask is not None:
            write_table(group, f"tissue/{number}", mask.mask)


def _facts(
    work: Work,
    dataset: Dataset,
    surveys: Sequence[Survey],
    layout: Layout,
    counts: NDArray[np.int64],
    hashes: NDArray[np.uint8],
    statistics: Statistics,
) -> dict[str, Any]:
    mean, std = statistics.result()
    rows, infos = work.rows, [{**asdict(info), "color": list(info.color)} for info in dataset.infos()]
    splits = {}
    split_of = np.array([SPLITS.index(row.split) for row in rows])
    for number, split in enumerate(SPLITS):
        images = np.flatnonzero(split_of == number)
        if not len(images):
            continue
        mine = np.isin(layout.image, images)
        labelled = counts[mine].sum(0)
        splits[split] = {
            "images": len(images),
            "patches": int(mine.sum()),
            "labelled": [int(v) for v in labelled],
            "fingerprint": _fingerprint(infos, rows, surveys, layout, hashes, mine),
        }
    labelled = np.array(splits["train"]["labelled"])
    return {
        "format": FORMAT,
        "complete": True,
        "key": work.key,
        "name": dataset.name,
        "side": layout.side,
        "classes": infos,
        "bands": list(surveys[0].bands),
        "dtype": surveys[0].dtype,
        "spacing": common_spacing(surveys),
        "mean": list(mean),
        "std": list(std),
        "frequencies": [float(v) for v in labelled / labelled.sum()],
        "fingerprint": _fingerprint(infos, rows, surveys, layout, hashes, np.ones(layout.patches, bool)),
        "objects": dataset.data.instances,
        "within_group": any(row.part != (0.0, 1.0) for row in rows),
        "guard": dataset.data.guard,
        "splits": splits,
        "images": [
            {
                "name": row.name,
                "group": row.group,
                "stratum": row.stratum,
                "split": row.split,
                "height": found.output_grid().height,
                "width": found.output_grid().width,
                "fingerprint": found.fingerprint,
                "annotators": list(row.annotators),
            }
            for row, found in zip(rows, surveys, strict=True)
        ],
    }


def _fingerprint(
    infos: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    surveys: Sequence[Survey],
    layout: Layout,
    hashes: NDArray[np.uint8],
    chosen: NDArray[np.bool_],
) -> str:
    """Return the SHA-256 of classes, names, splits, places and content of the chosen patches: no path, no time."""
    digest = hashlib.sha256(json.dumps([infos, list(surveys[0].bands), surveys[0].dtype, layout.side]).encode())
    for image in np.unique(layout.image[chosen]):
        row = rows[image]
        digest.update(json.dumps([int(image), row.name, row.group, row.stratum, row.split]).encode())
    for part in (layout.image[chosen], layout.box[chosen], hashes[chosen]):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
