"""What every image reader gives: levels, windows with validity, spacing; knows no file format.

Coordinates. A `Box` passed to `Raster.read` is in pixels of the level it reads (not in level-0 pixels as in OpenSlide).
Level 0 is the finest. A window carries everything that places it: box, level, spacing, CRS and transform.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import PlanError
from unetpp.geometry import Box, Spacing, Transform, window_transform
from unetpp.io.remote import is_remote

Kind = Literal["slide", "scene", "image"]
Pixels = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Level:
    """Size of one pyramid level in pixels; `downsample` is level-0 pixels per pixel of this level (1.0 at level 0)."""

    height: int
    width: int
    downsample: float

    @property
    def box(self) -> Box:
        return Box(0, 0, self.height, self.width)


@dataclass(frozen=True, slots=True)
class Window:
    """Pixels read from one level, and where they lie.

    pixels: (H, W, C) in the image's own dtype; 0 outside the image.
    valid: (H, W) bool; False outside the image, on nodata and on transparent pixels.
    box: in pixels of `level`. spacing: of one pixel of this window. transform: pixel of this window -> `crs`.
    """

    pixels: Pixels
    valid: Mask
    box: Box
    level: int
    spacing: Spacing | None
    crs: str | None
    transform: Transform | None


@runtime_checkable
class Raster(Protocol):
    """One open image. Reads are safe from several threads; open it again in every process."""

    @property
    def uri(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def format(self) -> str: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def bands(self) -> tuple[str, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def spacing(self) -> Spacing | None:
        """Spacing of level 0 as the metadata states it; None when it does not."""
        ...

    @property
    def crs(self) -> str | None:
        """Coordinate reference system as WKT; None for images that lie nowhere on Earth."""
        ...

    @property
    def transform(self) -> Transform | None:
        """Affine transform of level 0 into `crs`."""
        ...

    def read(self, box: Box, level: int = 0) -> Window:
        """Return the pixels of `box` (pixels of `level`); what lies past the image's edge is 0 and invalid.

        Raises `CorruptImageError` naming file and box where bytes do not decode.
        """
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


THUMBNAIL_BLOCK = 1024
FINGERPRINT_BYTES = 2**16
SIDECARS = (".ovr", ".msk", ".msk.ovr", ".ovr.msk", ".aux.xml")
"""What GDAL reads beside a TIFF, appended to its name: overviews, masks, and metadata."""
VRT, JP2 = ".vrt", ".jp2"
"""Suffixes of what only GDAL reads."""
ZARR_DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


def thumbnail(raster: Raster, max_side: int) -> Window:
    """Return the whole image, averaged over boxes of pixels, no side longer than `max_side`.

    Pixel (i, j) of the (h, w) result is the mean of the valid pixels of rows floor(i*H/h) .. floor((i+1)*H/h) and the
    columns likewise of the coarsest level that is large enough; it is valid where any of them is. Invalid pixels are 0.
    The level is read in blocks, so memory does not grow with the image. The window's box and transform are those of the
    result's own grid; `level` is the level it was made from.
    """
    if max_side < 1:
        raise PlanError(f"thumbnail side {max_side} is not positive; give the longest side in pixels")
    enough = [i for i, level in enumerate(raster.levels) if max(level.height, level.width) >= max_side]
    number = enough[-1] if enough else 0
    level = raster.levels[number]
    shrink = min(1.0, max_side / max(level.height, level.width))
    rows, columns = (np.arange(n + 1) * size // n for size, n in _thumbnail_sides(level, shrink))
    height, width = len(rows) - 1, len(columns) - 1
    pixels = np.zeros((height, width, len(raster.bands)), raster.dtype)
    valid = np.zeros((height, width), bool)
    for i0, i1 in _groups(rows):
        for j0, j1 in _groups(columns):
            part = raster.read(Box(int(rows[i0]), int(columns[j0]), int(rows[i1]), int(columns[j1])), number)
            cells = rows[i0:i1] - rows[i0], columns[j0:j1] - columns[j0]
            pixels[i0:i1, j0:j1], valid[i0:i1, j0:j1] = _average(part, cells)
    top = raster.levels[0]
    fy, fx = top.height / height, top.width / width
    box = Box(0, 0, height, width)
    spacing = raster.spacing.scaled(fy, fx) if raster.spacing else None
    transform = window_transform(raster.transform, box, fy, fx) if raster.transform else None
    return Window(pixels, valid, box, number, spacing, raster.crs, transform)


def _thumbnail_sides(level: Level, shrink: float) -> list[tuple[int, int]]:
    return [(size, max(1, round(size * shrink))) for size in (level.height, level.width)]


def _groups(edges: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return ranges of cells that together span about one block of pixels."""
    cells = len(edges) - 1
    step = max(1, THUMBNAIL_BLOCK * cells // int(edges[-1]))
    return [(i, min(i + step, cells)) for i in range(0, cells, step)]


def _average(part: Window, cells: tuple[NDArray[np.int64], NDArray[np.int64]]) -> tuple[Pixels, Mask]:
    if part.valid.all():
        pixels = part.pixels
        count = np.multiply.outer(*(np.diff(c, append=size) for c, size in zip(cells, part.valid.shape, strict=True)))
    else:
        pixels = np.where(part.valid[..., None], part.pixels, np.zeros((), part.pixels.dtype))
        count = _sums(part.valid, cells)
    total = _sums(pixels, cells)
    mean = total / np.maximum(count, 1)[..., None]
    if part.pixels.dtype.kind != "f":
        mean = np.rint(mean)
    return mean.astype(part.pixels.dtype), count > 0


def _sums(values: NDArray[Any], cells: tuple[NDArray[np.int64], NDArray[np.int64]]) -> NDArray[Any]:
    """Return the sums over cells of rows and columns that begin at these; exact for whole numbers."""
    rows, columns = cells
    kind = np.int64 if values.dtype.kind in "bui" and values.itemsize <= 4 else np.float64
    # One sum per row of cells: `reduceat` along the first axis takes eight times as long.
    high = np.empty((len(rows), *values.shape[1:]), kind)
    for k, (begin, end) in enumerate(pairwise([*rows.tolist(), len(values)])):
        np.sum(values[begin:end], axis=0, dtype=kind, out=high[k])
    return np.asarray(np.add.reduceat(high, columns, axis=1))


def fingerprint(source: Raster | str | Path) -> str:
    """Return a hex SHA-256 that changes when the image file changes; cheap: it never reads the pixels.

    Of a file it covers size, modification time (ns), the first and last 64 KiB (a TIFF's directories are at either end)
    and what the reader understood: sizes, bands, type, spacing, CRS, transform. Of a slide in several files it covers
    name, size and time of each. Of a Zarr folder: every metadata document, and name, size and time of every other
    file (a second for 100,000 of them). Of mosaics and band lists also the parts' fingerprints, and the scale and
    offset that a STAC item gives.

    Remote images: size and ETag (or time, where the server sends none) instead of time and content. Zarr over plain
    HTTP, which cannot list, is known by its metadata documents alone.
    """
    from unetpp.io import open_raster

    if isinstance(source, str | Path):
        with open_raster(source) as raster:
            return fingerprint(raster)
    digest = hashlib.sha256(json.dumps(_facts(source), sort_keys=True).encode())
    if is_remote(source.uri):
        from unetpp.io.remote_image import versions

        digest.update(json.dumps(versions(source.uri)).encode())
        return digest.hexdigest()
    path = Path(getattr(source, "file", source.uri))
    if path.is_dir():
        _hash_folder(digest, path)
    else:
        for file in (path, *_companions(path)):
            _hash_stat(digest, file, file.name)
        with path.open("rb") as file_object:
            digest.update(file_object.read(FINGERPRINT_BYTES))
            file_object.seek(-min(FINGERPRINT_BYTES, path.stat().st_size), os.SEEK_END)
            digest.update(file_object.read(FINGERPRINT_BYTES))
    return digest.hexdigest()


def _facts(raster: Raster) -> dict[str, Any]:
    return {
        "format": raster.format,
        "levels": [[level.height, level.width] for level in raster.levels],
        "bands": list(raster.bands),
        "dtype": raster.dtype.str,
        "spacing": str(raster.spacing),
        "crs": raster.crs,
        "transform": raster.transform,
        **({"frame": number} if (number := getattr(raster, "frame", None)) is not None else {}),
        **({"values": values} if (values := getattr(raster, "item_values", ())) else {}),
        **({"parts": [fingerprint(uri) for uri in parts]} if (parts := getattr(raster, "part_uris", ())) else {}),
    }


def other_files(path: Path) -> Iterator[Path]:
    """Yield the files of an image or of labels that are not `path` itself: of a folder what `fingerprint` looks at.

    World files are among them; a fingerprint has the place itself.
    """
    if path.is_dir():
        yield from _zarr_documents(path)
        yield from map(Path, _objects(path))
        return
    from unetpp.io.georeference import world_files_beside

    yield from _companions(path)
    yield from world_files_beside(path)


def _companions(path: Path) -> list[Path]:
    """Return the other files of a slide: MIRAX keeps a folder, DICOM and VMS keep theirs beside the first."""
    suffix = path.suffix.lower()
    if suffix == ".shp":
        return sorted(file for end in (".dbf", ".shx", ".prj", ".cpg") if (file := path.with_suffix(end)).is_file())
    if suffix == ".gpkg":
        # Where a program that has it open, such as QGIS, keeps what was saved last.
        return [file for file in (path.with_name(f"{path.name}-wal"),) if file.is_file()]
    if suffix == ".mrxs":
        return sorted(file for file in path.with_suffix("").glob("*") if file.is_file())
    if suffix == ".dcm":
        from unetpp.io.dicom import files_beside

        return files_beside(path)
    if suffix in (".vms", ".vmu"):
        return _named_beside(path)
    if suffix == VRT:
        from unetpp.io.geotiff import vrt_sources

        return vrt_sources(path)
    return existing(path.with_name(path.name + ending) for ending in SIDECARS)


def _named_beside(path: Path) -> list[Path]:
    """Return the files beside an index of "key = name" lines that it names."""
    values = (line.partition("=")[2].strip() for line in path.read_text("utf-8", errors="replace").splitlines())
    return sorted(set(existing(path.with_name(name) for name in values if name and "/" not in name)))


def existing(files: Iterable[Path]) -> list[Path]:
    """Return those files that exist; one whose name is too long for its file system does not."""
    return [file for file in files if os.path.isfile(file)]  # noqa: PTH113 (`Path.is_file` fails on such names)


def _hash_stat(digest: Any, file: Path | str, name: str) -> None:
    stat = os.stat(file)  # noqa: PTH116 (a `Path` for each of a million chunks takes three times as long)
    digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())


