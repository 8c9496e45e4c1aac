"""Reads the windows of a shard's tiles, each source pixel once but at the shard's edges; knows no network.

Tiles come in strips, downwards and then to the right. What a tile has read of the one below it is kept until that is
read, and of the one to its right until the next strip comes there: a few hundred kilobytes each. Without them a source
would decode the tiles between two strips twice, or keep all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.geometry import Box
from unetpp.tiling import Tile


@dataclass(frozen=True)
class Window:
    """Pixels (h, w, C), filled where invalid, and validity (h, w) of one box of the output grid."""

    box: Box
    pixels: NDArray[Any]
    valid: NDArray[np.bool_]

    def part(self, box: Box) -> Window | None:
        """Return a copy of what is here of a box, None where nothing is."""
        box = box.intersect(self.box)
        if box.height <= 0 or box.width <= 0:
            return None
        here = box.slices(self.box)
        return Window(box, self.pixels[here].copy(), self.valid[here].copy())


class Windows:
    """The windows of one shard.

    Args:
        read: reads a box, which lies inside the image.
        tiles: that may be read, with their read boxes.
        height, width: of the image (px).
    """

    def __init__(self, read: Callable[[Box], Window], tiles: Iterable[Tile], height: int, width: int) -> None:
        self._read = read
        self._size = height, width
        self._boxes = {_corner(tile.write_box): self._inside(tile.read_box) for tile in tiles}
        self._above: dict[tuple[int, int], Window] = {}
        self._left: dict[tuple[int, int], Window] = {}

    def read(self, tile: Tile) -> Window:
        """Return a tile's window, as much of its read box as the image has; errors: those of `read`."""
        place, box = _corner(tile.write_box), self._inside(tile.read_box)
        above, left = self._above.pop(place, None), self._left.pop(place, None)
        self._above.clear()  # of a tile that another worker took
        window = self._pasted(box, above, left) if above or left else self._read(box)
        self._keep(self._above, (tile.write_box.y1, tile.write_box.x0), window)
        self._keep(self._left, (tile.write_box.y0, tile.write_box.x1), window)
        return window

    def _pasted(self, box: Box, above: Window | None, left: Window | None) -> Window:
        """Return a window whose first rows and first columns are known."""
        rest = Box(above.box.y1 if above else box.y0, left.box.x1 if left else box.x0, box.y1, box.x1)
        parts = [part for part in (above, left) if part is not None]
        if rest.height > 0 and rest.width > 0:
            parts.append(self._read(rest))
        pixels = np.empty((*box.shape, parts[0].pixels.shape[-1]), parts[0].pixels.dtype)
        valid = np.empty(box.shape, np.bool_)
        for part in parts:
            pixels[part.box.slices(box)], valid[part.box.slices(box)] = part.pixels, part.valid
        return Window(box, pixels, valid)

    def _keep(self, kept: dict[tuple[int, int], Window], place: tuple[int, int], window: Window) -> None:
        part = window.part(self._boxes[place]) if place in self._boxes else None
        if part is not None:
            kept[place] = part

    def _inside(self, box: Box) -> Box:
        return box.clip(*self._size)


def _corner(box: Box) -> tuple[int, int]:
    return box.y0, box.x0
