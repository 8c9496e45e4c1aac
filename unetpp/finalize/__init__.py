"""Turns a finished label array into what people use: pyramid, polygons, rasters, areas; knows no model and no queue.

    pyramid    coarser label levels                 labels.ome.zarr/classes/1 ...
    probabilities, uncertainty                      the same of the maps, and where the image is worth a look
    cog        GeoTIFF                              classes.tif
    ome-tiff   pyramidal OME-TIFF                   classes.ome.tif
    ome-zarr-0.4  the labels for older programs     labels-0.4.ome.zarr
    objects    joined across shards, counted
    geojson    and the other vector formats         polygons.*, see `unetpp.finalize.vectors`
    instances  objects split, touching ones apart   instances.parquet, see `unetpp.finalize.instances`
    areas      pixels and area on the ground per class

Every step is resumable and makes the same bytes however often it was interrupted. The formats are steps of their own:
one that is asked for later is made from the labels, and the others are left as they are. With instances, the vector
formats hold those instead of whole objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from unetpp.finalize.areas import AreaUnit, ClassArea, Method, class_areas, measure
from unetpp.finalize.markers import FOLDER, Marker, Markers, Product, changed
from unetpp.finalize.rows import VECTOR_FILES
from unetpp.lock import FolderLock
from unetpp.maps import MAPS

if TYPE_CHECKING:
    from pathlib import Path

    from unetpp.finalize.outlines import Batch
    from unetpp.finalize.probability import ObjectProbability
    from unetpp.io.resample import OutputGrid
    from unetpp.job import SegmentJob
    from unetpp.maps import MapStore

__all__ = [
    "FORMATS",
    "NAMES",
    "AreaUnit",
    "ClassArea",
    "Figures",
    "Method",
    "default_formats",
    "discard_products",
    "figures",
    "finalize",
    "verify_products",
]

FORMAT = 2
"""Version of the rules that decide the products' bytes."""
FORMATS = {"cog": "classes.tif", "ome-tiff": "classes.ome.tif", "ome-zarr-0.4": "labels-0.4.ome.zarr", **VECTOR_FILES}
"""File of every format that can be asked for."""
STEPS = ("pyramid", *MAPS, "cog", "ome-tiff", "ome-zarr-0.4", "objects", "instances", *VECTOR_FILES, "areas")
_FILES = {**FORMATS, "instances": "instances.parquet"}
NAMES = (FOLDER, *_FILES.values())
"""Every name in an image's folder that is written here."""
_OUTPUTS = {
    "cog": "geotiff",
    "ome-tiff": "ome_tiff",
    "ome-zarr-0.4": "ome_zarr_04",
    "geojson": "polygons",
    "geojson.gz": "polygons_gz",
    "gpkg": "geopackage",
    "geoparquet": "geoparquet",
    "flatgeobuf": "flatgeobuf",
}
_JOURNAL, _PIECES = "pyramid.jsonl", "blocks"
"""What a killed run leaves behind and the next one goes on with."""

Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a finished segmentation amounts to.

    Attributes:
        areas: by class name, in the order of the model's classes, background included, no data left out.
        method: how pixels were turned into areas, see `unetpp.finalize.areas`.
        objects: 4-connected objects by class name; background classes have none.
        outputs: path below the image's folder by kind: labels, polygons, geopackage, geotiff and so on.
        instances: by class name, None where objects were not split.
        attention: mean and regions of the uncertainty map, None without one; `unetpp.finalize.attention`.
        formats: that are done, in the order of `FORMATS`; a GeoJSON of a CRS without a place on the globe has no file.
    """

    areas: dict[str, ClassArea]
    method: Method
    objects: dict[str, int]
    outputs: dict[str, str]
    formats: tuple[str, ...] = ()
    instances: dict[str, int] | None = None
    attention: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Figures:
        areas = {name: ClassArea(**area) for name, area in values["areas"].items()}
        return cls(**{**values, "areas": areas, "formats": tuple(values["formats"])})


def default_formats(grid: OutputGrid) -> tuple[str, ...]:
    """Return the formats that are written where none are named: maps for scenes, QuPath's GeoJSON for the rest."""
    return ("geojson",) if grid.crs is None or grid.transform is None else ("cog", "geojson", "gpkg")


def finalize(
    job: SegmentJob,
    *,
    formats: Iterable[str] | None = None,
    instances: bool = False,
    progress: Report | None = None,
) -> Figures:
    """Make all products of a job from its committed shards; steps that are done are skipped.

    A shard without a commit record counts as no data, and what an interrupted write left of it is deleted. Formats that
    an earlier call made of the same labels stay.

    Args:
        formats: keys of `FORMATS`; None for `default_formats`.
        instances: split objects by `unetpp.finalize.instances`; vector formats of another call that differ in this are
            made again, or deleted where `formats` has them not; the table of instances is deleted without this.
        progress: called with the step's name and the done share, 0 to 1; all vector formats are the step "vectors".

    Raises:
        OutputError: a product cannot be written.
        StoreError: the label store is damaged, another run is using the folder, or a product's name is taken by a file
            that is not ours (it is left untouched).
    """
    with FolderLock(job.out, exclusive=True):
        steps = _steps(job, formats, instances=instances)
        return _finalize(job, steps, instances, progress or (lambda step, share: None))


