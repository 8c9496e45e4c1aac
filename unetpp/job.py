"""What one segmentation is: its input, model, grid, tile plan and key, kept as job.json; opens no image and no model.

The key is the hash of everything that the output's bytes depend on. Shards with another key are never reused; the
number of workers, the executor and the paths of files are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetpp import commit
from unetpp.commit import CommitRecord
from unetpp.durable import write_file
from unetpp.errors import StoreError, UnetppError, VersionError
from unetpp.geometry import Spacing
from unetpp.io.resample import OutputGrid
from unetpp.maps import MapName, MapStore, ordered
from unetpp.package import ClassInfo
from unetpp.region import Coverage, Region
from unetpp.store import OUTPUT_FORMAT, LabelStore
from unetpp.tiling import Shard, TilePlan
from unetpp.tissue import ValidityMask

JOB, RECORD, VALIDITY, REGION = "job.json", "record.json", "validity.png", "region.json"
"""Files of an image's folder; the record, of how its job ended, is written by the caller."""
_SCHEDULE = 6
"""Raised where engines come to compute tiles in other parts, like strips, or to add in another order: both may round
differently."""


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine that a job was planned for, with nothing left to choose."""

    name: str
    version: str
    precision: Literal["fp32", "fp16", "bf16", "int16", "int8"]
    threads: int
    device: str = "cpu"
    tta: Literal["none", "mirror", "flips", "d4"] = "none"

    def to_json(self) -> dict[str, Any]:
        """Return what identifies the engine; without test-time augmentation, that of versions which had none."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("tta", "none")}