def _hash_folder(digest: Any, folder: Path) -> None:
    for file in _zarr_documents(folder):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + _document(file))
    for chunk in _objects(folder):
        _hash_stat(digest, chunk, chunk[len(f"{folder}/") :])


def _document(file: Path) -> bytes:
    """Return a metadata document; of the copies of others' documents that it holds, those of labels do not count."""
    content = file.read_bytes()
    if b'"consolidated_metadata"' not in content:
        return content
    try:
        document = json.loads(content)
        copies = document["consolidated_metadata"]["metadata"]
        kept = {name: copy for name, copy in copies.items() if "labels" not in name.split("/")}
        document["consolidated_metadata"]["metadata"] = kept
    except (ValueError, LookupError, TypeError, AttributeError):
        return content
    return json.dumps(document, sort_keys=True).encode()


def _zarr_documents(folder: Path) -> Iterator[Path]:
    """Yield every metadata file in a fixed order, without listing what lies below an array: its chunks."""
    for here, folders, files in os.walk(folder):
        found = [Path(here, name) for name in ZARR_DOCUMENTS if name in files]
        yield from found
        folders[:] = [] if any(_is_array(file) for file in found) else _without_labels(here, folders)


def _without_labels(here: str, folders: list[str]) -> list[str]:
    """Return a group's folders in order without its OME-Zarr labels: they are no pixels, and we may add to them."""
    found = sorted(folders)
    if "labels" in found and any(Path(here, "labels", name).is_file() for name in ZARR_DOCUMENTS):
        found.remove("labels")
    return found


def _is_array(file: Path) -> bool:
    return file.name == ".zarray" or (file.name == "zarr.json" and b'"array"' in file.read_bytes())


def _objects(folder: Path) -> Iterator[str]:
    """Yield the path of every file that is no metadata, in a fixed order."""
    for here, folders, files in os.walk(folder):
        folders[:] = _without_labels(here, folders)
        yield from (f"{here}/{name}" for name in sorted(files) if name not in ZARR_DOCUMENTS)
