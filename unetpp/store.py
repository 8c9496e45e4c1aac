"""Writes and reads one image's label array as OME-Zarr 0.5; knows arrays and their metadata, not images or models.

    labels.ome.zarr/             ome.labels = ["classes"]
        classes/                 multiscales, image-label: class names and colours
            0/c/<row>/<col>      one object per shard, uint8, 255 = no data
            1/ ...               the pyramid, written by unetpp.finalize

Scenes also carry their place by the CF conventions, as xarray with rioxarray reads it: a scalar `spatial_ref` beside
the levels, named by level 0, with the CRS as WKT and GDAL's GeoTransform. Open a group with decode_coords="all" and
`drop_variables` of the coarser levels: xarray knows one size per dimension.

Beside it, where asked for, lie the maps of `unetpp.maps`: probabilities.ome.zarr and uncertainty.ome.zarr.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetpp.durable import discard_folder, output_errors, sync, sync_tree
from unetpp.errors import StoreError
from unetpp.levels import NO_DATA, SPATIAL_REF, Levels, create_array, level_shapes
from unetpp.package import ClassInfo
from unetpp.tiling import TilePlan

if TYPE_CHECKING:
    import zarr

    from unetpp.io.resample import OutputGrid

LABELS, CLASSES = "labels.ome.zarr", "classes"
OUTPUT_FORMAT = 1
"""Version of the layout and of the rules that decide its bytes; part of every job key."""
_UNITS = {"um": "micrometer", "m": "meter", "deg": "degree"}
_METADATA = ("zarr.json", f"{CLASSES}/zarr.json", f"{CLASSES}/0/zarr.json")


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
