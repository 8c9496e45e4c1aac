"""Writes and reads the maps beside an image's labels as OME-Zarr 0.5 images; knows arrays, not how they are computed.

    probabilities.ome.zarr/      axes c, y, x: one plane per class, in the model's order
    uncertainty.ome.zarr/        axes c, y, x: one plane, how far the network's heads disagree, see `unetpp.engine.maps`
        0/c/0/<row>/<col>        one object per shard with all planes, uint8
        1/ ...                   the pyramid by means, written by unetpp.finalize

Both are quantized alike: a stored value v in 0..254 stands for v / 254, so that 0 and 1 are exact and the error is at
most 1/508; 255 is no data, as in the labels, whose pixels, shards and levels they share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetpp.levels import NO_DATA, Levels, create_array
from unetpp.package import ClassInfo
from unetpp.store import OUTPUT_FORMAT, create_group, multiscale, place_array, place_metadata
from unetpp.tiling import TilePlan

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid

MapName = Literal["probabilities", "uncertainty"]
MAPS: tuple[MapName, ...] = ("probabilities", "uncertainty")
STEPS = 254
"""Stored values count steps of 1/254."""
_METADATA = ("zarr.json", "0/zarr.json")


class MapStore(Levels):
    """One map of one image; `name` is its folder."""

    def __init__(self, folder: Path, plan: TilePlan, kind: MapName, classes: Sequence[ClassInfo]) -> None:
        super().__init__(folder, plan, map_folder(kind), len(plane_names(kind, classes)))
        self.kind = kind
        self.classes = tuple(classes)

    @property
    def root(self) -> Path:
        return self.folder / self.name

    def create(self, grid: OutputGrid, *, keep: bool = True) -> None:
        """Make the map ready for writing; arguments and errors as `LabelStore.create`'s."""
        create_group(
            self.root, lambda fresh: self._write_metadata(fresh, grid), (*_METADATA, *place_metadata(grid)), keep=keep
        )

    def _write_metadata(self, root: Path, grid: OutputGrid) -> None:
        import zarr

        names = plane_names(self.kind, self.classes)
        colors = [info.color for info in self.classes] if self.kind == "probabilities" else [(255, 255, 255)]
        window = {"min": 0, "max": STEPS, "start": 0, "end": STEPS}
        channels = [
            {"label": name, "color": "".join(f"{part:02X}" for part in color), "window": window, "active": True}
            for name, color in zip(names, colors, strict=True)
        ]
        pyramid = multiscale(self.plan, grid, name=self.kind, kind="mean", channels=True)
        ome: dict[str, Any] = {"version": "0.5", "multiscales": [pyramid], "omero": {"channels": channels}}
        quantization = {"scale": 1 / STEPS, "offset": 0.0, "no_data": NO_DATA}
        own: dict[str, Any] = {"format": OUTPUT_FORMAT, "map": self.kind, "quantization": quantization}
        zarr.open_group(root, mode="w", zarr_format=3).attrs.put({"ome": ome, "unetpp": own})
        place_array(root, create_array(root / "0", self.plan, 0, self.planes), grid)


def map_folder(kind: MapName) -> str:
    return f"{kind}.ome.zarr"


def plane_names(kind: MapName, classes: Sequence[ClassInfo]) -> tuple[str, ...]:
    return tuple(info.name for info in classes) if kind == "probabilities" else ("uncertainty",)


def ordered(kinds: Iterable[str]) -> tuple[MapName, ...]:
    """Return the maps among `kinds` in the order in which engines compute them."""
    wanted = set(kinds)
    return tuple(kind for kind in MAPS if kind in wanted)


def dequantize(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return stored values as numbers in 0..1, NaN where there is no data."""
    return np.where(values == NO_DATA, np.float32(np.nan), values.astype(np.float32) / np.float32(STEPS))
