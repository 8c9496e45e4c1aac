"""Looks at one image of a data set before anything is stored: its grid, its labelled blocks, its faults.

Reads every label and a thumbnail of the image. One image is one task; its findings are a small JSON file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import write_file
from unetpp.errors import UnetppError
from unetpp.geometry import Box, Spacing
from unetpp.io.base import fingerprint, other_files, thumbnail
from unetpp.io.georeference import says_place
from unetpp.io.remote import is_remote
from unetpp.io.resample import OutputGrid, ground_spacing, plan_grid
from unetpp.io.tiff import AUXILIARY
from unetpp.levels import NO_DATA
from unetpp.tissue import ValidityMask, tissue_mask
from unetpp_workflows.prepare.faults import Fault, error, warning
from unetpp_workflows.prepare.labels import ImageLabels
from unetpp_workflows.prepare.rows import Row

if TYPE_CHECKING:
    from unetpp.io.base import Raster, Window
    from unetpp_workflows.prepare.dataset import Dataset

THUMBNAIL_SIDE = 1024
_PRINT_SIDE = 16
_OFF_TISSUE_SHARE = 0.01


@dataclass(frozen=True)
class Survey:
    """What one image holds.

    Attributes:
        key: of the row, the files and the data set; another key, another survey.
        fault: why it cannot be used; everything below is then empty.
        grid: it is read on, as JSON. bands, dtype, kind: of its pixels. fingerprint: of its file.
        spacing: of one grid pixel on the ground, None where unknown.
        blocks: rows (block row, block column, labelled pixels per class ...) of blocks with labels, in order.
        faults: what was met.
        sha256: of the thumbnail; print: 16 x 16 grey values
            as hex, which a re-encoded copy nearly shares; plain: all one value.
        tissue: where labels count on a slide, packed bits with their shape, or None.
    """

    key: str
    faults: tuple[Fault, ...] = ()
    grid: Mapping[str, Any] | None = None
    bands: tuple[str, ...] = ()
    dtype: str = ""
    kind: str = ""
    fingerprint: str = ""
    spacing: Mapping[str, Any] | None = None
    blocks: tuple[tuple[int, ...], ...] = ()
    sha256: str = ""
    print: str = ""
    plain: bool = False
    tissue: Mapping[str, Any] | None = None

    @property
    def failed(self) -> bool:
        return self.grid is None

    def output_grid(self) -> OutputGrid:
        assert self.grid is not None
        return OutputGrid.from_json(self.grid)

    def labelled(self, classes: int) -> NDArray[np.int64]:
        """Return labelled pixels per class."""
        rows = np.array([block[2:] for block in self.blocks], np.int64).reshape(-1, classes)
        return np.asarray(rows.sum(0))

    def tissue_mask(self) -> ValidityMask | None:
        if self.tissue is None:
            return None
        grid, (height, width) = self.output_grid(), self.tissue["shape"]
        bits = np.frombuffer(bytes.fromhex(self.tissue["bits"]), np.uint8)
        return ValidityMask(np.unpackbits(bits)[: height * width].reshape(height, width) > 0, grid.height, grid.width)

    def save(self, path: Path) -> None:
        write_file(path, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> Survey | None:
        """Return what was saved, None where there is nothing or not a whole survey."""
        with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            values = json.loads(path.read_bytes())
            values["faults"] = tuple(Fault(**fault) for fault in values["faults"])
            values["blocks"] = tuple(tuple(block) for block in values["blocks"])
            values["bands"] = tuple(values["bands"])
            return cls(**values)
        return None


def survey_key(row: Row, settings: str, root: Path) -> str:
    """Return a hash of the row, the settings and the size and time of its files; cheap.

    Paths below the data folder `root` count from there: neither how it is written nor where it lies changes the key.
    Of a remote image, and of a list of others, it is the fingerprint; of one that does not open nothing, which `survey`
    then says.
    """
    digest = hashlib.sha256(f"{settings}\0{json.dumps(row.below(root).to_json())}".encode())
    for path in map(Path, row.files()):
        files = [path]
        with suppress(UnetppError):
            # Statistics that a GIS saves beside an image which is looked at make it no other one.
            files += [file for file in other_files(path) if not file.name.endswith(AUXILIARY) or says_place(file)]
        for file in files:
            stat = file.stat()
            digest.update(f"{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    if is_remote(row.image) or Path(row.files()[0]).suffix == ".toml":
        with suppress(UnetppError):
            digest.update(fingerprint(row.image).encode())
    return digest.hexdigest()


def survey(row: Row, dataset: Dataset, key: str) -> Survey:
    """Look at one image; what is wrong with it is in the result, as faults."""
    from unetpp.io import open_raster

    try:
        with open_raster(row.image) as raster:
            return _survey(raster, row, dataset, key)
    except UnetppError as problem:
        return Survey(key=key, faults=(error(str(problem), row.name),))


def _survey(raster: Raster, row: Row, dataset: Dataset, key: str) -> Survey:
    data = dataset.data
    override = Spacing.parse(data.image_spacing) if data.image_spacing else None
    wanted = Spacing.parse(data.spacing) if data.spacing else None
    grid = plan_grid(raster, model_spacing=wanted, override=override)
    small = _small(raster)
    seen = ValidityMask(small.valid, grid.height, grid.width)
    tissue = None
    if data.tissue == "auto" and raster.kind == "slide":
        tissue = ValidityMask(tissue_mask(small.pixels) & small.valid, grid.height, grid.width)
    with ImageLabels(row, dataset, raster, grid, tissue) as labels:
        blocks = _blocks(labels, grid, seen, dataset)
        faults = [replace(fault, where=row.name) for fault in labels.faults()]
        labelled = sum(sum(block[2:]) for block in blocks)
        if labels.off_tissue > _OFF_TISSUE_SHARE * (labelled + labels.off_tissue):
            what = "labelled pixels are not tissue and do not count; set tissue = 'none' to keep them"
            faults.append(warning(what, row.name, f"{labels.off_tissue:,} px"))
    if not labelled:
        faults.append(warning("no pixel is labelled: nothing of it is stored", row.name))
    ground = wanted or override or ground_spacing(raster)
    grey = _print(small)
    return Survey(
        key=key,
        faults=tuple(faults),
        grid=grid.to_json(),
        bands=tuple(raster.bands),
        dtype=raster.dtype.name,
        kind=raster.kind,
        fingerprint=fingerprint(raster),
        spacing=asdict(ground) if ground else None,
        blocks=tuple(blocks),
        sha256=hashlib.sha256(small.pixels.tobytes() + small.valid.tobytes()).hexdigest(),
        print=grey.tobytes().hex(),
        plain=bool(grey.max() == grey.min()),
        tissue=None
        if tissue is None
        else {"shape": list(tissue.mask.shape), "bits": np.packbits(tissue.mask).tobytes().hex()},
    )


def _blocks(labels: ImageLabels, grid: OutputGrid, seen: ValidityMask, dataset: Dataset) -> list[tuple[int, ...]]:
    side, classes = dataset.data.side, len(dataset.classes)
    region, found = labels.region, []
    for row in range(region.y0 // side, -(-region.y1 // side)):
        for col in range(region.x0 // side, -(-region.x1 // side)):
            box = Box(row * side, col * side, (row + 1) * side, (col + 1) * side).clip(grid.height, grid.width)
            # A thumbnail pixel is valid where any of its pixels is, and its edge is off by a pixel at most.
            if not seen.any(box.expand(2)):
                continue
            indices, _ = labels.read(box)
            counts = np.bincount(indices[indices != NO_DATA], minlength=classes)
            if counts.any():
                found.append((row, col, *(int(count) for count in counts)))
    return found


def _small(raster: Raster) -> Window:
    """Return the image's thumbnail; an image that is small already, as it is."""
    top = raster.levels[0]
    return raster.read(top.box) if max(top.height, top.width) <= THUMBNAIL_SIDE else thumbnail(raster, THUMBNAIL_SIDE)


def _print(small: Window) -> NDArray[np.uint8]:
    """Return the thumbnail as 16 x 16 grey values, stretched to 0..255."""
    grey = np.where(small.valid, small.pixels.sum(-1, dtype=np.float64), 0.0)
    edges = [np.arange(_PRINT_SIDE) * size // _PRINT_SIDE for size in grey.shape]
    # An image of fewer pixels than cells repeats its pixels.
    spans = [np.maximum(np.diff([*edge, size]), 1) for edge, size in zip(edges, grey.shape, strict=True)]
    cells = np.add.reduceat(np.add.reduceat(grey, edges[0], axis=0), edges[1], axis=1) / np.outer(*spans)
    low, high = cells.min(), cells.max()
    return np.asarray(np.rint((cells - low) / max(high - low, 1e-12) * 255), np.uint8)
