"""Fills one shard of a training store from the images and labels of its patches; one shard is one task.

A marker is written after the shard's bytes are on the disk: its key, the objects' sizes, and per patch a hash of its
content, labelled pixels per class, and sums for the statistics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import write_file
from unetpp.errors import CorruptImageError
from unetpp.geometry import Box
from unetpp.io.resample import GridReader
from unetpp.levels import NO_DATA
from unetpp_workflows.prepare.dataset import Dataset
from unetpp_workflows.prepare.labels import ImageLabels
from unetpp_workflows.prepare.layout import Layout, patch_arrays, shard_file, write_shard
from unetpp_workflows.prepare.rows import Row
from unetpp_workflows.prepare.statistics import Sums
from unetpp_workflows.prepare.survey import Survey, survey

PLAN, SURVEYS, MARKERS, TABLES = "plan.json", "surveys", "markers", "tables.npz"


@dataclass(frozen=True)
class Marker:
    """One finished shard; one entry per patch in `sha256`, `counts` and `sums`."""

    key: str
    sizes: Mapping[str, int]
    sha256: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    sums: tuple[Sums, ...]

    @classmethod
    def load(cls, path: Path) -> Marker | None:
        with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            values = json.loads(path.read_bytes())
            values["sums"] = tuple(Sums(s["count"], tuple(s["total"]), tuple(s["squares"])) for s in values["sums"])
            values["sha256"], values["counts"] = tuple(values["sha256"]), tuple(map(tuple, values["counts"]))
            return cls(**values)
        return None


@dataclass(frozen=True)
class Work:
    """A preparation under way, as its tasks find it on the disk: every process opens it by two paths.

    Attributes:
        store: the store that is filled. folder: surveys, plan and markers, deleted when the store is finished.
    """

    store: Path
    folder: Path

    def __reduce__(self) -> tuple[type[Work], tuple[Path, Path]]:
        # Tasks on a cluster carry two paths, not what was read from them.
        return Work, (self.store, self.folder)

    @cached_property
    def _plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads((self.folder / PLAN).read_bytes())
        return plan

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.model_validate(self._plan["dataset"])

    @cached_property
    def rows(self) -> list[Row]:
        return [Row.from_json(values) for values in self._plan["rows"]]

    @property
    def keys(self) -> list[str]:
        """Key of each image's survey."""
        return list(self._plan["keys"])

    @property
    def key(self) -> str:
        return str(self._plan["key"])

    def survey_path(self, image: int) -> Path:
        return self.folder / SURVEYS / f"{image}.json"

    def survey(self, image: int) -> Survey | None:
        """Return an image's survey where it is finished and still holds."""
        found = Survey.load(self.survey_path(image))
        return found if found is not None and found.key == self.keys[image] else None

    @cached_property
    def layout(self) -> Layout:
        with np.load(self.folder / TABLES, allow_pickle=False) as tables:
            side, per_shard = (int(v) for v in tables["sizes"])
            return Layout(side, per_shard, tables["image"], tables["box"])

    def marker_path(self, shard: int) -> Path:
        return self.folder / MARKERS / f"{shard}.json"

    def marker(self, shard: int) -> Marker | None:
        """Return the marker of a shard whose objects are there in full."""
        found = Marker.load(self.marker_path(shard))
        if found is None or found.key != self.key:
            return None
        for name, size in found.sizes.items():
            path = shard_file(self.store, name, shard, 4 if name == "pixels" else 3)
            if not path.is_file() or path.stat().st_size != size:
                return None
        return found


def run_survey(work: Work, image: int) -> None:
    """Survey one image and keep what was found."""
    survey(work.rows[image], work.dataset, work.keys[image]).save(work.survey_path(image))


def run_shard(work: Work, shard: int) -> None:
    """Fill one shard and commit it.

    Raises:
        CorruptImageError: an image does not decode there, or changed since its survey. OutputError: the disk.
    """
    patches, layout, data = work.layout.of_shard(shard), work.layout, work.dataset.data
    buffers: dict[str, NDArray[Any]] = {}
    hashes, counts, sums = [], [], []
    with _Images(work) as images:
        for position, patch in enumerate(patches):
            box = Box(*(int(v) for v in layout.box[patch]))
            content = images.read(int(layout.image[patch]), box)
            digest = hashlib.sha256()
            for name in patch_arrays(data.instances):
                part = content[name]
                if name not in buffers:
                    shape = (len(patches), layout.side, layout.side, *part.shape[2:])
                    buffers[name] = np.full(shape, NO_DATA if name == "labels" else 0, part.dtype)
                buffers[name][position, : box.height, : box.width] = part
                digest.update(np.ascontiguousarray(part).tobytes())
            hashes.append(digest.hexdigest())
            labels = content["labels"]
            found = np.bincount(labels[labels != NO_DATA], minlength=len(work.dataset.classes))
            counts.append(tuple(int(count) for count in found))
            sums.append(Sums.of(content["pixels"], content["valid"]))
    sizes = write_shard(work.store, shard, patches, buffers)
    marker = Marker(work.key, sizes, tuple(hashes), tuple(counts), tuple(sums))
    write_file(work.marker_path(shard), json.dumps(asdict(marker)).encode())


class _Images:
    """The image that is read at the moment: patches come image by image, so one is open at a time."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._number = -1
        self._open = ExitStack()

    def read(self, image: int, box: Box) -> dict[str, NDArray[Any]]:
        """Return pixels, labels, valid and, of instances, objects of a box of an image's grid."""
        if image != self._number:
            self._switch(image)
        window = self._reader.read(box)
        labels, objects = self._labels.read(box)
        # Without data a pixel has no content, so that equal scenes are equal whatever their files hold there.
        content = {
            "pixels": np.where(window.valid[..., None], window.pixels, np.zeros((), window.pixels.dtype)),
            "labels": np.where(window.valid, labels, np.uint8(NO_DATA)),
            "valid": window.valid,
        }
        return content if objects is None else {**content, "objects": np.where(window.valid, objects, np.int32(0))}

    def _switch(self, image: int) -> None:
        from unetpp.io import open_raster

        self._open.close()
        row, found = self._work.rows[image], self._work.survey(image)
        if found is None or found.failed:
            raise CorruptImageError(f"{row.image} changed while it was read; run prepare again")
        self._open = ExitStack()
        raster = self._open.enter_context(open_raster(row.image))
        grid = found.output_grid()
        self._reader = GridReader(raster, grid)
        labels = ImageLabels(row, self._work.dataset, raster, grid, found.tissue_mask())
        self._labels = self._open.enter_context(labels)
        self._number = image

    def __enter__(self) -> _Images:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()
