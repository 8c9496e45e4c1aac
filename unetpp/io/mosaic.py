"""Reads adjacent or overlapping images as one; knows where the parts lie and who wins, not how a part is decoded.

A mosaic is a small TOML file NAME.mosaic.toml that lists its parts:

    rule = "first"            # where valid pixels of parts overlap: the first of the list wins, or the "last"
    parts = [
        { uri = "north.tif" },
        { uri = "south.tif" },
    ]

Parts with a georeference place themselves: they share CRS and pixel size, and lie whole pixels apart; across longitude
180, too, where the CRS comes round to the same place again and the mosaic is narrower so. Parts without one are placed
by x and y, the level-0 pixel of the mosaic where a part's upper left pixel goes; then every part has both.
A pixel that no part covers with a valid pixel is no data. There is only level 0: what a coarser level of a part holds
at its edge depends on where the part was cut.
"""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetpp.antimeridian import turn
from unetpp.errors import ImageFormatError
from unetpp.geometry import Box, Spacing, Transform
from unetpp.io.base import Mask, Pixels, Raster
from unetpp.io.reader import ReaderBase, make_levels

SUFFIX = ".mosaic.toml"
_OPEN = 16
"""Parts kept open that nobody reads."""
_OFF_PIXEL = 0.01
"""Parts may lie this share of a pixel off the grid of the first."""


@dataclass
class _Part:
    uri: str
    box: Box
    raster: Raster | None = None
    users: int = 0
    opening: threading.Lock = field(default_factory=threading.Lock)


class MosaicRaster(ReaderBase):
    """See `Raster`; `part_uris` are those of the parts.

    Raises:
        ImageFormatError: the file is no mosaic, or its parts do not fit together.
        Also what `open_raster` raises for a part.
    """

    format = "mosaic"

    def __init__(self, path: Path) -> None:
        self.uri = str(path)
        rule, entries = _parse(path)
        self._last_wins = rule == "last"
        self._lock = threading.Lock()
        self.part_uris = tuple(entry["uri"] for entry in entries)
        facts = [_facts(uri) for uri in self.part_uris]
        first = facts[0]
        for other in facts[1:]:
            _check_alike(path, first, other)
        boxes = _placed(path, entries, facts)
        y0, x0 = min(box.y0 for box in boxes), min(box.x0 for box in boxes)
        self._parts = [_Part(fact.uri, box.shift(-y0, -x0)) for fact, box in zip(facts, boxes, strict=True)]
        height, width = max(part.box.y1 for part in self._parts), max(part.box.x1 for part in self._parts)
        self.kind = first.kind if all(fact.kind == first.kind for fact in facts) else "image"
        self.levels = make_levels([(height, width)])
        self.bands, self.dtype, self.spacing = first.bands, first.dtype, first.spacing
        if first.transform is not None and "x" not in entries[0]:
            a, b, c, d, e, f = first.transform
            # From the first part's corner to the mosaic's.
            dx, dy = x0 - boxes[0].x0, y0 - boxes[0].y0
            self.crs, self.transform = first.crs, (a, b, a * dx + b * dy + c, d, e, d * dx + e * dy + f)

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        pixels = np.zeros((*box.shape, len(self.bands)), self.dtype)
        valid = np.zeros(box.shape, bool)
        for part in reversed(self._parts) if self._last_wins else self._parts:
            common = part.box.intersect(box)
            if not common.area or valid[common.slices(box)].all():
                continue
            with self._borrowed(part) as raster:
                window = raster.read(common.shift(-part.box.y0, -part.box.x0))
            here = common.slices(box)
            taken = window.valid & ~valid[here]
            pixels[here][taken] = window.pixels[taken]
            valid[here] |= taken
        return pixels, valid

    @contextmanager
    def _borrowed(self, part: _Part) -> Iterator[Raster]:
        """Lend an open part; afterwards those that nobody reads are closed but for a few."""
        from unetpp.io import open_raster

        with self._lock:
            part.users += 1
        try:
            with part.opening:
                if part.raster is None:
                    part.raster = open_raster(part.uri)
            yield part.raster
        finally:
            with self._lock:
                part.users -= 1
                idle = [other for other in self._parts if other.raster is not None and not other.users]
                for other in [other for other in idle if other is not part][: max(0, len(idle) - _OPEN)]:
                    _close(other)

    def close(self) -> None:
        with self._lock:
            for part in self._parts:
                _close(part)


def is_mosaic(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIX)


def _close(part: _Part) -> None:
    if part.raster is not None:
        part.raster.close()
        part.raster = None


@dataclass(frozen=True)
class _Facts:
    uri: str
    kind: Literal["slide", "scene", "image"]
    height: int
    width: int
    bands: tuple[str, ...]
    dtype: np.dtype[Any]
    spacing: Spacing | None
    crs: str | None
    transform: Transform | None


def _facts(uri: str) -> _Facts:
    from unetpp.io import open_raster

    with open_raster(uri) as raster:
        top = raster.levels[0]
        return _Facts(
            uri,
            raster.kind,
            top.height,
            top.width,
            raster.bands,
            raster.dtype,
            raster.spacing,
            raster.crs,
            raster.transform,
        )


