"""Makes a filled store a finished one: tables of its patches, statistics, fingerprint; reads no image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import sync_tree
from unetpp.errors import StoreError
from unetpp.train.store import ATTRIBUTES, FORMAT
from unetpp_workflows.prepare.dataset import SPLITS, Dataset
from unetpp_workflows.prepare.faults import Fault
from unetpp_workflows.prepare.layout import Layout, patch_arrays, write_table
from unetpp_workflows.prepare.rows import Row
from unetpp_workflows.prepare.shards import Work
from unetpp_workflows.prepare.statistics import Statistics
from unetpp_workflows.prepare.survey import Survey
from unetpp_workflows.prepare.whole_set import common_spacing

if TYPE_CHECKING:
    import zarr


def finish(
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
                "picture": "" if found.plain else found.sha256,  # blank ones are all alike
                "part": row.part != (0.0, 1.0),
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
