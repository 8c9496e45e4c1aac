"""Turns a finished label array into what people use: pyramid, polygons, GeoTIFF, areas; knows no model and no queue.

    pyramid   coarser label levels                 labels.ome.zarr/classes/1 ...
    geotiff   only where there is a CRS            classes.tif
    vectors   polygons joined across shards        polygons.geojson, polygons.gpkg
    areas     pixels and area on the ground per class

Every step is resumable and makes the same bytes however often it was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from unetpp.finalize.areas import AreaUnit, ClassArea, Method, class_areas, measure
from unetpp.finalize.markers import Markers, Product, changed
from unetpp.lock import FolderLock

if TYPE_CHECKING:
    from pathlib import Path

    from unetpp.job import SegmentJob

__all__ = ["AreaUnit", "ClassArea", "Figures", "Method", "discard_products", "figures", "finalize", "verify_products"]

FORMAT = 1
"""Version of the rules that decide the products' bytes."""
STEPS = ("pyramid", "geotiff", "vectors", "areas")
_FILES = {"geotiff": ("classes.tif",), "vectors": ("polygons.geojson", "polygons.gpkg")}
_JOURNAL, _PIECES = "pyramid.jsonl", "pieces"
"""What a killed run leaves behind and the next one goes on with."""

Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a finished segmentation amounts to.

    Attributes:
        areas: by class name, in the order of the model's classes, background included, no data left out.
        method: how pixels were turned into areas, see `unetpp.finalize.areas`.
        objects: 4-connected objects by class name; background classes have none.
        outputs: path below the image's folder by kind: labels, polygons, geopackage, geotiff.
    """

    areas: dict[str, ClassArea]
    method: Method
    objects: dict[str, int]
    outputs: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Figures:
        return cls(**{**values, "areas": {name: ClassArea(**area) for name, area in values["areas"].items()}})


def finalize(job: SegmentJob, *, progress: Report | None = None) -> Figures:
    """Make all products of a job from its committed shards; steps that are done are skipped.

    A shard without a commit record counts as no data, and what an interrupted write left of it is deleted.

    Args:
        progress: called with the step's name and the done share, 0 to 1.

    Raises:
        OutputError: a product cannot be written.
        StoreError: the label store is damaged, or another run is using the folder.
    """
    with FolderLock(job.out, exclusive=True):
        return _finalize(job, progress or (lambda step, share: None))


def _finalize(job: SegmentJob, report: Report) -> Figures:
    markers = Markers(job.out, _token(job))
    steps = {"pyramid": _pyramid, "geotiff": _geotiff, "vectors": _vectors, "areas": _areas}
    pending = [step for step in STEPS if markers.done(step) is None]
    if pending:
        _drop_uncommitted(job)
        markers.prepare()
        for step in pending:
            markers.revoke(step, _FILES.get(step, ()))
        for step in pending:
            report(step, 0.0)
            steps[step](job, markers, partial(report, step))
            report(step, 1.0)
    markers.clean()
    return _figures(job, markers)


def figures(job: SegmentJob) -> Figures | None:
    """Return the figures of a job whose finalize is done, else None; computes nothing."""
    markers = Markers(job.out, _token(job))
    return _figures(job, markers) if all(markers.done(step) for step in STEPS) else None


def verify_products(job: SegmentJob) -> dict[str, str]:
    """Hash all products; returns what is wrong by path below the image's folder, empty when all is well."""
    return changed(job.out, STEPS)


def discard_products(out: Path) -> None:
    """Delete every product and marker of an earlier job but the pyramid's levels. Raises `OutputError`."""
    from unetpp.durable import discard_folder

    markers = Markers(out, "")
    for step in STEPS:
        markers.revoke(step, _FILES.get(step, ()))
    discard_folder(markers.folder)


def _token(job: SegmentJob) -> str:
    """Name the labels: the job's key and the hash of every committed shard."""
    from unetpp import commit

    digest = hashlib.sha256(f"{FORMAT} {job.key}".encode())
    for shard in job.plan.shards():
        record = commit.committed_record(job.store, shard, job.key)
        digest.update(f" {shard.id}={record.sha256 if record else 'missing'}".encode())
    return digest.hexdigest()


def _drop_uncommitted(job: SegmentJob) -> None:
    from unetpp.job import pending

    for shard in pending(job):
        job.store.delete_shard(shard)


def _pyramid(job: SegmentJob, markers: Markers, progress: Callable[[float], None]) -> None:
    from unetpp.finalize.pyramid import write_pyramid

    objects = write_pyramid(job.store, markers.own(_JOURNAL), progress)
    markers.write("pyramid", [Product(*entry) for entry in objects])


def _geotiff(job: SegmentJob, markers: Markers, progress: Callable[[float], None]) -> None:
    from unetpp.finalize.geotiff import write_geotiff
    from unetpp.finalize.pieces import block_boxes

    if job.grid.crs is None or job.grid.transform is None:
        markers.write("geotiff")
        return
    boxes = block_boxes(shard.box for shard in job.plan.shards())
    name = write_geotiff(
        job.store.read, boxes, grid=job.grid, classes=job.classes, folder=markers.work, progress=progress
    )
    markers.write("geotiff", markers.keep([name]))


def _vectors(job: SegmentJob, markers: Markers, progress: Callable[[float], None]) -> None:
    import numpy as np

    from unetpp.finalize.pieces import write_pieces
    from unetpp.finalize.polygons import iter_objects
    from unetpp.finalize.vectors import write_vectors

    keep = np.zeros(256, bool)
    keep[[info.value for info in job.classes if not info.background]] = True
    boxes = [shard.box for shard in job.plan.shards()]
    pieces = markers.own(_PIECES)
    write_pieces(job.store.read, boxes, keep, pieces, lambda share: progress(share / 2))
    found = iter_objects(boxes, pieces, lambda share: progress((1 + share) / 2))
    counts, names = write_vectors(found, grid=job.grid, classes=job.classes, key=job.key, folder=markers.work)
    markers.write("vectors", markers.keep(names), {str(value): count for value, count in counts.items()})


def _areas(job: SegmentJob, markers: Markers, progress: Callable[[float], None]) -> None:
    from unetpp import job as jobs
    from unetpp.finalize.pieces import block_boxes

    how = measure(job.grid)
    counts = dict.fromkeys((info.value for info in job.classes), 0) | jobs.progress(job).counts
    boxes = block_boxes(shard.box for shard in job.plan.shards())
    found = class_areas(how, counts, boxes, job.store.read)
    values = {str(value): asdict(area) for value, area in found.items()}
    markers.write("areas", figures={"method": how.method, "classes": values})


def _figures(job: SegmentJob, markers: Markers) -> Figures:
    done = {step: markers.done(step) for step in STEPS}
    areas, vectors = done["areas"], done["vectors"]
    assert areas is not None and vectors is not None
    kinds = {"polygons.geojson": "polygons", "polygons.gpkg": "geopackage", "classes.tif": "geotiff"}
    written = {product.path for marker in done.values() if marker for product in marker.products}
    return Figures(
        areas={info.name: ClassArea(**areas.figures["classes"][str(info.value)]) for info in job.classes},
        method=areas.figures["method"],
        objects={info.name: vectors.figures[str(info.value)] for info in job.classes if not info.background},
        outputs={"labels": job.store.root.name, **{kinds[path]: path for path in kinds if path in written}},
    )
