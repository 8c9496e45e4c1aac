"""Reads label rasters on an image's training grid: each pixel takes the mask's value at its centre.

Knows PNG, TIFF, GeoTIFF, Zarr and OME-Zarr masks, in the image's pixels or in another CRS; guesses no sizes. Palette
indices and 16-bit values are read as they are stored.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unetpp.antimeridian import ends, turn
from unetpp.errors import CorruptImageError, DataError, UnetppError
from unetpp.geometry import Box, Transform, to_pixels
from unetpp.io.reader import MAX_DECODED_PIXELS, first_line, level_scale
from unetpp.levels import NO_DATA
from unetpp_workflows.prepare.faults import Fault, warning
from unetpp_workflows.prepare.legend import Indices, Legend, Unlisted, index_colors, index_instances, index_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unetpp.io.base import Mask, Raster
    from unetpp.io.resample import OutputGrid

Objects = NDArray[np.int32]
_MANY = 8
"""So many values that the legend does not know are rather numbers of objects than forgotten classes."""


class RawMask(Protocol):
    """A label file as it is stored: values (h, w, bands) of a box inside it; `nodata` is what its tag says."""

    height: int
    width: int
    crs: str | None
    transform: Transform | None
    nodata: float | None

    def read(self, box: Box) -> NDArray[Any]: ...
    def close(self) -> None: ...


class MaskReader:
    """Class indices and object numbers of boxes of the training grid, from a raster.

    Raises:
        DataError: the mask's size is not the image's, or its samples are no labels. Also what the readers raise.
    """

    def __init__(self, path: str, legend: Legend, raster: Raster, grid: OutputGrid) -> None:
        self._path, self._legend, self._grid = path, legend, grid
        self._unlisted, self._tagged = Unlisted(), 0
        self._left_out = self._foreground = 0  # pixels of 255 that nobody spoke of, and of the only foreground
        self._notes: list[Fault] = []
        self._mask = open_labels(Path(path))
        self._warp: Any = None
        if raster.crs and raster.transform and self._mask.crs and self._mask.transform:
            self._warp = self._other_frame(raster)
        if self._warp is None:
            self._steps = self._own_steps(raster)
            if (turned := getattr(raster, "orientation", 1)) != 1:
                text = "labels are taken for those of the stored pixels, but viewers show the image turned"
                self._notes.append(warning(text, detail=f"orientation {turned}"))

    def _own_steps(self, raster: Raster) -> tuple[float, float]:
        """Return the mask's pixels per pixel of the training grid along y and x, of a mask without a place."""
        grid, size = self._grid, (self._mask.height, self._mask.width)
        for number, level in enumerate(raster.levels):
            if size == (level.height, level.width):
                # Not the quotient of the sizes: a pyramid drops a last row that does not divide.
                scale_y, scale_x = level_scale(raster.levels, number)
                return grid.step_y / scale_y, grid.step_x / scale_x
        if size == (grid.height, grid.width):
            return 1.0, 1.0
        top = raster.levels[0]
        raise DataError(
            f"labels {self._path} are {size[1]} x {size[0]} px, the image {top.width} x {top.height}; give labels of "
            "the image's size"
        )

    def _other_frame(self, raster: Raster) -> Any:
        """Return the transformer into the mask's CRS; None where the mask lies on the image's own pixels."""
        import pyproj

        assert raster.crs is not None and raster.transform is not None and self._mask.crs is not None
        theirs, ours = pyproj.CRS.from_user_input(self._mask.crs), pyproj.CRS.from_user_input(raster.crs)
        top = raster.levels[0]
        same_crs = theirs.equals(ours, ignore_axis_order=True)
        same_size = (self._mask.height, self._mask.width) == (top.height, top.width)
        if same_crs and same_size and np.allclose(self._mask.transform or (), raster.transform, rtol=1e-9, atol=1e-9):
            return None
        if not same_crs:
            self._notes.append(
                warning(f"labels are in {crs_label(theirs)}, the image in {crs_label(ours)}: reprojected")
            )
        return pyproj.Transformer.from_crs(ours, theirs, always_xy=True)

    def read(self, box: Box) -> tuple[Indices, Objects | None]:
        """Return class indices (h, w) and, of instances, object numbers (h, w); 255 and 0 outside the mask."""
        if self._warp is None:
            rows = _centres(box.y0, box.y1, self._steps[0], self._mask.height)
            cols = _centres(box.x0, box.x1, self._steps[1], self._mask.width)
            part = self._mask.read(Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1))
            return self._indices(part[np.ix_(rows - rows[0], cols - cols[0])])
        row, col = self._warped(box)
        inside = (row >= 0) & (row < self._mask.height) & (col >= 0) & (col < self._mask.width)
        if not inside.any():
            nothing = np.zeros(box.shape, np.int32) if self._legend.instances else None
            return np.full(box.shape, NO_DATA, np.uint8), nothing
        row, col = row[inside], col[inside]
        y0, x0 = int(row.min()), int(col.min())
        part = self._mask.read(Box(y0, x0, int(row.max()) + 1, int(col.max()) + 1))
        return _spread(*self._indices(part[row - y0, col - x0][:, None]), inside)

    def _warped(self, box: Box) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the mask's row and column (h, w) at the centre of every pixel; outside where undefined."""
        a, b, c, d, e, f = self._grid.transform or (1, 0, 0, 0, 1, 0)
        row, col = np.mgrid[box.y0 : box.y1, box.x0 : box.x1] + 0.5
        x, y = self._warp.transform(a * col + b * row + c, d * col + e * row + f)
        placed = self._mask.transform or (1, 0, 0, 0, 1, 0)
        length = turn(self._mask.crs or "")
        if length is not None:
            # The mask may lie a turn of the globe away from the image, or go round it.
            west, _ = ends(placed, self._mask.width, self._mask.height)
            x = x - length * np.floor((x - west) / length)
        col, row = to_pixels(placed, x, y)
        return _floor(row), _floor(col)

    def _indices(self, raw: NDArray[Any]) -> tuple[Indices, Objects | None]:
        colored = raw.shape[-1] >= 3 and not self._legend.explicit_values
        counts = ~self._missing(raw[..., :3] if colored else raw[..., :1], colored)
        if counts.all():
            return self._classes(raw, colored)
        return _spread(*self._classes(raw[counts][:, None], colored), counts)

    def _missing(self, raw: NDArray[Any], colored: bool) -> Mask:
        """Return which pixels (h, w) of stored values (h, w, bands) are marked as ones that do not count."""
        missing = np.isnan(raw).any(-1) if raw.dtype.kind == "f" else np.zeros(raw.shape[:2], bool)
        if self._legend.no_data and not colored:
            missing |= np.isin(raw[..., 0], list(self._legend.no_data))
        return missing | self._tagged_nodata(raw, colored)

    def _tagged_nodata(self, raw: NDArray[Any], colored: bool) -> Mask:
        """Return which pixels (h, w) hold the file's nodata value; none where that value is a class's.

        Many masks carry nodata = 0 and mean background by 0: the data set's own words win over the tag.
        """
        nodata = self._mask.nodata
        found = np.zeros(raw.shape[:2], bool) if nodata is None else np.asarray((raw == nodata).all(-1))
        if not found.any():
            return found
        mark: Any = (nodata,) * 3 if colored else nodata
        known: Mapping[Any, int] = self._legend.colors if colored else self._legend.values
        if known.get(mark, NO_DATA) == NO_DATA:
            return found
        self._tagged += int(found.sum())
        return np.zeros_like(found)

    def _classes(self, raw: NDArray[Any], colored: bool) -> tuple[Indices, Objects | None]:
        """Return class indices and object numbers (h, w) of stored values (h, w, bands) that all count."""
        raw = _whole(raw, self._path)
        if colored:
            return index_colors(raw[..., :3], self._legend, self._unlisted), None
        if raw.shape[-1] > 1 and not (raw[..., :3] == raw[..., :1]).all():
            raise DataError(f"labels {self._path} are coloured, but the classes list values; list their colours")
        if self._legend.instances:
            return index_instances(raw[..., 0], self._legend)
        indices = index_values(raw[..., 0], self._legend, self._unlisted)
        if self._legend.by_default and self._legend.only is not None:
            self._left_out += int(np.count_nonzero(raw[..., 0] == NO_DATA))
            self._foreground += int(np.count_nonzero(indices == self._legend.only))
        return indices, None

    def faults(self) -> list[Fault]:
        """Return what was met while reading."""
        found = list(self._notes)
        if self._tagged:
            value = f"{self._mask.nodata:.12g}"
            text = f"nodata value {value} of labels is a class's and counts as it; else set no_data = [{value}]"
            found.append(warning(text, detail=f"{self._tagged:,} px"))
        if self._left_out and not self._foreground:
            text = "255 does not count, and nothing else is foreground; if 255 is, set labels = [255] in its class"
            found.append(warning(f"{text}, else no_data = [255]", detail=f"{self._left_out:,} px"))
        if self._unlisted.pixels:
            text = "values outside the legend do not count"
            if len(self._unlisted.pixels) >= _MANY and self._legend.only is not None:
                text += "; if they number objects, set instances = true"
            found.append(warning(text, detail=self._unlisted.text()))
        return found

    def close(self) -> None:
        self._mask.close()


