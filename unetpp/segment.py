"""Plans one image's segmentation and makes its folder ready; knows no scheduler and no registry.

plan_job     image + model + options -> SegmentJob, nothing is written
prepare_job  the same, and the output folder is ready for it
ShardWorker  one shard: read, compute, write, commit
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from unetpp.commit import COMMITS
from unetpp.durable import discard_folder, output_errors, write_file
from unetpp.errors import ArchitectureError, BandsError, StoreError
from unetpp.geometry import Spacing
from unetpp.io import open_raster
from unetpp.io.base import Raster, fingerprint, thumbnail
from unetpp.io.resample import OutputGrid, plan_grid
from unetpp.job import (
    JOB,
    RECORD,
    REGION,
    VALIDITY,
    EngineChoice,
    Progress,
    SegmentJob,
    job_key,
    mask_hash,
    pending,
    progress,
)
from unetpp.lock import FolderLock
from unetpp.maps import MAPS, MapName, map_folder, ordered
from unetpp.model.orientations import Tta
from unetpp.package import ModelSpec, Package, load_package
from unetpp.region import Coverage, load_region
from unetpp.shard_worker import ShardWorker, engine_choice, shared_engine
from unetpp.store import LabelStore, refuse_foreign
from unetpp.tiling import TilePlan, make_plan
from unetpp.tissue import ALGORITHM, ValidityMask, load_mask, tissue_mask

__all__ = ["Progress", "SegmentJob", "ShardWorker", "job_key", "pending", "plan_job", "prepare_job", "progress"]

_MASK_SIDE = 2048


class JobOptions(TypedDict, total=False):
    """Options of a segmentation.

    spacing: size of a pixel of the input, where its metadata has none or a wrong one.
    mask: image whose zero pixels are not to be segmented, stretched over the input.
    region: the only part to be segmented, see `unetpp.region`; what mask or tissue leave out of it stays left out.
    tissue: "auto" finds tissue on slides; "none" segments the glass too. A mask of the user's wins.
    engine, precision: see `choose_engine`.
    threads: of one call of the engine; part of the key.
    tta: test-time augmentation, see `unetpp.model.turned`.
    choice: the engine, where another machine has chosen it; then `engine`, `precision`, `threads` and `tta` do not
        count.
    core, shard: see `make_plan`.
    maps: "probabilities" and "uncertainty": also write these beside the labels, see `unetpp.maps`.
    model_ref: version, alias and uri from a registry; kept in the job.
    """

    spacing: Spacing | None
    mask: str | Path | None
    region: str | None
    tissue: Literal["auto", "none"]
    engine: str
    precision: str
    threads: int
    tta: Tta
    choice: EngineChoice | None
    core: int | Literal["auto"]
    shard: int | Literal["auto"]
    maps: Iterable[MapName]
    model_ref: dict[str, Any] | None


def prepare_job(
    uri: str | Path, out: Path, package: Package | Path, *, anew: bool = False, **options: Unpack[JobOptions]
) -> SegmentJob:
    """Plan a segmentation and make its folder ready: an empty label store, validity.png and job.json.

    Shards of the same job are kept, and so are maps that an earlier call made and this one does not ask for. Where
    input, model or configuration changed since (another key), everything that the earlier job left there is deleted
    first, for its shards must never mix with new ones.

    Args:
        out: this image's own folder; made when missing.
        anew: first delete what an earlier job made in the folder, and nothing else that lies there; an image that
            cannot be planned keeps what was made of it.

    Raises:
        BandsError: the image's bands, their order or sample type are not the model's.
        RegionError: the region does not read or misses the image.
        ArchitectureError: uncertainty of a network with one head.
        SpacingError: the model needs a pixel size and none is known.
        PlanError: core and shard do not fit the model or each other.
        StoreError: the folder holds something that is not ours (it is left untouched), or another run is using it.
        OutputError: the folder cannot be written.
        Also what `open_raster`, `load_package`, `load_mask` and `choose_engine` raise.
    """
    job, coverage = plan_job(uri, out, package, **options)
    with output_errors(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
    with FolderLock(job.out, exclusive=True):
        known = (job.out / JOB).exists()
        before = None if anew else SegmentJob.load(job.out)
        if before is not None and set(before.maps) > set(job.maps):
            more = _with_maps(job, before.maps)
            job = more if more.key == before.key else job
        same = before is not None and before.key == job.key
        if not same:
            _discard(job.store, known=known, damaged=anew and known)
        LabelStore.create(job.out, job.plan, job.grid, job.classes, keep=same)
        for store in job.map_stores:
            store.create(job.grid, keep=same)
        if coverage.mask is not None:
            write_file(job.out / VALIDITY, _png(coverage.mask.mask))
        if coverage.region is not None:
            write_file(job.out / REGION, json.dumps(coverage.region.to_json()).encode())
        job.save()
    return job


def plan_job(
    uri: str | Path, out: Path, package: Package | Path, **options: Unpack[JobOptions]
) -> tuple[SegmentJob, Coverage]:
    """Plan a segmentation without writing anything; arguments and errors as `prepare_job`'s."""
    package = package if isinstance(package, Package) else load_package(package)
    spacing, mask = options.get("spacing"), options.get("mask")
    maps = _checked_maps(package.spec, options.get("maps", ()))
    with open_raster(uri) as raster:
        _check_bands(raster, package.spec)
        grid = plan_grid(raster, model_spacing=package.spec.spacing, override=spacing)
        plan = _plan(grid, package.spec, options)
        validity, algorithm = _validity(raster, grid, mask, options.get("tissue", "auto"))
        written = options.get("region")
        region = None if written is None else load_region(written, grid)
        image = _describe(raster)
        identity = fingerprint(raster)
    engine = options.get("choice") or chosen_engine(package, options)
    validity_hash = None if validity is None else mask_hash(validity.mask)
    key = job_key(
        fingerprint=identity,
        digest=package.digest,
        engine=engine,
        grid=grid,
        plan=plan,
        validity=validity_hash,
        region=region.digest if region else None,
        maps=maps,
    )
    job = SegmentJob(
        uri=str(uri),
        out=out if isinstance(out, Path) else Path(out),
        package=package.folder,
        model_ref={"name": package.spec.name, **(options.get("model_ref") or {}), "digest": package.digest},
        classes=package.spec.classes,
        engine=engine,
        grid=grid,
        plan=plan,
        fingerprint=identity,
        key=key,
        spacing_override=spacing,
        mask=None if mask is None else str(mask),
        tissue=algorithm,
        validity=validity_hash,
        region=written,
        region_hash=region.digest if region else None,
        maps=maps,
        image=image,
    )
    return job, Coverage(validity, region)


