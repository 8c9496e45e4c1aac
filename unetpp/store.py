"""Writes and reads one image's label array as OME-Zarr 0.5; knows arrays and their metadata, not images or models.

    labels.ome.zarr/             ome.labels = ["classes"]
        classes/                 multiscales, image-label: class names and colours
            0/c/<row>/<col>      one object per shard, uint8, 255 = no data
            1/ ...               the pyramid, written by unetpp.finalize

Scenes also carry their place by the CF conventions, as xarray with rioxarray reads it: a scalar `spatial_ref` beside
the levels, named by level 0, with the CRS as WKT and GDAL's GeoTransform. Open a group with decode_coords="all" and
`drop_variables` of the coarser levels: xarray knows one size per dimension.

Beside it, where asked for, lie the maps of `unetpp.maps`: probabilities.ome.zarr and uncertainty.ome.zarr.

One shard object has one writer, and it is deleted before it is written again: Zarr reads a partly written shard before
it overwrites it, so a torn one could never be repaired, and two writers of one shard lose pixels silently.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import discard_folder, output_errors, sync, sync_tree
from unetpp.errors import StoreError
from unetpp.geometry import Box
from unetpp.package import ClassInfo
from unetpp.tiling import Shard, TilePlan

if TYPE_CHECKING:
    import zarr

    from unetpp.io.resample import OutputGrid

LABELS, CLASSES = "labels.ome.zarr", "classes"
NO_DATA = 255
OUTPUT_FORMAT = 1
"""Version of the layout and of the rules that decide its bytes; part of every job key."""
_TOP_SIDE = 512
_CHUNK_SIDE = 512
_UNITS = {"um": "micrometer", "m": "meter", "deg": "degree"}
_METADATA = ("zarr.json", f"{CLASSES}/zarr.json", f"{CLASSES}/0/zarr.json")
SPATIAL_REF = "spatial_ref"


class Levels:
    """One array of an image at all its resolutions, laid out by a tile plan; opening it reads nothing yet.

    Args:
        folder: the image's.
        name: path of the levels below it.
        planes: of an array (planes, height, width) whose shards hold all of them; None for (height, width).
    """

    def __init__(self, folder: Path, plan: TilePlan, name: str, planes: int | None = None) -> None:
        self.folder = Path(folder)
        self.plan = plan
        self.name = name
        self.planes = planes

    @property
    def level_count(self) -> int:
        return len(level_shapes(self.plan))

    @cached_property
    def array(self) -> zarr.Array[Any]:
        """Level 0 as a Zarr array; raises `StoreError` when its metadata is missing or damaged."""
        return self.level(0)

    def level(self, index: int) -> zarr.Array[Any]:
        """Open one level that exists; raises `StoreError` when its metadata is missing or damaged."""
        import zarr

        path = self.folder / self.name / str(index)
        try:
            found = zarr.open_array(path, mode="r+")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is not a readable array ({_first_line(error)}); run segment again") from error
        if found.shape != self.shape(index):
            raise StoreError(f"{path} has shape {found.shape}, the job's is {self.shape(index)}")
        return _keep_empty_chunks(found)

    def shape(self, index: int) -> tuple[int, ...]:
        sides = level_shapes(self.plan)[index]
        return sides if self.planes is None else (self.planes, *sides)

    def create_level(self, index: int) -> zarr.Array[Any]:
        """Make one pyramid level ready for writing, replacing what is there; raises `OutputError`."""
        path = self.folder / self.name / str(index)
        with output_errors(path):
            shutil.rmtree(path, ignore_errors=True)
            created = create_array(path, self.plan, index, self.planes)
            sync_tree(path)
        return created

    def object_name(self, level: int, row: int, col: int) -> str:
        """Return the path, below the image's folder, of the object that holds a level's shard."""
        corner = f"{row}/{col}" if self.planes is None else f"0/{row}/{col}"
        return f"{self.name}/{level}/c/{corner}"

    def documents(self) -> list[str]:
        """Return the paths, below the image's folder, of the metadata without which nobody reads the levels."""
        groups = [path.as_posix() for path in (Path(self.name), *Path(self.name).parents)][:-1]
        arrays = [f"{self.name}/{below}" for below in (*range(self.level_count), SPATIAL_REF)]
        names = (f"{folder}/zarr.json" for folder in (*groups, *arrays))
        return [name for name in names if (self.folder / name).is_file()]

    def shard_object(self, shard: Shard) -> Path:
        """Return the file that holds (or will hold) a shard of level 0."""
        return self.folder / self.object_name(0, shard.row, shard.col)

    def delete_shard(self, shard: Shard) -> None:
        """Delete a shard's object and what an interrupted write of it left behind; raises `OutputError`."""
        delete_object(self.shard_object(shard))

    def write_shard(self, shard: Shard, values: NDArray[np.uint8]) -> Path:
        """Write a whole shard, on the disk when this returns; returns its object.

        Args:
            values: ([planes,] h, w) uint8 of the shard's box, 255 where there is no data.

        Raises:
            OutputError: the disk is full or cannot be written. The shard's object is then absent.
        """
        assert values.shape[-2:] == shard.box.shape and values.dtype == np.uint8
        path = self.shard_object(shard)
        self.delete_shard(shard)
        first_of_row = not path.parent.is_dir()
        with output_errors(path):
            self.array[(..., *shard.box.slices())] = values
            sync(path)
            sync(path.parent)
            if first_of_row:
                for parent in path.parents[1 : len(Path(self.object_name(0, 0, 0)).parts) - len(Path(self.name).parts)]:
                    sync(parent)
        return path

    def read(self, box: Box, level: int = 0, plane: int | None = None) -> NDArray[np.uint8]:
        """Return the values ([planes,] h, w) uint8 of a box inside the level, or one plane's (h, w).

        Raises:
            StoreError: the stored bytes are damaged.
        """
        array = self.array if level == 0 else self.level(level)
        part = (..., *box.slices()) if plane is None else (plane, *box.slices())
        try:
            return np.asarray(array[part], dtype=np.uint8)
        except (ValueError, RuntimeError) as error:
            where = self.folder / self.name
            raise StoreError(f"{where} is damaged near {box}: {_first_line(error)}; run verify") from error


