"""Brings coordinates to the turn of the globe that an image has; knows which CRSs repeat themselves, no files.

An image of Fiji may lie at 177 to 182 degrees or at -183 to -178, what is drawn on it at -178: where a CRS comes round
to the same place again, coordinates that are whole turns apart are one place.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unetpp.geometry import Transform

Floats = NDArray[np.float64]
_NOTHING = 1e-9
"""Share of a turn that two ranges may overlap by rounding alone."""


# Asked for every polygon of a file.
@lru_cache(maxsize=8)
def turn(wkt: str) -> float | None:
    """Return after how much of its x a CRS is at the same place again; None where it never is.

    A geographic CRS has 360 degrees in its own unit, a Mercator projection the length of its equator.
    """
    from unetpp.io.resample import find_mercator, horizontal

    crs = horizontal(wkt)
    if crs.is_geographic:
        return float(2 * math.pi / crs.axis_info[0].unit_conversion_factor)
    mercator = find_mercator(crs)
    if mercator is None:
        return None
    radius = crs.ellipsoid.semi_major_metre * mercator.scale
    return float(2 * math.pi * radius / crs.axis_info[0].unit_conversion_factor)


def ends(transform: Transform, width: int, height: int) -> tuple[float, float]:
    """Return the least and the largest x of an image of so many pixels, whichever way it is turned."""
    a, b, c = transform[:3]
    corners = (c, c + a * width, c + b * height, c + a * width + b * height)
    return min(corners), max(corners)


def turns(low: float, high: float, begin: float, end: float, length: float) -> range:
    """Return by how many turns of this length low..high can be moved to overlap begin..end; empty where by none."""
    gap = _NOTHING * length
    return range(math.ceil((begin - high + gap) / length), math.floor((end - low - gap) / length) + 1)


def torn(ring: Floats, length: float) -> bool:
    """Tell whether a ring (n, 2), the first vertex not repeated, jumps more than half a turn along x."""
    return bool((np.abs(np.roll(ring[:, 0], -1) - ring[:, 0]) > length / 2).any())


def continued(ring: Floats, length: float) -> Floats:
    """Return a ring (n, 2) of short edges without jumps of a turn; as it is where it goes round a pole."""
    if not torn(ring, length) or not np.isfinite(ring).all():
        return ring
    around = np.unwrap(np.append(ring[:, 0], ring[0, 0]), period=length)
    if abs(around[-1] - around[0]) > length / 2:
        return ring
    return np.stack([around[:-1], ring[:, 1]], axis=1)


def nearest(hole: Floats, shell: Floats, length: float) -> Floats:
    """Return a hole (n, 2) in the turn in which it lies in its shell."""
    centre = (shell[:, 0].min() + shell[:, 0].max()) / 2
    turned = hole.copy()
    turned[:, 0] += length * np.round((centre - hole[:, 0].mean()) / length)
    return turned


def dense(ring: Floats, pieces: int = 16) -> Floats:
    """Return the ring with its edges in pieces: what is straight in one CRS is bent in another."""
    following = np.roll(ring, -1, axis=0)
    share = np.arange(pieces)[None, :, None] / pieces
    return np.asarray(ring[:, None] + (following - ring)[:, None] * share).reshape(-1, 2)