def _centres(start: int, stop: int, step: float, size: int) -> NDArray[np.int64]:
    centres = np.floor((np.arange(start, stop) + 0.5) * step).astype(np.int64)
    return np.asarray(centres.clip(0, size - 1))


def _floor(values: NDArray[Any]) -> NDArray[np.int64]:
    whole = np.nan_to_num(np.floor(values), nan=-1, posinf=-1, neginf=-1).clip(-1, 2**31)
    return np.asarray(whole, np.int64)


def _spread(found: Indices, numbers: Objects | None, where: Mask) -> tuple[Indices, Objects | None]:
    """Return labels and objects of the shape (h, w) of `where` with those found there; elsewhere 255 and 0."""
    labels = np.full(where.shape, NO_DATA, np.uint8)
    labels[where] = found.ravel()
    if numbers is None:
        return labels, None
    objects = np.zeros(where.shape, np.int32)
    objects[where] = numbers.ravel()
    return labels, objects


def _whole(raw: NDArray[Any], path: str) -> NDArray[Any]:
    if raw.dtype.kind == "f":
        whole: NDArray[Any] = raw.astype(np.int64)
        if not (whole == raw).all():
            raise DataError(f"labels {path} hold fractions; give whole numbers")
        return whole
    return raw


def crs_label(crs: Any) -> str:
    """Return a pyproj CRS by its authority's code where GDAL recognises it, else by its name."""
    from rasterio.crs import CRS

    return ":".join(CRS.from_user_input(crs.to_wkt()).to_authority() or (crs.name,))


