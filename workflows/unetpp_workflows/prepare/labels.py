"""The labels of one image on its training grid, with everything that limits them; knows no pixels and no store."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from unetpp.geometry import Box
from unetpp.levels import NO_DATA
from unetpp.tissue import ValidityMask, load_mask
from unetpp_workflows.prepare.faults import Fault
from unetpp_workflows.prepare.legend import Indices, Legend
from unetpp_workflows.prepare.masks import MaskReader, Objects
from unetpp_workflows.prepare.polygons import PolygonReader, holds_polygons

if TYPE_CHECKING:
    from unetpp.io.base import Raster
    from unetpp.io.resample import OutputGrid
    from unetpp_workflows.prepare.dataset import Dataset
    from unetpp_workflows.prepare.rows import Row

Mask = NDArray[np.bool_]
_MARKED = 0


class LabelReader(Protocol):
    def read(self, box: Box) -> tuple[Indices, Objects | None]: ...
    def faults(self) -> list[Fault]: ...
    def close(self) -> None: ...


class ImageLabels:
    """Labels of boxes of one image.

    Args:
        tissue: where labels count on a slide; None everywhere.

    Raises:
        DataError, MaskError: the labels do not fit the image. Also what their readers raise.
    """

    def __init__(
        self, row: Row, dataset: Dataset, raster: Raster, grid: OutputGrid, tissue: ValidityMask | None
    ) -> None:
        legend = Legend.of(dataset)
        self._classes, self._instances = len(dataset.classes), dataset.data.instances
        # 255 where there is none: it equals no label that counts.
        self._background = NO_DATA if dataset.background is None else dataset.background
        self._tissue, self.off_tissue = tissue, 0
        self.region = row.region(grid.height, grid.width)
        with ExitStack() as stack:
            self._readers: list[LabelReader] = []
            for path in row.labels:
                reader: LabelReader = (
                    PolygonReader(path, legend, dataset.data, raster, grid)
                    if holds_polygons(path)
                    else MaskReader(path, legend, raster, grid)
                )
                stack.callback(reader.close)
                self._readers.append(reader)
            self._mask = _Area(row.mask, dataset, raster, grid) if row.mask else None
            self._ignore = _Area(row.ignore, dataset, raster, grid) if row.ignore else None
            self._open = stack.pop_all()

    def read(self, box: Box) -> tuple[Indices, Objects | None]:
        """Return class indices (h, w) uint8, 255 where a pixel does not count, and object numbers or None.

        `box` lies inside the grid.
        """
        part = box.intersect(self.region)
        labels = np.full(box.shape, NO_DATA, np.uint8)
        objects: Objects | None = np.zeros(box.shape, np.int32) if self._instances else None
        if part.area:
            votes = [reader.read(part) for reader in self._readers]
            found = majority([indices for indices, _ in votes], self._classes)
            found = np.where(self._counts(part), found, np.uint8(NO_DATA))
            if self._tissue is not None:
                on = self._tissue.crop(part)
                self.off_tissue += int(((found != NO_DATA) & (found != self._background) & ~on).sum())
                found = np.where(on, found, np.uint8(NO_DATA))
            labels[part.slices(box)] = found
            if objects is not None and (numbers := votes[0][1]) is not None:
                objects[part.slices(box)] = np.where(found == NO_DATA, 0, numbers)
        return labels, objects

    def _counts(self, box: Box) -> Mask:
        counts = np.ones(box.shape, bool)
        if self._mask is not None:
            counts &= self._mask.read(box)
        if self._ignore is not None:
            counts &= ~self._ignore.read(box)
        return counts

    def faults(self) -> list[Fault]:
        return list(dict.fromkeys(fault for reader in self._readers for fault in reader.faults()))

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def majority(votes: Sequence[Indices], classes: int) -> Indices:
    """Return the class index that most of those who labelled a pixel gave it; 255 for a tie or no vote."""
    if len(votes) == 1:
        return votes[0]
    counts = np.stack([sum((vote == index).astype(np.int16) for vote in votes) for index in range(classes)])
    most = counts.max(0)
    clear = (most > 0) & ((counts == most).sum(0) == 1)
    return np.where(clear, counts.argmax(0), NO_DATA).astype(np.uint8)


class _Area:
    """Pixels that an image (not 0) or polygons of any class mark."""

    def __init__(self, path: str, dataset: Dataset, raster: Raster, grid: OutputGrid) -> None:
        self._polygons: PolygonReader | None = None
        if holds_polygons(path):
            # A file without a polygon marks nothing: what is outside has a class as well.
            anything = Legend(
                values={}, colors={}, names={}, only=_MARKED, background=1, instances=False, explicit_values=True
            )
            data = dataset.data.model_copy(update={"outside": "background", "property": ""})
            self._polygons = _AnyPolygon(path, anything, data, raster, grid)
        else:
            self._mask = load_mask(path, grid)

    def read(self, box: Box) -> Mask:
        return self._mask.crop(box) if self._polygons is None else self._polygons.read(box)[0] == _MARKED


class _AnyPolygon(PolygonReader):
    """Polygons whose names do not matter."""

    def _classes(self, names: list[str]) -> NDArray[np.int64]:
        return np.full(len(names), _MARKED, np.int64)