def _steps(job: SegmentJob, formats: Iterable[str] | None, *, instances: bool) -> list[str]:
    wanted = {"pyramid", "objects", "areas", *(default_formats(job.grid) if formats is None else formats)}
    wanted |= {*job.maps, *(["instances"] if instances else [])}
    assert wanted <= set(STEPS), wanted
    return [step for step in STEPS if step in wanted]


def _finalize(job: SegmentJob, steps: Sequence[str], instances: bool, report: Report) -> Figures:
    markers = Markers(job.out, _token(job))
    pending = [step for step in steps if _done(markers, step, instances) is None]
    for step in pending:
        markers.refuse_foreign(step, _files(step))
    if pending:
        _drop_uncommitted(job)
        markers.prepare()
    # Also those that nobody asks for now: made of other labels, or of instances beside objects, they would be wrong.
    for step in (step for step in STEPS if _done(markers, step, instances) is None):
        markers.revoke(step, _files(step))
    makers: dict[str, Callable[[SegmentJob, Markers, Callable[[float], None]], None]]
    makers = {"pyramid": _pyramid, "cog": _cog, "ome-tiff": _ome_tiff, "areas": _areas}
    makers |= {"ome-zarr-0.4": _ome_zarr_4}
    makers |= {store.kind: partial(_map, store) for store in job.map_stores}
    objects = [step for step in pending if step not in makers]
    if objects:
        makers["vectors"] = partial(_vectors, objects, instances)
    for step, make in makers.items():
        if step in pending or step == "vectors":
            report(step, 0.0)
            make(job, markers, partial(report, step))
            report(step, 1.0)
    markers.clean()
    return _figures(job, markers, instances)


def _files(step: str) -> tuple[str, ...]:
    return (_FILES[step],) if step in _FILES else ()


def _done(markers: Markers, step: str, instances: bool) -> Marker | None:
    """Return the step's marker where its products are right: vector formats hold objects, or instances with a table."""
    marker = markers.done(step)
    if marker is None or step not in (*VECTOR_FILES, "instances"):
        return marker
    split = step == "instances" or marker.figures.get("instances", False)
    return marker if split == instances else None


def figures(job: SegmentJob, formats: Iterable[str] | None = None, *, instances: bool = False) -> Figures | None:
    """Return the figures of a job whose finalize is done for this, else None; computes nothing."""
    markers = Markers(job.out, _token(job))
    steps = _steps(job, formats, instances=instances)
    return _figures(job, markers, instances) if all(_done(markers, step, instances) for step in steps) else None


def verify_products(job: SegmentJob) -> dict[str, str]:
    """Hash all products; returns what is wrong by path below the image's folder, empty when all is well."""
    return changed(job.out, STEPS)


def discard_products(out: Path) -> None:
    """Delete every product and marker of an earlier job but the pyramid's levels. Raises `OutputError`."""
    markers = Markers(out, "")
    for step in STEPS:
        markers.revoke(step, _files(step))
    markers.remove()


def _token(job: SegmentJob) -> str:
    """Name the labels: the job's key and the hash of every committed shard."""
    from unetpp import commit

    # The key names the maps, whose bytes follow from it as the labels' do.
    digest = hashlib.sha256(f"{FORMAT} {job.key}".encode())
    for shard in job.plan.shards():
        record = commit.committed_record(job.store, shard, job.key)
        digest.update(f" {shard.id}={record.sha256 if record else 'missing'}".encode())
    return digest.hexdigest()


def _drop_uncommitted(job: SegmentJob) -> None:
    from unetpp.job import pending

    for shard in pending(job):
        for store in (job.store, *job.map_stores):
            store.delete_shard(shard)


def _pyramid(job: SegmentJob, markers: Markers, progress: Callable[[float], None]) -> None:
    from unetpp.finalize.pyramid import write_pyramid

    objects = write_pyramid(job.store, markers.own(_JOURNAL), progress)
    markers.write("pyramid", [Product(*entry) for entry in objects])


def _map(store: MapStore, job: SegmentJob, markers: Markers, progress: Callable[[float], None]) -> None:
    from unetpp.finalize.attention import find_attention
    from unetpp.finalize.pyramid import halve_mean, write_pyramid

    objects = write_pyramid(
        store, markers.own(f"{store.kind}.jsonl"), lambda share: progress(share / 2), reduce=halve_mean
    )
    figures = None
    if store.kind == "uncertainty":
        figures = find_attention(store, job.grid, lambda share: progress((1 + share) / 2)).to_json()
    markers.write(store.kind, [Product(*entry) for entry in objects], figures)


def _cog(job: SegmentJob, markers: Markers, progress: Callable[[float], None]) -> None:
    from unetpp.finalize.geotiff import write_geotiff
    from unetpp.finalize.pieces import block_boxes

    boxes = block_boxes(shard.box for shard in job.plan.shards())
    name = write_geotiff(
        job.store.read, boxes, grid=job.grid, classes=job.classes, folder=markers.work, progress=progress
    )
    markers.keep("cog", [name])