@dataclass(frozen=True, kw_only=True)
class SegmentJob:
    """One image, one model, one output folder.

    Attributes:
        uri: the image.
        out: folder of this image's results.
        package: folder of the model package.
        model_ref: name, digest and, from a registry, version, alias and uri of the model.
        classes: the package's classes, so that results explain themselves without the package.
        spacing_override: spacing the user gave instead of the metadata's.
        mask: the user's own validity mask, or None.
        tissue: name of the tissue algorithm that made the validity mask, or None.
        validity: SHA-256 of the validity mask saved as validity.png, None where there is no mask.
        region: what the user wrote of the part that is to be segmented, or None.
        region_hash: SHA-256 of its polygons saved as region.json, None where there is none.
        maps: that are computed beside the labels.
        image: kind, format, height, width, bands, dtype, spacing and, where viewers turn it, orientation of the input,
            for the record; never its other metadata.
        fingerprint: of the input.
        key: hash of all that decides the output's bytes.
    """

    uri: str
    out: Path
    package: Path
    model_ref: dict[str, Any]
    classes: tuple[ClassInfo, ...]
    engine: EngineChoice
    grid: OutputGrid
    plan: TilePlan
    fingerprint: str
    key: str
    spacing_override: Spacing | None = None
    mask: str | None = None
    tissue: str | None = None
    validity: str | None = None
    region: str | None = None
    region_hash: str | None = None
    maps: tuple[MapName, ...] = ()
    image: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def store(self) -> LabelStore:
        return LabelStore(self.out, self.plan)

    @cached_property
    def map_stores(self) -> tuple[MapStore, ...]:
        return tuple(MapStore(self.out, self.plan, kind, self.classes) for kind in self.maps)

    def validity_mask(self) -> ValidityMask | None:
        """Read where the image is to be segmented; None is everywhere. Raises `StoreError` when the file changed."""
        if self.validity is None:
            return None
        from PIL.PngImagePlugin import PngImageFile

        path = self.out / VALIDITY
        try:
            # `Image.open` refuses images far smaller than a mask may be.
            with PngImageFile(path) as image:
                mask = np.asarray(image) > 0
        except (OSError, SyntaxError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}); run segment again") from error
        if mask_hash(mask) != self.validity:
            raise StoreError(f"{path} is not the mask that the job was prepared with; run segment again")
        return ValidityMask(mask, self.plan.height, self.plan.width)

    def coverage(self) -> Coverage:
        """Read where the image is to be segmented. Raises `StoreError` when a file of it changed."""
        return Coverage(self.validity_mask(), self._saved_region())

    def _saved_region(self) -> Region | None:
        if self.region_hash is None:
            return None
        path = self.out / REGION
        try:
            region = Region.from_json(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{path} cannot be read ({error}); run segment again") from error
        if region.digest != self.region_hash:
            raise StoreError(f"{path} is not the region that the job was prepared with; run segment again")
        return region

    def to_json(self) -> dict[str, Any]:
        return {
            "format": OUTPUT_FORMAT,
            **{name: getattr(self, name) for name in ("uri", "model_ref", "fingerprint", "key", "mask", "tissue")},
            "validity": self.validity,
            "region": self.region,
            "region_hash": self.region_hash,
            "maps": list(self.maps),
            "image": self.image,
            "out": str(self.out),
            "package": str(self.package),
            "classes": [asdict(c) for c in self.classes],
            "engine": self.engine.to_json(),
            "grid": self.grid.to_json(),
            "plan": self.plan.to_json(),
            "spacing_override": asdict(self.spacing_override) if self.spacing_override else None,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SegmentJob:
        """Build from `to_json`'s values; raises `VersionError` when another version wrote them, else `StoreError`."""
        rest = dict(values)
        if (found := rest.pop("format", None)) != OUTPUT_FORMAT:
            if isinstance(found, int):
                raise VersionError(f"format {found}, not {OUTPUT_FORMAT}: another version of unetpp wrote it")
            raise StoreError(f"the job does not say that it is of format {OUTPUT_FORMAT}")
        try:
            spacing = rest.pop("spacing_override")
            return cls(
                out=Path(rest.pop("out")),
                package=Path(rest.pop("package")),
                classes=tuple(ClassInfo(**{**c, "color": tuple(c["color"])}) for c in rest.pop("classes")),
                engine=EngineChoice(**rest.pop("engine")),
                grid=OutputGrid.from_json(rest.pop("grid")),
                plan=TilePlan.from_json(rest.pop("plan")),
                spacing_override=Spacing(**spacing) if spacing else None,
                maps=ordered(rest.pop("maps", ())),
                **rest,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"the job misses or has unknown fields: {error}") from error

    def save(self) -> None:
        """Replace the folder's job.json. Raises `OutputError`."""
        write_file(self.out / JOB, (json.dumps(self.to_json(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> SegmentJob | None:
        """Return the job whose results lie in `folder` (which may have moved), None where there is no job.json.

        Raises:
            VersionError: another version of unetpp wrote job.json. StoreError: it is damaged or not ours.
        """
        path = Path(folder) / JOB
        try:
            values = json.loads(path.read_bytes())
            job = cls.from_json(values if isinstance(values, dict) else {})
        except FileNotFoundError:
            return None
        except (UnetppError, ValueError) as error:
            kind = VersionError if isinstance(error, VersionError) else StoreError
            raise kind(f"{path}: {error}; move it away or choose another output folder") from error
        return replace(job, out=Path(folder))


def job_key(
    *,
    fingerprint: str,
    digest: str,
    engine: EngineChoice,
    grid: OutputGrid,
    plan: TilePlan,
    validity: str | None,
    region: str | None = None,
    maps: Sequence[MapName] = (),
) -> str:
    """Return the SHA-256 (hex) of all that decides the output's bytes."""
    parts: dict[str, Any] = {
        "format": OUTPUT_FORMAT,
        "input": fingerprint,
        "model": digest,
        "engine": engine.to_json(),
        "tile": plan.tile_shape,
        "grid": grid.to_json(),
        "plan": plan.to_json(),
        "validity": validity,
        "schedule": _SCHEDULE,
    }
    # Jobs without a region and maps keep the keys that they had before there were any.
    parts |= {name: value for name, value in (("region", region), ("maps", list(maps))) if value}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def mask_hash(mask: NDArray[np.bool_]) -> str:
    """Return the SHA-256 (hex) of a mask's shape and pixels."""
    shape = "x".join(map(str, mask.shape)).encode()
    return hashlib.sha256(shape + np.packbits(mask).tobytes()).hexdigest()


def pending(job: SegmentJob) -> list[Shard]:
    """Return the shards that are not committed yet, row by row."""
    listed = commit.listed(job.store)
    return [
        shard
        for shard in job.plan.shards()
        if shard.id not in listed or not commit.is_committed(job.store, shard, job.key)
    ]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is, counted from its commit records.

    Attributes:
        shards: of the plan.
        committed: finished shards, the empty ones among them.
        empty: finished shards without any valid pixel.
        retried: finished shards that were tried repeatedly.
        valid_px: output pixels that are not 255.
        counts: pixels per class value.
        seconds: per stage, summed over shards and the threads that made them.
        labels: SHA-256 (hex) over the hashes of all shards, row by row.
    """

    shards: int
    committed: int
    empty: int
    retried: int
    valid_px: int
    counts: dict[int, int]
    seconds: dict[str, float]
    labels: str

    @property
    def status(self) -> Literal["done", "empty", "partial"]:
        """Say whether all shards are finished, and whether anything in the image was valid."""
        if self.committed < self.shards:
            return "partial"
        return "done" if self.valid_px else "empty"


def progress(job: SegmentJob) -> Progress:
    """Read how far a job is from its folder, each record once."""
    shards = job.plan.shards()
    records: list[CommitRecord] = []
    counts: Counter[int] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    labels = hashlib.sha256()
    for shard in shards:
        record = commit.committed_record(job.store, shard, job.key)
        labels.update(f"{shard.id} {record.sha256 if record else 'missing'}\n".encode())
        if record is not None:
            records.append(record)
            counts.update(record.counts)
            for stage, value in record.seconds.items():
                seconds[stage] += value
    return Progress(
        shards=len(shards),
        committed=len(records),
        empty=sum(record.sha256 is None for record in records),
        retried=sum(record.attempt > 1 for record in records),
        valid_px=sum(record.valid_px for record in records),
        counts=dict(counts),
        seconds=dict(seconds),
        labels=labels.hexdigest(),
    )