def chosen_engine(package: Package, options: JobOptions) -> EngineChoice:
    """Return the engine that this machine takes for these options; errors: `choose_engine`."""
    return engine_choice(
        shared_engine(
            package,
            name=options.get("engine", "auto"),
            precision=options.get("precision", "auto"),
            threads=options.get("threads", 1),
            tta=options.get("tta", "none"),
        )
    )


def _with_maps(job: SegmentJob, maps: tuple[MapName, ...]) -> SegmentJob:
    key = job_key(
        fingerprint=job.fingerprint,
        digest=job.model_ref["digest"],
        engine=job.engine,
        grid=job.grid,
        plan=job.plan,
        validity=job.validity,
        region=job.region_hash,
        maps=maps,
    )
    return replace(job, maps=maps, key=key)


def _checked_maps(spec: ModelSpec, maps: Iterable[str]) -> tuple[MapName, ...]:
    found = ordered(maps)
    config = spec.architecture
    heads = config.last if spec.network == "unetplusplus" and config.deep_supervision else 1
    if "uncertainty" in found and heads < 2:
        raise ArchitectureError(
            f"model {spec.name!r} has one head, and uncertainty compares at least two; leave it out or use a model "
            "trained with deep supervision"
        )
    return found


def _check_bands(raster: Raster, spec: ModelSpec) -> None:
    if len(raster.bands) != len(spec.bands) or raster.dtype != np.dtype(spec.dtype):
        raise BandsError(
            f"{raster.uri}: {len(raster.bands)} bands of {raster.dtype} ({', '.join(raster.bands)}); model "
            f"{spec.name!r} needs {len(spec.bands)} bands of {spec.dtype} ({', '.join(spec.bands)}): convert the image "
            "or choose another model"
        )
    ours, wanted = ([name.casefold() for name in bands] for bands in (raster.bands, spec.bands))
    if any(name in ours and name != here for here, name in zip(ours, wanted, strict=True)):
        raise BandsError(
            f"{raster.uri}: its bands are {', '.join(raster.bands)}, model {spec.name!r} needs {', '.join(spec.bands)} "
            "in this order: list them so in a .bands.toml"
        )