class LabelStore(Levels):
    """The label array of one image."""

    def __init__(self, folder: Path, plan: TilePlan) -> None:
        super().__init__(folder, plan, f"{LABELS}/{CLASSES}")

    @classmethod
    def create(
        cls, folder: Path, plan: TilePlan, grid: OutputGrid, classes: Sequence[ClassInfo], *, keep: bool = True
    ) -> LabelStore:
        """Make the array ready for writing in `folder`, which exists.

        Args:
            keep: keep the shards of a store of this job that is there already; False deletes that store first.

        Raises:
            StoreError: something else lies where the store belongs; it is left untouched.
            OutputError: the folder cannot be written.
        """
        store = cls(folder, plan)
        create_group(store.root, lambda fresh: _write_metadata(fresh, plan, grid, classes), _metadata(grid), keep=keep)
        return store

    @property
    def root(self) -> Path:
        return self.folder / LABELS


def create_group(root: Path, write: Callable[[Path], None], metadata: Sequence[str], *, keep: bool) -> None:
    """Make a group of arrays at `root` ready; one that is there keeps its shards, but with `keep` False.

    Args:
        write: writes the empty group into a folder.
        metadata: the files that it then has, whatever they were before.

    Raises:
        StoreError: something else lies at `root`; it is left untouched.
        OutputError: the folder cannot be written.
    """
    with output_errors(root):
        refuse_foreign(root, known=keep)
        if not keep:
            discard_folder(root)
        fresh = root.parent / f".{root.name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        write(fresh)
        sync_tree(fresh)
        if not root.exists():
            fresh.replace(root)
        else:
            for name in metadata:
                (root / name).parent.mkdir(exist_ok=True)
                (fresh / name).replace(root / name)
            shutil.rmtree(fresh)
        sync(root)


def refuse_foreign(root: Path, *, known: bool = False) -> None:
    """Raise `StoreError` where something lies at `root` that this version of unetpp did not write.

    Args:
        known: a job says that it wrote it: what says nothing of itself, being lost or damaged, is then ours.
    """
    if not root.exists():
        return
    try:
        attributes = json.loads((root / "zarr.json").read_bytes())["attributes"]
        ours = attributes["unetpp"]["format"] == OUTPUT_FORMAT
    except (FileNotFoundError, ValueError):
        ours = known
    except (OSError, KeyError, TypeError):
        ours = False
    if not ours:
        raise StoreError(
            f"{root} exists and is not a label store of this version of unetpp; move it away "
            "or choose another output folder"
        )


def delete_object(path: Path) -> None:
    """Delete a shard's object and what an interrupted write of it left behind; raises `OutputError`."""
    with output_errors(path):
        path.unlink(missing_ok=True)
        for litter in path.parent.glob(f"{path.name}.*.partial"):
            litter.unlink(missing_ok=True)


