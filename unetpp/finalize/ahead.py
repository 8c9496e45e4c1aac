"""Compiles what finishing an image needs, while it is still computed, by finishing one of a few pixels; keeps nothing.

Compiled code is kept, see `unetpp.finalize.compiled`, and loaded in a tenth of a second. A machine's first image
takes eight seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from unetpp.finalize.pieces import write_pieces
from unetpp.finalize.polygons import iter_batches
from unetpp.finalize.pyramid import halve
from unetpp.finalize.vectors import write_vectors
from unetpp.geometry import Box
from unetpp.io.resample import OutputGrid
from unetpp.package import ClassInfo

_LABELS = """
111...11
1.101111
111.....
.....1..
"""
"""An object with a hole and a corner that it touches, one that a seam cuts, and one that only touches another."""


def compile_ahead(check: Callable[[], None] = lambda: None) -> None:
    """Compile the loops that every image needs.

    Args:
        check: called in between; what it raises ends the work.
    """
    labels = np.array([[pixel == "1" for pixel in row] for row in _LABELS.split()], np.uint8)
    height, width = labels.shape
    shards = [Box(0, 0, height, width - 2), Box(0, width - 2, height, width)]
    grid = OutputGrid(height, width, 1.0, 1.0, 0, None, None, None)
    classes = [ClassInfo(value=1, name="one", color=(0, 0, 0))]
    halve(labels)
    with TemporaryDirectory(prefix="unetpp-") as folder:
        pieces = Path(folder) / "pieces"
        check()
        write_pieces(lambda box: labels[box.slices()], shards, np.arange(256) == 1, pieces)
        check()
        for batch in iter_batches(shards, pieces):
            check()
            write_vectors([batch], grid=grid, classes=classes, key="", folder=Path(folder), formats=["geojson"])