def _plan(grid: OutputGrid, spec: ModelSpec, options: JobOptions) -> TilePlan:
    from unetpp.model import halo

    choice = options.get("choice")
    precision, tta = (
        (choice.precision, choice.tta) if choice else (options.get("precision"), options.get("tta", "none"))
    )
    return make_plan(
        grid.height,
        grid.width,
        halo=halo(spec.architecture),
        multiple=spec.architecture.multiple,
        core=options.get("core", "auto"),
        shard=options.get("shard", "auto"),
        small=precision == "int8" and tta == "none" and not options.get("maps"),
    )


def _validity(
    raster: Raster, grid: OutputGrid, mask: str | Path | None, tissue: Literal["auto", "none"]
) -> tuple[ValidityMask | None, str | None]:
    """Return where the image is to be segmented, and the tissue algorithm that said so (None when none did)."""
    if mask is not None:
        return load_mask(mask, grid, getattr(raster, "orientation", 1)), None
    if tissue == "none" or raster.kind != "slide":
        return None, None
    small = thumbnail(raster, _MASK_SIDE)
    return ValidityMask(tissue_mask(small.pixels) & small.valid, grid.height, grid.width), ALGORITHM


def _describe(raster: Raster) -> dict[str, Any]:
    top = raster.levels[0]
    return {
        "kind": raster.kind,
        "format": raster.format,
        "height": top.height,
        "width": top.width,
        "bands": list(raster.bands),
        "dtype": str(raster.dtype),
        "spacing": asdict(raster.spacing) if raster.spacing else None,
        "crs": raster.crs,
        **({"orientation": turned} if (turned := getattr(raster, "orientation", 1)) != 1 else {}),
    }


def _discard(store: LabelStore, *, known: bool, damaged: bool = False) -> None:
    """Delete all that an earlier job left; record and job.json go first: half of it never counts as done or begun.

    Args:
        known: a job.json says that a job of ours left it.
        damaged: take what says nothing of itself, or is of another version, for that job's too.
    """
    from unetpp.finalize import NAMES, discard_products

    for root in (store.root, *(store.folder / map_folder(kind) for kind in MAPS)):
        if not damaged:
            refuse_foreign(root)
    commits = store.folder / COMMITS
    if not (known or store.root.exists()):
        for name in (COMMITS, VALIDITY, REGION, *NAMES):
            if (taken := store.folder / name).exists():
                raise StoreError(
                    f"{taken} exists without a job of unetpp; move it away or choose another output folder"
                )
        return
    with output_errors(store.folder):
        for name in (RECORD, JOB, VALIDITY, REGION):
            (store.folder / name).unlink(missing_ok=True)
    discard_products(store.folder)
    discard_folder(commits)
    for kind in MAPS:
        discard_folder(store.folder / map_folder(kind))
    discard_folder(store.root)


def _png(mask: NDArray[np.bool_]) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="PNG")
    return buffer.getvalue()
