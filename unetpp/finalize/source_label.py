"""Copies a finished label pyramid into its OME-Zarr source as one of its labels; knows folders and attributes only.

    source.zarr/labels/            ome.labels names ours beside those of others
        unetpp-<model>/            the levels as they are, in the source's coordinates, image-label with source = ../../

Only a local image in Zarr v3 with OME-Zarr 0.5 takes one. Labels that others wrote are never touched. The group is
complete before it gets its name, and is listed last; where there are no labels yet, an empty list of them comes first.
Where the source's groups hold copies of the metadata below them ("consolidated"), readers look at those alone: the
label's are added to them.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetpp.durable import discard_folder, output_errors, sync, sync_tree, write_file
from unetpp.errors import StoreError
from unetpp.io.remote import local_name
from unetpp.store import CLASSES, OUTPUT_FORMAT

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid
    from unetpp.job import SegmentJob

_GROUP = "zarr.json"
_NO_LABELS = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", "labels": []}}}


def write_source_label(job: SegmentJob) -> Path:
    """Write or replace the label of a finalized job's model in its source; returns the label's group.

    Raises:
        StoreError: the source takes no label, or one of somebody else has that name.
        OutputError: it cannot be written.
    """
    whole = Path(local_name(job.uri))
    source = _image_group(whole)
    _check(source, job)
    labels = source / "labels"
    target = labels / f"unetpp-{job.model_ref['name']}"
    if target.parent != labels:
        raise StoreError(f"model name {job.model_ref['name']!r} is a path; rename the model or leave out --into-source")
    if target.exists() and "unetpp" not in _attributes(target):
        raise StoreError(f"{target} is a label that unetpp did not write; move it away or leave out --into-source")
    groups = dict.fromkeys((labels, source, whole))
    if label_key(target) == job.key and target.name in _listed(labels):
        for group in groups:
            _consolidate(group, target)  # a killed call, or an older version, has not
        return target
    fresh = labels / f".{target.name}.new"
    with output_errors(target):
        labels.mkdir(exist_ok=True)
        if not (labels / _GROUP).is_file():
            # The image's fingerprint leaves labels out by this file: a killed copy must not look like another image.
            write_file(labels / _GROUP, json.dumps(_NO_LABELS, indent=2).encode())
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(job.store.root / CLASSES, fresh)
        document = json.loads((fresh / _GROUP).read_bytes())
        ome = document["attributes"]["ome"]
        ome["image-label"]["source"] = {"image": "../../"}
        _place(ome["multiscales"][0], _attributes(source)["ome"]["multiscales"][0], job.grid)
        document["attributes"]["unetpp"] = {"format": OUTPUT_FORMAT, "key": job.key}
        write_file(fresh / _GROUP, json.dumps(document, indent=2).encode())
        sync_tree(fresh)
        discard_folder(target)
        fresh.replace(target)
        sync(labels)
    _list(labels, target.name)
    for group in groups:
        _consolidate(group, target)
    return target


def _image_group(source: Path) -> Path:
    """Return the group whose pixels are read: this one, or the only image of a bioformats2raw folder."""
    if "multiscales" in _attributes(source).get("ome", {}) or not source.is_dir():
        return source
    images = [path for path in sorted(source.iterdir()) if "multiscales" in _attributes(path).get("ome", {})]
    return images[0] if len(images) == 1 else source


def label_key(label: Path) -> str | None:
    """Return the key of the job whose label a group is; None for one that unetpp did not write."""
    key = _attributes(label).get("unetpp", {}).get("key")
    return key if isinstance(key, str) else None


def _check(source: Path, job: SegmentJob) -> None:
    """Raise `StoreError` where a label would have no place in the source."""
    attributes = _attributes(source)
    if "multiscales" not in attributes.get("ome", {}):
        raise StoreError(f"{job.uri} is no OME-Zarr 0.5 image on this machine; leave out --into-source")
    if not os.access(source, os.W_OK):
        raise StoreError(f"{job.uri} may not be written; change its permissions or leave out --into-source")
    if job.spacing_override is not None:
        raise StoreError(
            f"{job.uri} was segmented with another pixel size than its own, so that labels would not lie over it; "
            "correct its metadata or leave out --into-source"
        )


def _place(label: dict[str, Any], image: dict[str, Any], grid: OutputGrid) -> None:
    """Give a label's levels the axes, scale and translation of its image, in the image's own units."""
    names = [axis["name"] for axis in image["axes"]]
    chosen = [names.index("y"), names.index("x")]
    scale, shift = np.ones(2), np.zeros(2)
    for owner in (image["datasets"][0], image):
        for transform in owner.get("coordinateTransformations") or ():
            if transform["type"] == "scale":
                factor = np.array(transform["scale"], float)[chosen]
                scale, shift = scale * factor, shift * factor
            elif transform["type"] == "translation":
                shift = shift + np.array(transform["translation"], float)[chosen]
    label["axes"] = [image["axes"][index] for index in chosen]
    for level, dataset in enumerate(label["datasets"]):
        step = np.array([grid.step_y, grid.step_x]) * 2**level
        # Translations are of the first pixel's centre.
        dataset["coordinateTransformations"] = [
            {"type": "scale", "scale": (scale * step).tolist()},
            {"type": "translation", "translation": (shift + scale * (step - 1) / 2).tolist()},
        ]


def _list(labels: Path, name: str) -> None:
    document = json.loads((labels / _GROUP).read_bytes())
    ome = document.setdefault("attributes", {}).setdefault("ome", {"version": "0.5"})
    ome["labels"] = [*(other for other in ome.get("labels", []) if other != name), name]
    write_file(labels / _GROUP, json.dumps(document, indent=2).encode())


def _consolidate(group: Path, label: Path) -> None:
    """Put the metadata of a label and of the list that it is in into a group's copies, if it holds any."""
    document = json.loads((group / _GROUP).read_bytes())
    copies = (document.get("consolidated_metadata") or {}).get("metadata")
    if copies is None:
        return
    at = label.relative_to(group).as_posix()
    made = {name: copy for name, copy in copies.items() if name != at and not name.startswith(f"{at}/")}
    for file in (label.parent / _GROUP, *sorted(label.rglob(_GROUP))):
        if file.parent != group:
            made[file.parent.relative_to(group).as_posix()] = json.loads(file.read_bytes())
    if made != copies:
        document["consolidated_metadata"]["metadata"] = made
        write_file(group / _GROUP, json.dumps(document, indent=2).encode())


def _listed(labels: Path) -> list[str]:
    return list(_attributes(labels).get("ome", {}).get("labels", []))


def _attributes(group: Path) -> dict[str, Any]:
    """Return the attributes of a Zarr v3 group of this machine; empty where there is none."""
    try:
        found = json.loads((group / _GROUP).read_bytes())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