def open_labels(path: Path) -> RawMask:
    """Open a label file; palette indices and 16-bit values are read as they are stored.

    Raises:
        DataError: its format changes values.
        CorruptImageError: it does not open. Also what `open_raster` raises for Zarr.
    """
    try:
        if path.is_dir():
            return _ZarrMask(path)
        return _TiffMask(path) if path.suffix.lower() in (".tif", ".tiff", ".vrt") else _PhotoMask(path)
    except UnetppError:
        raise
    except Exception as error:
        # Damaged headers make the format libraries fail in any way at all.
        raise CorruptImageError(f"{path}: labels do not open ({first_line(error)}); copy them again") from error


class _PhotoMask:
    """A PNG, BMP or another format that Pillow decodes whole; palette indices are kept."""

    crs: str | None = None
    transform: Transform | None = None
    nodata: float | None = None

    def __init__(self, path: Path) -> None:
        from PIL import Image

        self._path = path
        self._values: NDArray[Any] | None = None
        self._lock = threading.Lock()
        with Image.open(path) as photo:
            self.width, self.height = photo.size
            if photo.format == "JPEG":
                raise DataError(f"labels {path} are JPEG, which changes values; give PNG or TIFF")
        if self.width * self.height > MAX_DECODED_PIXELS:
            raise DataError(f"labels {path}: {self.width} x {self.height} px decode whole; save them as a tiled TIFF")

    def read(self, box: Box) -> NDArray[Any]:
        from PIL import Image

        with self._lock:
            if self._values is None:
                try:
                    with Image.open(self._path) as photo:
                        self._values = np.asarray(photo.convert("L") if photo.mode == "LA" else photo)
                except (OSError, SyntaxError, ValueError) as error:
                    raise CorruptImageError(f"{self._path}: labels do not decode ({first_line(error)})") from None
        part = self._values[box.slices()]
        return part[..., None] if part.ndim == 2 else part

    def close(self) -> None:
        self._values = None


class _TiffMask:
    """A TIFF or VRT through GDAL, window by window; colour tables are kept as indices."""

    def __init__(self, path: Path) -> None:
        import rasterio

        self._data = rasterio.open(path)
        self._lock = threading.Lock()
        self._path = path
        self.height, self.width = self._data.height, self._data.width
        for name in self._data.subdatasets[1:]:
            with rasterio.open(name) as page:
                # Smaller ones are a pyramid's levels.
                if page.shape == self._data.shape:
                    raise DataError(
                        f"labels {path} hold several pages; save the one that is meant as a file of its own"
                    )
        self.crs = self._data.crs.to_wkt() if self._data.crs else None
        a, b, c, d, e, f = tuple(self._data.transform)[:6]
        self.transform = None if self._data.transform.is_identity else (a, b, c, d, e, f)
        self.nodata: float | None = self._data.nodatavals[0]

    def read(self, box: Box) -> NDArray[Any]:
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        with self._lock:
            try:
                planes = self._data.read(window=Window(box.x0, box.y0, box.width, box.height))
            except RasterioError as error:
                raise CorruptImageError(f"{self._path}: labels do not decode ({first_line(error)})") from None
        return np.moveaxis(planes, 0, -1)

    def close(self) -> None:
        self._data.close()


class _ZarrMask:
    """A Zarr array, an OME-Zarr label image, or the only one in a folder of labels."""

    crs: str | None = None
    transform: Transform | None = None
    nodata: float | None = None

    def __init__(self, path: Path) -> None:
        from unetpp.io.zarr import ZarrRaster

        self._raster = ZarrRaster(_label_group(path))
        self.height, self.width = self._raster.levels[0].height, self._raster.levels[0].width

    def read(self, box: Box) -> NDArray[Any]:
        return self._raster.read(box).pixels

    def close(self) -> None:
        self._raster.close()


def _label_group(path: Path) -> Path:
    """Follow OME-Zarr's list of label images where `path` is not one; raises `DataError` where it names several."""
    import zarr

    node = zarr.open(path, mode="r")
    names = dict(node.attrs.get("ome", node.attrs)).get("labels")  # type: ignore[arg-type]
    if not isinstance(names, list):
        return path
    if len(names) != 1:
        raise DataError(f"{path} holds the labels {', '.join(map(str, names))}; give the path of one of them")
    return path / str(names[0])
