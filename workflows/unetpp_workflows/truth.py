"""Scores a finished label array against a raster of known labels; knows pixels, not how either was made."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import ConfigError, DataError
from unetpp.geometry import Box, to_pixels
from unetpp.levels import NO_DATA
from unetpp.package import ClassInfo
from unetpp.store import LabelStore
from unetpp_workflows.inputs import SUFFIXES

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid
    from unetpp_workflows.prepare.masks import RawMask


@dataclass(frozen=True)
class Truth:
    """A label raster of the image's own size, its values as they are stored; 255 and its nodata are ignored.

    Attributes:
        classes: Class name of the model -> value in the raster. Only these classes are scored, and every other value
            means "none of them". Empty means all classes of the model, by their own values; a value that no class has
            (0 for "unlabelled", say) is then ignored.
    """

    path: Path
    classes: Mapping[str, int] = field(default_factory=dict)


def find_truth(path: Path, name: str) -> Path:
    """Return the raster for an image of this name: `path` itself, or the file of that stem in the folder `path`.

    Raises:
        DataError: The folder has no such file.
    """
    if not path.is_dir():
        return path
    found = _by_stem(path, path.stat().st_mtime_ns).get(name)
    if found is None:
        raise DataError(f"{path}: no truth named {name}; give each image a raster of its name")
    return found


# Every image of an archive asks for its own.
@lru_cache(maxsize=4)
def _by_stem(folder: Path, _changed: int) -> dict[str, Path]:
    """Return the files of a folder by stem; of several an image before a world file, then the first by name."""
    files = (file for file in folder.iterdir() if file.is_file())
    last_first = sorted(files, key=lambda file: (file.suffix.lower() not in SUFFIXES, file.name), reverse=True)
    return {file.stem: file for file in last_first}


def score(store: LabelStore, grid: OutputGrid, classes: Sequence[ClassInfo], truth: Truth) -> dict[str, float]:
    """Return intersection over union per class name, over the pixels that both label; shard by shard.

    A class that occurs in neither is left out. Where the output is coarser or finer than the raster, each output
    pixel is compared with the raster's pixel at its centre.

    Raises:
        ConfigError: `truth.classes` names a class that the model does not have.
        DataError: the raster's size or place is not the image's, or it holds colours. Also what `open_labels` raises.
    """
    from unetpp_workflows.prepare.masks import open_labels

    pairs = _pairs(classes, truth.classes)
    common = dict.fromkeys(pairs, 0)
    either = dict.fromkeys(pairs, 0)
    with closing(open_labels(truth.path)) as raster:
        size = round(grid.height * grid.step_y), round(grid.width * grid.step_x)
        if max(abs(raster.height - size[0]) / grid.step_y, abs(raster.width - size[1]) / grid.step_x) > 1:
            raise DataError(
                f"{truth.path}: truth is {raster.width} x {raster.height} px, the image {size[1]} x {size[0]}; "
                "give a raster of the image's size"
            )
        _check_place(raster, truth.path, grid)
        for shard in store.plan.shards():
            found, true = store.read(shard.box), _sample(raster, truth.path, grid, shard.box)
            both = (found != NO_DATA) & (true != NO_DATA) & (true != raster.nodata)
            if not truth.classes:
                both &= np.isin(true, [true_value for _, true_value in pairs.values()])
            for name, (value, true_value) in pairs.items():
                mine, theirs = (found == value) & both, (true == true_value) & both
                common[name] += int((mine & theirs).sum())
                either[name] += int((mine | theirs).sum())
    return {name: common[name] / either[name] for name in pairs if either[name]}


def _check_place(raster: RawMask, path: Path, grid: OutputGrid) -> None:
    """Raise `DataError` where a raster of the image's size lies elsewhere, as one of another year's or tile's grid."""
    import pyproj

    if not (raster.crs and raster.transform and grid.crs and grid.transform):
        return
    ours, theirs = pyproj.CRS.from_wkt(grid.crs), pyproj.CRS.from_wkt(raster.crs)
    rows, cols = np.array([0, 0, grid.height, grid.height]), np.array([0, grid.width, 0, grid.width])
    a, b, c, d, e, f = grid.transform
    x, y = a * cols + b * rows + c, d * cols + e * rows + f
    if not ours.equals(theirs, ignore_axis_order=True):
        try:
            x, y = pyproj.Transformer.from_crs(ours, theirs, always_xy=True).transform(x, y)
        except pyproj.exceptions.ProjError:  # as of a CRS of a building site
            raise DataError(
                f"{path}: truth's CRS {theirs.name!r} has no known relation to the image's; give a raster in its CRS"
            ) from None
    found = to_pixels(raster.transform, x, y)
    off = np.abs(np.subtract(found, (cols * grid.step_x, rows * grid.step_y))).max()
    if not off <= 1:
        raise DataError(
            f"{path}: truth has the image's size but lies {off:.0f} px away from it; give a raster of the image's own "
            "pixels, or take its georeference off"
        )


def _pairs(classes: Sequence[ClassInfo], mapping: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    values = {c.name: c.value for c in classes}
    for name in mapping:
        if name not in values:
            near = difflib.get_close_matches(name, values, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else f"classes: {', '.join(values)}"
            raise ConfigError(f"truth.classes: the model has no class {name!r}; {hint}")
    return {name: (values[name], true) for name, true in (mapping or values).items()}


def _sample(raster: RawMask, path: Path, grid: OutputGrid, box: Box) -> NDArray[np.generic]:
    rows = _centres(box.y0, box.y1, grid.step_y, raster.height)
    cols = _centres(box.x0, box.x1, grid.step_x, raster.width)
    values = raster.read(Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1))
    if (values[..., 1:3] != values[..., :1]).any():
        raise DataError(f"{path}: truth holds colours; give a raster with one value per class")
    return values[..., 0][np.ix_(rows - rows[0], cols - cols[0])]


def _centres(start: int, stop: int, step: float, size: int) -> NDArray[np.int64]:
    centres = np.floor((np.arange(start, stop) + 0.5) * step).astype(np.int64)
    return np.asarray(centres.clip(0, size - 1), np.int64)