def level_shapes(plan: TilePlan) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of every pyramid level: halved, rounding up, until both sides are at most 512."""
    shapes = [(plan.height, plan.width)]
    while max(shapes[-1]) > _TOP_SIDE:
        height, width = shapes[-1]
        shapes.append((-(-height // 2), -(-width // 2)))
    return tuple(shapes)


def level_shard(plan: TilePlan, index: int) -> int:
    """Return the side of a level's shards: the plan's, or less where the whole level is smaller."""
    if index == 0:
        return plan.shard
    chunk = chunk_side(plan)
    return min(plan.shard, -(-max(level_shapes(plan)[index]) // chunk) * chunk)


def chunk_side(plan: TilePlan) -> int:
    """Return the side of the inner chunks: the divisor of the tile core that is nearest to 512 in ratio."""
    divisors = (d for d in range(1, plan.core + 1) if plan.core % d == 0)
    return min(divisors, key=lambda d: max(d / _CHUNK_SIDE, _CHUNK_SIDE / d))


def _write_metadata(root: Path, plan: TilePlan, grid: OutputGrid, classes: Sequence[ClassInfo]) -> None:
    import zarr

    group = zarr.open_group(root, mode="w", zarr_format=3)
    owner: dict[str, Any] = {"ome": {"version": "0.5", "labels": [CLASSES]}, "unetpp": {"format": OUTPUT_FORMAT}}
    group.attrs.put(owner)
    image: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale(plan, grid)]}
    group.create_group(CLASSES).attrs.put({"ome": {**image, "image-label": image_label(classes)}})
    place_array(root / CLASSES, create_array(root / CLASSES / "0", plan, 0), grid)


def _metadata(grid: OutputGrid) -> tuple[str, ...]:
    return (*_METADATA, *(f"{CLASSES}/{name}" for name in place_metadata(grid)))


def place_metadata(grid: OutputGrid) -> tuple[str, ...]:
    """Return the files that `place_array` adds to a group."""
    return () if grid.crs is None or grid.transform is None else (f"{SPATIAL_REF}/zarr.json",)


def place_array(group: Path, array: zarr.Array[Any], grid: OutputGrid) -> None:
    """Say where a scene's array lies on Earth, by CF-1.11 section 5.6 and GDAL's GeoTransform; others have no place."""
    import zarr

    if grid.crs is None or grid.transform is None:
        return
    a, b, c, d, e, f = grid.transform
    reference = zarr.create_array(group / SPATIAL_REF, shape=(), dtype="uint8", fill_value=0)
    corner = " ".join(repr(float(value)) for value in (c, a, b, f, d, e))
    reference.attrs.put({"crs_wkt": grid.crs, "spatial_ref": grid.crs, "GeoTransform": corner})
    array.attrs.put({"grid_mapping": SPATIAL_REF})


def create_array(path: Path, plan: TilePlan, index: int, planes: int | None = None) -> zarr.Array[Any]:
    """Make an empty level at `path`; see `Levels`."""
    import zarr
    from zarr.codecs import ZstdCodec

    chunk, shard = chunk_side(plan), level_shard(plan, index)
    front = () if planes is None else (planes,)
    created = zarr.create_array(
        path,
        shape=(*front, *level_shapes(plan)[index]),
        dtype="uint8",
        chunks=(*(1 for _ in front), chunk, chunk),
        shards=(*front, shard, shard),
        fill_value=NO_DATA,
        compressors=ZstdCodec(level=3, checksum=True),
        dimension_names=(*("c" for _ in front), "y", "x"),
    )
    return _keep_empty_chunks(created)


def _keep_empty_chunks(array: zarr.Array[Any]) -> zarr.Array[Any]:
    # Zarr otherwise deletes the object of a shard that holds only fill values, and the setting is not stored.
    return array.with_config({"write_empty_chunks": True})


def multiscale(
    plan: TilePlan, grid: OutputGrid, *, name: str = CLASSES, kind: str = "mode", channels: bool = False
) -> dict[str, Any]:
    """Return the OME-Zarr metadata of a pyramid, whose origin is the centre of the image's first pixel.

    Args:
        kind: how a coarser pixel comes from finer ones.
        channels: whether the array has planes.
    """
    axes: list[dict[str, str]] = [{"name": axis, "type": "space"} for axis in ("y", "x")]
    y, x = (1.0, 1.0) if grid.spacing is None else (float(grid.spacing.y), float(grid.spacing.x))
    if grid.spacing is not None:
        axes = [{**axis, "unit": _UNITS[grid.spacing.unit]} for axis in axes]
    one, zero = ([1.0], [0.0]) if channels else ([], [])
    datasets = []
    for index in range(len(level_shapes(plan))):
        factor = 2**index
        scale = {"type": "scale", "scale": [*one, y * factor, x * factor]}
        # Translations are of the first pixel's centre.
        shift_y, shift_x = y * (factor - 1 / grid.step_y) / 2, x * (factor - 1 / grid.step_x) / 2
        translation = {"type": "translation", "translation": [*zero, shift_y, shift_x]}
        datasets.append({"path": str(index), "coordinateTransformations": [scale, translation]})
    axes = [{"name": "c", "type": "channel"}, *axes] if channels else axes
    return {"name": name, "axes": axes, "datasets": datasets, "type": kind}


def image_label(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """Return OME-Zarr's names and colours of label values."""
    colors = [{"label-value": c.value, "rgba": [*c.color, 0 if c.background else 255]} for c in classes]
    names = [{"label-value": c.value, "class": c.name} for c in classes]
    return {
        "colors": [*colors, {"label-value": NO_DATA, "rgba": [0, 0, 0, 0]}],
        "properties": [*names, {"label-value": NO_DATA, "class": "no data"}],
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
