"""Finds where an image is most worth a look from its uncertainty map; knows one array, no model and no picture.

The output grid is cut into cells of CELL x CELL pixels. A cell counts by the mean uncertainty of its valid pixels, and
only where at least MIN_SHARE of them are valid, so that a few pixels at an edge do not win. Equal cells come in raster
order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unetpp.geometry import Box
from unetpp.levels import NO_DATA
from unetpp.maps import STEPS, MapStore

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid

CELL = 512
MIN_SHARE = 0.25
REGIONS = 12


@dataclass(frozen=True, slots=True)
class Attention:
    """What an uncertainty map comes to.

    Attributes:
        mean: over all valid pixels, None without any.
        regions: the most uncertain cells, worst first: x, y, width and height in level-0 pixels of the image, mean.
    """

    mean: float | None
    regions: tuple[dict[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "regions": list(self.regions)}


def find_attention(store: MapStore, grid: OutputGrid, progress: Callable[[float], None]) -> Attention:
    """Read the whole map once, cell by cell. Raises `StoreError` where it is damaged."""
    total = count = 0
    found: list[tuple[float, Box]] = []
    rows = range(0, grid.height, CELL)
    for done, y in enumerate(rows):
        for x in range(0, grid.width, CELL):
            box = Box(y, x, y + CELL, x + CELL).clip(grid.height, grid.width)
            values = store.read(box, plane=0)
            valid = values != NO_DATA
            pixels = int(valid.sum())
            total += (summed := int(values[valid].sum(dtype=np.int64)))
            count += pixels
            if pixels >= MIN_SHARE * box.area:
                found.append((summed / pixels / STEPS, box))
        found = sorted(found, key=lambda cell: (-cell[0], cell[1]))[:REGIONS]
        progress((done + 1) / len(rows))
    regions = tuple(
        {
            **{"x": box.x0 * grid.step_x, "y": box.y0 * grid.step_y},
            **{"width": box.width * grid.step_x, "height": box.height * grid.step_y},
            "mean": round(mean, 6),
        }
        for mean, box in found
    )
    return Attention(round(total / count / STEPS, 6) if count else None, regions)
