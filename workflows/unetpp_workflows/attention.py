"""Draws the regions of an image that are most worth a look, each beside its uncertainty; measures nothing."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unetpp.durable import write_file
from unetpp.geometry import Box
from unetpp.maps import dequantize
from unetpp_workflows.report import ATTENTION, SHOWN_REGIONS, to_rgb

if TYPE_CHECKING:
    from unetpp.io.base import Raster
    from unetpp.job import SegmentJob

_SIDE, _GAP = 256, 8
_HOT = (255, 60, 0)


def write_attention(job: SegmentJob, raster: Raster, regions: Sequence[Mapping[str, float]]) -> None:
    """Save one row per region, the worst first: the image, and the image with its uncertainty over it.

    Args:
        regions: of `unetpp.finalize.attention`, in level-0 pixels.

    Raises:
        CorruptImageError: the image does not decode there.
        OutputError: the picture cannot be written.
    """
    from PIL import Image

    from unetpp.io.resample import GridReader

    path = job.out / ATTENTION
    shown = regions[:SHOWN_REGIONS]
    if not shown:
        path.unlink(missing_ok=True)
        return
    reader, store = GridReader(raster, job.grid), next(s for s in job.map_stores if s.kind == "uncertainty")
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (2 * step - _GAP, len(shown) * step - _GAP), (235, 235, 235))
    for row, region in enumerate(shown):
        box = _box(region, job)
        window = reader.read(box)
        image = to_rgb(window.pixels, window.valid)
        share = np.nan_to_num(dequantize(store.read(box, plane=0)))[..., None] * 0.9
        hot = (image * (1 - share) + np.array(_HOT) * share).astype(np.uint8)
        for column, picture in enumerate((image, hot)):
            small = Image.fromarray(picture)
            small.thumbnail((_SIDE, _SIDE))
            sheet.paste(small, (column * step, row * step))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85)
    write_file(path, file.getvalue())


def _box(region: Mapping[str, Any], job: SegmentJob) -> Box:
    grid = job.grid
    y, x = round(region["y"] / grid.step_y), round(region["x"] / grid.step_x)
    return Box(y, x, y + round(region["height"] / grid.step_y), x + round(region["width"] / grid.step_x))
