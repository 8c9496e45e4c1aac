"""Lists the results that are shown and what may be said of them; no path, address or metadata of a file leaves here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unetpp.errors import ConfigError, SpacingError, StoreError
from unetpp.geometry import Spacing
from unetpp.job import RECORD, SegmentJob
from unetpp.maps import plane_names
from unetpp_workflows.inputs import JOB
from unetpp_workflows.outputs import image_folders
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.report import crs_name
from unetpp_workflows.viewer.cache import Cache
from unetpp_workflows.viewer.tiles import SIDE, TileReader, zoom_count

_OPEN_IMAGES = 16
Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Result:
    """One image's folder with its job and, once finished, its record; a damaged record is none.

    `stamp` is another one whenever job or record were written anew.
    """

    id: str
    stamp: Stamp
    output: Path
    folder: Path
    job: SegmentJob
    record: ImageRecord | None
    status: str

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether no run will change its pixels."""
        return self.record is not None and self.record.status in ("done", "empty")

    @property
    def model(self) -> str:
        version = self.job.model_ref.get("version")
        return f"{self.job.model_ref.get('name', 'model')}{f' v{version}' if version else ''}"

    @property
    def ground(self) -> Spacing | None:
        """Size of a pixel of the labels, of a scene on the ground at its centre: the one that the model asks for."""
        grid = self.job.grid
        if self.job.spacing_override is not None:
            return grid.spacing  # what a user says of a pixel is its size on the ground already
        try:
            return grid.ground()
        except SpacingError:
            return grid.spacing  # a georeference that lies nowhere on Earth

    @property
    def reviews(self) -> Path:
        """Folder of the review log: beside the image folders, where no new segmentation deletes it."""
        return self.folder.parent

    def entry(self) -> dict[str, Any]:
        """Return the result's row in the list of images."""
        figures = self.record.figures if self.record else {}
        classes = figures.get("classes", [])
        found = [c for c in classes if not c.get("background")]
        return {
            "id": self.id,
            "version": self.version,
            "name": self.name,
            "model": self.model,
            "output": self.output.name,
            "status": self.status,
            "zooms": zoom_count(int(self.job.image["height"]), int(self.job.image["width"])),
            "fingerprint": self.job.fingerprint,
            "area": sum(c.get("area") or 0 for c in found) if found else None,
            "unit": found[0].get("unit") if found else None,
            "objects": sum(c.get("objects") or 0 for c in found) if found else None,
            "uncertainty": (figures.get("attention") or {}).get("mean"),
        }

    @property
    def version(self) -> str:
        """What tells these labels from others of this id, of another run or another folder.

        A comparison or an MLflow run that is noted in the record later leaves it as it is.
        """
        made = self.stamp[0], self.status, self.record.finished if self.record else ""
        return hashlib.sha256(f"{self.job.key}\0{made}".encode()).hexdigest()[:16]

    def details(self) -> dict[str, Any]:
        """Return what the page needs to show the image."""
        job = self.job
        height, width = int(job.image["height"]), int(job.image["width"])
        figures = self.record.figures if self.record else {}
        return {
            **self.entry(),
            "height": height,
            "width": width,
            "side": SIDE,
            "spacing": self._spacing,
            "crs": crs_name(job.grid.crs) if job.grid.crs else None,
            "transform": self._transform,
            "classes": [
                {"value": c.value, "name": c.name, "color": list(c.color), "background": c.background}
                for c in job.classes
            ],
            "maps": {kind: list(plane_names(kind, job.classes)) for kind in job.maps},
            "figures": [
                {k: c.get(k) for k in ("name", "px", "area", "unit", "objects", "instances")}
                for c in figures.get("classes", [])
            ],
            "regions": (figures.get("attention") or {}).get("regions", []),
        }

    @cached_property
    def _spacing(self) -> dict[str, Any] | None:
        """Return the size of a level-0 pixel, of a scene on the ground at its centre."""
        grid, spacing = self.job.grid, self.ground
        if spacing is not None:
            spacing = spacing.scaled(1 / grid.step_y, 1 / grid.step_x)
        return None if spacing is None else {"x": spacing.x, "y": spacing.y, "unit": spacing.unit}

    @property
    def _transform(self) -> list[float] | None:
        """Return level-0 pixel -> CRS."""
        grid = self.job.grid
        if grid.transform is None:
            return None
        a, b, c, d, e, f = grid.transform
        return [a / grid.step_x, b / grid.step_y, c, d / grid.step_x, e / grid.step_y, f]


class Catalogue:
    """The results below the folders that the program was started with, by ids that say nothing of where they lie.

    Args:
        outputs: folders of `unetpp segment --output`, or of single images.

    Raises:
        ConfigError: there is no result in one of them.
    """

    def __init__(self, outputs: Sequence[Path]) -> None:
        self._outputs = [Path(output).resolve() for output in outputs]
        if not self._outputs:
            raise ConfigError("no output folder given; name the --output folder of `unetpp segment`")
        self._results: dict[str, Result] = {}
        self._readers: Cache[TileReader] = Cache(_OPEN_IMAGES)
        for output in self._outputs:
            image_folders(output)
        if not self.results():
            raise ConfigError(f"{self._outputs[0]}: no image in it was begun; see `unetpp status`")

    def results(self) -> list[Result]:
        """Return all results as they lie on the disk now; folders whose job does not read are left out."""
        found = []
        for index, output in enumerate(self._outputs):
            for folder in image_folders(output):
                identity = hashlib.sha256(f"{index}\0{folder.name}".encode()).hexdigest()[:16]
                result = self._result(identity, output, folder)
                if result is not None:
                    found.append(result)
        return found

    def result(self, identity: str) -> Result:
        """Return one result as it lies on the disk now; raises `LookupError` for an id that is not there."""
        if identity not in self._results:
            self.results()
        known = self._results[identity]
        result = self._result(identity, known.output, known.folder)
        if result is None:
            raise KeyError(identity)
        return result

    def reader(self, result: Result) -> TileReader:
        return self._readers.get((result.id, result.job.key), lambda: TileReader(result.job))

    def _result(self, identity: str, output: Path, folder: Path) -> Result | None:
        stamp = (_written(folder / JOB), _written(folder / RECORD))
        known = self._results.get(identity)
        if known is not None and known.stamp == stamp:
            return known
        try:
            job = SegmentJob.load(folder)
        except StoreError:
            return None
        if job is None or "height" not in job.image:
            return None
        record, status = _record(folder, job)
        result = self._results[identity] = Result(identity, stamp, output, folder, job, record, status)
        return result


def _record(folder: Path, job: SegmentJob) -> tuple[ImageRecord | None, str]:
    """Return an image's record, where it has one of this job that reads, and its status."""
    try:
        record = ImageRecord.read(folder)
    except StoreError:
        return None, "damaged"
    if record is None or record.key not in (job.key, None):
        return None, "running or interrupted"
    return record, record.status


def _written(path: Path) -> tuple[int, int]:
    """Return when a file was written, in ns, and its bytes; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
