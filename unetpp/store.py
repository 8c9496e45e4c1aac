"""Writes and reads one image's label array as OME-Zarr 0.5; knows arrays and their metadata, not images or models.

    labels.ome.zarr/             ome.labels = ["classes"]
        classes/                 multiscales, image-label: class names and colours
            0/c/<row>/<col>      one object per shard, uint8, 255 = no data
            1/ ...               the pyramid, written by unetpp.finalize

One shard object has one writer, and it is deleted before it is written again: Zarr reads a partly written shard before
it overwrites it, so a torn one could never be repaired, and two writers of one shard lose pixels silently.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import discard_folder, output_errors, sync, sync_tree
from unetpp.errors import StoreError
from unetpp.geometry import Box, Spacing
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


class LabelStore:
    """The label array of one image, laid out by a tile plan; opening it reads nothing until pixels are asked for."""

    def __init__(self, folder: Path, plan: TilePlan) -> None:
        self.folder = Path(folder)
        self.plan = plan

    @classmethod
    def create(
        cls, folder: Path, plan: TilePlan, grid: OutputGrid, classes: Sequence[ClassInfo], *, keep: bool = True
    ) -> LabelStore:
        """Make the array ready for writing in `folder`, which exists.

        Args:
            keep: keep the shards of a store that is there already; False deletes that store first.

        Raises:
            StoreError: something else lies where the store belongs; it is left untouched.
            OutputError: the folder cannot be written.
        """
        store = cls(folder, plan)
        with output_errors(store.root):
            store.refuse_foreign()
            if not keep:
                discard_folder(store.root)
            fresh = store.folder / f".{LABELS}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            _write_metadata(fresh, plan, grid.spacing, classes)
            sync_tree(fresh)
            if not store.root.exists():
                fresh.replace(store.root)
            else:
                for name in _METADATA:
                    (store.root / name).parent.mkdir(exist_ok=True)
                    (fresh / name).replace(store.root / name)
                shutil.rmtree(fresh)
            sync(store.root)
        return store

    @property
    def root(self) -> Path:
        return self.folder / LABELS

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

        path = self.root / CLASSES / str(index)
        try:
            found = zarr.open_array(path, mode="r+")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} is not a readable label array ({_first_line(error)}); run segment again"
            ) from error
        if found.shape != level_shapes(self.plan)[index]:
            raise StoreError(f"{path} has shape {found.shape}, the job's is {level_shapes(self.plan)[index]}")
        return _keep_empty_chunks(found)

    def create_level(self, index: int) -> zarr.Array[Any]:
        """Make one pyramid level ready for writing, replacing what is there; raises `OutputError`."""
        path = self.root / CLASSES / str(index)
        with output_errors(path):
            shutil.rmtree(path, ignore_errors=True)
            created = _create_array(path, self.plan, index)
            sync_tree(path)
        return created

    def shard_object(self, shard: Shard) -> Path:
        """Return the file that holds (or will hold) a shard of level 0."""
        return self.root / CLASSES / "0" / "c" / str(shard.row) / str(shard.col)

    def delete_shard(self, shard: Shard) -> None:
        """Delete a shard's object and what an interrupted write of it left behind; raises `OutputError`."""
        path = self.shard_object(shard)
        with output_errors(path):
            path.unlink(missing_ok=True)
            for litter in path.parent.glob(f"{path.name}.*.partial"):
                litter.unlink(missing_ok=True)

    def write_shard(self, shard: Shard, labels: NDArray[np.uint8]) -> Path:
        """Write a whole shard, on the disk when this returns; returns its object.

        Args:
            labels: (h, w) uint8 class values of the shard's box, 255 where there is no data.

        Raises:
            OutputError: the disk is full or cannot be written. The shard's object is then absent.
        """
        assert labels.shape == shard.box.shape and labels.dtype == np.uint8
        path = self.shard_object(shard)
        self.delete_shard(shard)
        first_of_row = not path.parent.is_dir()
        with output_errors(path):
            self.array[shard.box.slices()] = labels
            sync(path)
            sync(path.parent)
            if first_of_row:
                sync(path.parent.parent)
                sync(path.parent.parent.parent)
        return path

    def read(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        """Return the labels (h, w) uint8 of a box inside the level.

        Raises:
            StoreError: the stored bytes are damaged.
        """
        array = self.array if level == 0 else self.level(level)
        try:
            return np.asarray(array[box.slices()], dtype=np.uint8)
        except (ValueError, RuntimeError) as error:
            raise StoreError(f"{self.root} is damaged near {box}: {_first_line(error)}; run verify") from error

    def refuse_foreign(self) -> None:
        if not self.root.exists():
            return
        try:
            attributes = json.loads((self.root / "zarr.json").read_bytes())["attributes"]
            ours = attributes["unetpp"]["format"] == OUTPUT_FORMAT
        except (OSError, ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise StoreError(
                f"{self.root} exists and is not a label store of this version of unetpp; move it away "
                "or choose another output folder"
            )


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


def _write_metadata(root: Path, plan: TilePlan, spacing: Spacing | None, classes: Sequence[ClassInfo]) -> None:
    import zarr

    group = zarr.open_group(root, mode="w", zarr_format=3)
    owner: dict[str, Any] = {"ome": {"version": "0.5", "labels": [CLASSES]}, "unetpp": {"format": OUTPUT_FORMAT}}
    group.attrs.put(owner)
    image: dict[str, Any] = {"version": "0.5", "multiscales": [_multiscale(plan, spacing)]}
    group.create_group(CLASSES).attrs.put({"ome": {**image, "image-label": _image_label(classes)}})
    _create_array(root / CLASSES / "0", plan, 0)


def _create_array(path: Path, plan: TilePlan, index: int) -> zarr.Array[Any]:
    import zarr
    from zarr.codecs import ZstdCodec

    chunk, shard = chunk_side(plan), level_shard(plan, index)
    created = zarr.create_array(
        path,
        shape=level_shapes(plan)[index],
        dtype="uint8",
        chunks=(chunk, chunk),
        shards=(shard, shard),
        fill_value=NO_DATA,
        compressors=ZstdCodec(level=3, checksum=True),
        dimension_names=("y", "x"),
    )
    return _keep_empty_chunks(created)


def _keep_empty_chunks(array: zarr.Array[Any]) -> zarr.Array[Any]:
    # Zarr otherwise deletes the object of a shard that holds only fill values, and the setting is not stored.
    return array.with_config({"write_empty_chunks": True})


def _multiscale(plan: TilePlan, spacing: Spacing | None) -> dict[str, Any]:
    axes: list[dict[str, str]] = [{"name": name, "type": "space"} for name in ("y", "x")]
    y, x = (1.0, 1.0) if spacing is None else (float(spacing.y), float(spacing.x))
    if spacing is not None:
        axes = [{**axis, "unit": _UNITS[spacing.unit]} for axis in axes]
    datasets = []
    for index in range(len(level_shapes(plan))):
        factor = 2**index
        shift = (factor - 1) / 2
        scale = {"type": "scale", "scale": [y * factor, x * factor]}
        translation = {"type": "translation", "translation": [y * shift, x * shift]}
        datasets.append({"path": str(index), "coordinateTransformations": [scale, translation]})
    return {"name": CLASSES, "axes": axes, "datasets": datasets, "type": "mode"}


def _image_label(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    colors = [{"label-value": c.value, "rgba": [*c.color, 0 if c.background else 255]} for c in classes]
    names = [{"label-value": c.value, "class": c.name} for c in classes]
    return {
        "colors": [*colors, {"label-value": NO_DATA, "rgba": [0, 0, 0, 0]}],
        "properties": [*names, {"label-value": NO_DATA, "class": "no data"}],
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