def _ome_tiff(job: SegmentJob, markers: Markers, progress: Callable[[float], None]) -> None:
    from unetpp.finalize.ometiff import write_ome_tiff
    from unetpp.levels import level_shapes

    name = write_ome_tiff(
        job.store.read,
        level_shapes(job.plan),
        grid=job.grid,
        classes=job.classes,
        key=job.key,
        folder=markers.work,
        progress=progress,
    )
    markers.keep("ome-tiff", [name])


def _ome_zarr_4(job: SegmentJob, markers: Markers, progress: Callable[[float], None]) -> None:
    from unetpp.finalize.omezarr4 import write_ome_zarr_4
    from unetpp.levels import level_shapes

    name = write_ome_zarr_4(
        job.store.read,
        level_shapes(job.plan),
        plan=job.plan,
        grid=job.grid,
        classes=job.classes,
        folder=markers.work,
        progress=progress,
    )
    markers.keep("ome-zarr-0.4", [name])


def _vectors(
    steps: Sequence[str], instances: bool, job: SegmentJob, markers: Markers, progress: Callable[[float], None]
) -> None:
    """Make all pending vector formats and counts in one pass over the objects."""
    import numpy as np

    from unetpp.finalize.instances import iter_instances
    from unetpp.finalize.outlines import batches
    from unetpp.finalize.pieces import write_pieces
    from unetpp.finalize.polygons import iter_batches
    from unetpp.finalize.shapes import Shapes
    from unetpp.finalize.threads import ahead
    from unetpp.finalize.vectors import write_vectors

    keep = np.zeros(256, bool)
    keep[[info.value for info in job.classes if not info.background]] = True
    boxes = [shard.box for shard in job.plan.shards()]
    pieces = markers.own(_PIECES)
    write_pieces(job.store.read, boxes, keep, pieces, lambda share: progress(share / 2))
    objects = {info.value: 0 for info in job.classes if not info.background}
    found = ahead(_counted(iter_batches(boxes, pieces, lambda share: progress((1 + share) / 2)), objects))
    whole = (one for batch in found for one in batch.objects())
    formats = [step for step in steps if step in VECTOR_FILES]
    counts, digests = write_vectors(
        batches(iter_instances(whole, job.grid.height, job.grid.width)) if instances else found,
        grid=job.grid,
        classes=job.classes,
        key=job.key,
        folder=markers.work,
        formats=formats,
        shapes=Shapes(job.grid, _FILES["instances"], _probability(job)) if instances else None,
    )
    for name in formats:
        markers.keep(name, {VECTOR_FILES[name]} & set(digests), {"instances": instances}, digests)
    if "instances" in steps:
        markers.keep("instances", [_FILES["instances"]], {str(value): count for value, count in counts.items()})
    if "objects" in steps:
        markers.write("objects", figures={str(value): count for value, count in objects.items()})


def _probability(job: SegmentJob) -> ObjectProbability | None:
    from unetpp.finalize.probability import ObjectProbability

    stores = (store for store in job.map_stores if store.kind == "probabilities")
    return next((ObjectProbability(store) for store in stores), None)


def _counted(found: Iterable[Batch], counts: dict[int, int]) -> Iterator[Batch]:
    for batch in found:
        for value in counts:
            counts[value] += int((batch.labels == value).sum())
        yield batch


def _areas(job: SegmentJob, markers: Markers, progress: Callable[[float], None]) -> None:
    from unetpp import job as jobs
    from unetpp.finalize.pieces import block_boxes

    how = measure(job.grid)
    counts = dict.fromkeys((info.value for info in job.classes), 0) | jobs.progress(job).counts
    boxes = block_boxes(shard.box for shard in job.plan.shards())
    found = class_areas(how, counts, boxes, job.store.read)
    values = {str(value): asdict(area) for value, area in found.items()}
    markers.write("areas", figures={"method": how.method, "classes": values})


def _figures(job: SegmentJob, markers: Markers, instances: bool) -> Figures:
    areas, objects = markers.done("areas"), markers.done("objects")
    split = markers.done("instances") if instances else None
    assert areas is not None and objects is not None
    formats = {step: marker for step in FORMATS if (marker := _done(markers, step, instances)) is not None}
    written = {_OUTPUTS[step]: FORMATS[step] for step, marker in formats.items() if marker.products}
    if split is not None:
        written["instances"] = _FILES["instances"]
    written |= {store.kind: store.name for store in job.map_stores}
    attention = markers.done("uncertainty") if "uncertainty" in job.maps else None
    foreground = [info for info in job.classes if not info.background]
    return Figures(
        areas={info.name: ClassArea(**areas.figures["classes"][str(info.value)]) for info in job.classes},
        method=areas.figures["method"],
        objects={info.name: objects.figures[str(info.value)] for info in foreground},
        outputs={"labels": job.store.root.name, **written},
        formats=tuple(formats),
        attention=None if attention is None else dict(attention.figures),
        instances=None if split is None else {info.name: split.figures[str(info.value)] for info in foreground},
    )