def _parse(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the rule and the parts of a mosaic's file, URIs from its folder."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImageFormatError(f"{path} does not read as TOML ({error}); see unetpp.io.mosaic") from None
    rule, parts = values.get("rule"), values.get("parts")
    if set(values) - {"rule", "parts"} or rule not in ("first", "last") or not isinstance(parts, list) or not parts:
        raise ImageFormatError(f'{path} is no mosaic; write rule = "first" or "last" and parts = [{{ uri = ... }}]')
    found = [_entry(path, number, part) for number, part in enumerate(parts, 1)]
    placed = ["x" in entry for entry in found]
    if any(placed) and not all(placed):
        raise ImageFormatError(f"{path}: part {placed.index(False) + 1} has no x and y, others have; place all or none")
    return rule, found


def _entry(path: Path, number: int, part: object) -> dict[str, Any]:
    entry = dict(part) if isinstance(part, Mapping) else {}
    uri = entry.get("uri")
    offsets = [entry[name] for name in ("x", "y") if name in entry]
    if not isinstance(uri, str) or not uri or set(entry) - {"uri", "x", "y"} or len(offsets) == 1:
        raise ImageFormatError(f"{path}: part {number} is not {{ uri = ... }} with or without both x and y")
    if not all(isinstance(offset, int) for offset in offsets):
        raise ImageFormatError(f"{path}: part {number} lies at {offsets}; x and y are whole pixels")
    if is_mosaic(Path(uri)):
        raise ImageFormatError(f"{path}: part {number} is itself a mosaic; list its parts here")
    local = "://" not in uri and not Path(uri).is_absolute()
    return {**entry, "uri": str(path.parent / uri) if local else uri}


def _check_alike(path: Path, first: _Facts, other: _Facts) -> None:
    for what in ("bands", "dtype", "crs"):
        one, two = getattr(first, what), getattr(other, what)
        if one != two:
            raise ImageFormatError(f"{path}: {other.uri} has another {what} than {first.uri}; give like images")
    one, two = first.spacing, other.spacing
    if (one is None) != (two is None) or (one and two and not _close_to((one.y, one.x), (two.y, two.x))):
        raise ImageFormatError(f"{path}: {other.uri} has pixels of {two}, {first.uri} of {one}; resample one of them")


def _placed(path: Path, entries: Sequence[Mapping[str, Any]], facts: Sequence[_Facts]) -> list[Box]:
    """Return where the parts lie, in pixels from any origin."""
    if "x" in entries[0]:
        corners = [(entry["y"], entry["x"]) for entry in entries]
    else:
        corners = _on_grid(path, facts, _arranged(facts, np.array([_offset(path, facts[0], fact) for fact in facts])))
    return [Box(y, x, y + fact.height, x + fact.width) for (y, x), fact in zip(corners, facts, strict=True)]


def _offset(path: Path, first: _Facts, other: _Facts) -> tuple[float, float]:
    """Return how many rows and columns a part's corner lies from the first part's."""
    if first.transform is None or other.transform is None:
        raise ImageFormatError(f"{path}: {other.uri} has no georeference; give every part x and y")
    a, b, c, d, e, f = first.transform
    if not _close_to((a, b, d, e), tuple(other.transform[i] for i in (0, 1, 3, 4))):
        raise ImageFormatError(f"{path}: {other.uri} has pixels of another size or direction; resample it first")
    x, y = np.linalg.solve(np.array([[a, b], [d, e]]), np.array([other.transform[2] - c, other.transform[5] - f]))
    return float(y), float(x)


def _arranged(facts: Sequence[_Facts], corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corners (n, 2) with those parts a turn of the globe further east that make the mosaic narrowest so.

    Where that is no whole number of pixels, parts that do not fill the width so stay where they say that they are.
    """
    first = facts[0]
    length = None if first.crs is None else turn(first.crs)
    if length is None or first.transform is None or first.transform[1] or first.transform[3]:
        return corners
    columns, pixels = corners[:, 1], length / abs(first.transform[0])
    widths = np.array([fact.width for fact in facts])

    def moved(begin: float) -> NDArray[np.float64]:
        return columns + pixels * (columns < begin)

    def width(begin: float) -> float:
        return float(np.round((moved(begin) + widths).max() - moved(begin).min()))

    # Those that have no part to their left first: where nothing is gained, parts stay in their own turn.
    begin = min(np.unique(columns).tolist(), key=width)
    arranged = np.stack([corners[:, 0], moved(begin)], axis=1)
    return arranged if _off_grid(arranged).max() <= _OFF_PIXEL or width(begin) <= widths.sum() + 1 else corners


def _off_grid(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how many pixels each part lies off the first one's grid."""
    away = corners - corners[0]
    return np.abs(away - np.rint(away)).max(axis=1)  # type: ignore[no-any-return]


def _on_grid(path: Path, facts: Sequence[_Facts], corners: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return the corners in whole pixels; raises `ImageFormatError` where a part lies off the first one's grid."""
    if (off := _off_grid(corners)).max() > _OFF_PIXEL:
        y, x = (corners - corners[0])[worst := int(off.argmax())]
        raise ImageFormatError(
            f"{path}: {facts[worst].uri} lies {x:.3f}, {y:.3f} pixels from {facts[0].uri}, not whole ones; "
            "resample it to one grid first"
        )
    return [(int(y), int(x)) for y, x in np.rint(corners - corners[0])]


def _close_to(one: Sequence[float], two: Sequence[float]) -> bool:
    scale = max(map(abs, one))
    return all(abs(p - q) <= 1e-6 * scale for p, q in zip(one, two, strict=True))
