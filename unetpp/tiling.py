"""Plans the boxes of an image that are read, computed and written; knows sizes in pixels, never what pixels mean.

    write_box   tiles the image exactly once; its corners lie on multiples of `core`
    read_box    write_box + halo, the same shape for every tile of an image, corners on multiples of `multiple`

At the image's edges the read box is shifted inwards instead of shrunk. A written pixel therefore has at least `halo`
pixels of context on each side, or the read box ends where the padded image ends, and the network meets there the zero
padding that it would meet on the whole image. Both cases give the whole-image result.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import PlanError
from unetpp.geometry import Box

T = TypeVar("T", bound=np.generic)
DEFAULT_CORE = 1024
_CORES = (DEFAULT_CORE, 896, 768)
"""What "auto" chooses from. Few: an engine prepares itself for every shape of a tile, for half a second on a CPU."""
_WORTH, _LARGEST = 0.95, 1.2
"""Another core must compute less than this share of the default's pixels, in tiles so much larger at most."""
LEAST_SPARED = 3072
"""Tiles alike x halo in px. An engine takes one to three seconds to prepare itself for a kind of margins, and what it
saves in a tile grows with the halo: on a CPU in bf16 a quarter of a second of 128 px, a twentieth of 64 px. Twelve
tiles pay for a kind with 128 px; twice that is asked for."""
Margins = tuple[int, int, int, int]
"""Pixels at top, left, bottom and right of a read box that are context only."""
_MIN_SHARDS = 16
"""Shards grow only while at least this many remain: enough to spread over workers and to show progress."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One network call: pixels of `read_box` go in, labels of `write_box` come out (both in output-grid pixels).

    `read_box` may pass the image's right and bottom end by less than the plan's `multiple`; `cut` fills that part.
    """

    read_box: Box
    write_box: Box


@dataclass(frozen=True, slots=True)
class Shard:
    """One output object: a row and column of the shard grid and its part of the image."""

    row: int
    col: int
    box: Box

    @property
    def id(self) -> str:
        return f"{self.row}.{self.col}"


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Shards and tiles of one image; a pure function of these six sizes in pixels, never of the number of workers.

    Args:
        height, width: Size of the output grid.
        multiple: Side that the network's input must be a multiple of (2^depth).
        halo: Context read on each side of a write box: the network's receptive radius or more, multiple of `multiple`.
        core: Largest side of a write box, a multiple of `multiple`.
        shard: Side of a shard, a multiple of `core`.

    Raises:
        PlanError: A size that cannot tile the image exactly.
    """

    height: int
    width: int
    multiple: int
    halo: int
    core: int
    shard: int

    def __post_init__(self) -> None:
        for name in ("height", "width", "multiple", "core", "shard"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} {getattr(self, name)} is not positive; give at least 1 pixel")
        if self.halo < 0 or self.halo % self.multiple:
            raise PlanError(f"halo {self.halo} is not a multiple of {self.multiple}; use the model's own halo")
        if self.core % self.multiple:
            near = max(self.multiple, round(self.core / self.multiple) * self.multiple)
            raise PlanError(f"core {self.core} is not a multiple of {self.multiple}, the model's stride; use {near}")
        if self.shard % self.core:
            near = max(self.core, round(self.shard / self.core) * self.core)
            raise PlanError(f"shard {self.shard} is not a multiple of the tile core {self.core}; use {near}")

    @property
    def padded_height(self) -> int:
        return _round_up(self.height, self.multiple)

    @property
    def padded_width(self) -> int:
        return _round_up(self.width, self.multiple)

    @property
    def tile_shape(self) -> tuple[int, int]:
        """(height, width) of every read box of this image: where a side has two tiles, each has one neighbour."""
        return self._side(self.height, self.padded_height), self._side(self.width, self.padded_width)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(rows, columns) of the shard grid."""
        return -(-self.height // self.shard), -(-self.width // self.shard)

    @property
    def tile_count(self) -> int:
        return -(-self.height // self.core) * -(-self.width // self.core)

    @property
    def useful_share(self) -> float:
        """Written pixels / computed pixels over the whole image."""
        rows, cols = self.tile_shape
        return self.height * self.width / (self.tile_count * rows * cols)

    def shards(self) -> tuple[Shard, ...]:
        """Return all shards, row by row."""
        rows, cols = self.grid_shape
        return tuple(self._shard(row, col) for row in range(rows) for col in range(cols))

    def shard_by_id(self, shard_id: str) -> Shard:
        """Return the shard with this "row.col"; `PlanError` when the plan has none."""
        row, _, col = shard_id.partition(".")
        rows, cols = self.grid_shape
        if not (row.isdecimal() and col.isdecimal() and int(row) < rows and int(col) < cols):
            raise PlanError(f"no shard {shard_id!r} in a grid of {rows} x {cols}; ids are row.col from 0.0")
        return self._shard(int(row), int(col))

    def tiles(self, shard: Shard) -> tuple[Tile, ...]:
        """Return the tiles of one shard, row by row; their write boxes tile the shard's box exactly once."""
        box = shard.box
        return tuple(
            self._tile(y, x) for y in range(box.y0, box.y1, self.core) for x in range(box.x0, box.x1, self.core)
        )

    def margins(self, tile: Tile, *, exact: bool = False) -> Margins:
        """Return what the engine may leave out of its result: what the tile reads around its write box.

        Args:
            exact: all of it, of every tile, for engines that take any margins. Else whole halos: 0 where it is less
                than one, because there the image ends, and 2 at most, which a tile has on the other side; and 0 on all
                sides where too few tiles of the plan have the same, see `LEAST_SPARED`.
        """
        (height, width), write = self.tile_shape, tile.write_box
        down, across = self._half(write.y0, 0, height, exact), self._half(write.x0, 1, width, exact)
        if not exact:
            alike = self._halves(0, exact).count(down) * self._halves(1, exact).count(across)
            if alike * self.halo < LEAST_SPARED:
                return 0, 0, 0, 0
        return down[0], across[0], down[1], across[1]

    def margin_kinds(self, *, exact: bool = False) -> dict[Margins, int]:
        """Return how many tiles have which margins."""
        rows, columns = Counter(self._halves(0, exact)), Counter(self._halves(1, exact))
        kinds: Counter[Margins] = Counter()
        for (top, bottom), down in rows.items():
            for (left, right), across in columns.items():
                worth = exact or down * across * self.halo >= LEAST_SPARED
                kinds[(top, left, bottom, right) if worth else (0, 0, 0, 0)] += down * across
        return dict(kinds)

    def _side(self, size: int, padded: int) -> int:
        return min(self.core + self.halo * (1 if size <= 2 * self.core else 2), padded)

    def _halves(self, axis: int, exact: bool) -> list[tuple[int, int]]:
        """Return the margins (before, after) of every tile along one axis."""
        side, size = self.tile_shape[axis], (self.height, self.width)[axis]
        return [self._half(write, axis, side, exact) for write in range(0, size, self.core)]

    def _half(self, write: int, axis: int, side: int, exact: bool) -> tuple[int, int]:
        """Return the margins (before, after) along one axis of a tile whose write box begins at `write`."""
        read = self._first_read(write, axis)
        end = min(write + self.core, (self.height, self.width)[axis])
        before, after = write - read, read + side - end
        return (before, after) if exact else (self._margin(before), self._margin(after))

    def _margin(self, context: int) -> int:
        """Return 0, 1 or 2 halos: of more kinds every image of an archive would have its own."""
        return min(2, context // max(1, self.halo)) * self.halo

    def shard_read_box(self, shard: Shard) -> Box:
        """Return the smallest box that holds the read boxes of all the shard's tiles."""
        tiles = self.tiles(shard)
        first, last = tiles[0].read_box, tiles[-1].read_box
        return Box(first.y0, first.x0, last.y1, last.x1)

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TilePlan:
        return cls(**values)

    def _shard(self, row: int, col: int) -> Shard:
        y, x = row * self.shard, col * self.shard
        return Shard(row, col, Box(y, x, min(y + self.shard, self.height), min(x + self.shard, self.width)))

    def _tile(self, y: int, x: int) -> Tile:
        rows, cols = self.tile_shape
        y_read, x_read = self._first_read(y, 0), self._first_read(x, 1)
        write = Box(y, x, y + self.core, x + self.core).clip(self.height, self.width)
        return Tile(Box(y_read, x_read, y_read + rows, x_read + cols), write)

    def _first_read(self, write: int, axis: int) -> int:
        """Return where the read box begins of a tile whose write box begins at `write`."""
        padded = (self.padded_height, self.padded_width)[axis]
        return max(0, min(write - self.halo, padded - self.tile_shape[axis]))


def make_plan(
    height: int,
    width: int,
    *,
    halo: int,
    multiple: int,
    core: int | Literal["auto"] = "auto",
    shard: int | Literal["auto"] = "auto",
    small: bool = False,
) -> TilePlan:
    """Return the plan for an image of this size and a model's `halo` and `multiple` (all in pixels).

    core "auto" takes the core with which fewest pixels are computed, see `best_core`; shard "auto" the largest of 4, 2
    and 1 cores per side that leaves at least 16 shards, else one core.

    Args:
        small: the engine holds half as many bytes for a tile as others: of a large image "auto" takes twice the core.
    """
    sides: tuple[int, ...] = (4, 2)
    if core == "auto":
        core = best_core(height, width, halo=halo, multiple=multiple, shard=shard)
        twice = TilePlan(height, width, multiple, halo, 2 * core, 2 * core)
        if small and (core, shard) == (DEFAULT_CORE, "auto") and math.prod(twice.grid_shape) >= _MIN_SHARDS:
            core, sides = twice.core, (2,)
    if shard != "auto":
        return TilePlan(height, width, multiple, halo, core, shard)
    for cores in sides:
        plan = TilePlan(height, width, multiple, halo, core, cores * core)
        rows, cols = plan.grid_shape
        if rows * cols >= _MIN_SHARDS:
            return plan
    return TilePlan(height, width, multiple, halo, core, core)


def best_core(height: int, width: int, *, halo: int, multiple: int, shard: int | Literal["auto"] = "auto") -> int:
    """Return the core (px) with which an image of this size is computed in fewest pixels.

    Tiles of 1024 are best for large images. Of an image of 1500 px they leave a second row and column that write half
    and compute all; tiles of 768 compute 40% fewer pixels. Where there is no third row, tiles spare one halo, and two
    rows reach a halo further in tiles of the same size. And an image that is a little larger than the core, in one
    direction or both, is one tile there: two would each be as large as the image.

    Args:
        shard: where it is given, only cores that divide it.
    """
    default = DEFAULT_CORE + 2 * halo
    whole = (side for side in (_round_up(size, multiple) for size in (height, width)) if side <= default)
    cores = [core for core in (*_CORES, DEFAULT_CORE + halo, *whole) if core % multiple == 0]
    if shard != "auto":
        cores = [core for core in cores if shard % core == 0]
    plans = {core: TilePlan(height, width, multiple, halo, core, core) for core in cores}
    largest = _LARGEST * default**2
    shares = {core: plan.useful_share for core, plan in plans.items() if math.prod(plan.tile_shape) <= largest}
    if not shares:
        return DEFAULT_CORE
    best = max(shares, key=lambda core: shares[core])
    return best if shares.get(DEFAULT_CORE, 0.0) < _WORTH * shares[best] else DEFAULT_CORE


def cut(window: NDArray[T], origin: Box, box: Box, height: int, width: int) -> NDArray[T]:
    """Return the pixels of `box`; beyond the image's end its last row and column repeat (the model's padding rule).

    Args:
        window: (h, w, ...) pixels whose first pixel lies at `origin`'s corner; may end at the image's end.
        origin: Box of `window` in the image.
        box: Box to return; inside `origin`, and starting inside the image.
        height, width: Size of the image.
    """
    inside = box.clip(height, width)
    pixels = window[inside.slices(origin)]
    assert pixels.shape[:2] == inside.shape, f"{inside} is not inside the window {origin}"
    missing = ((0, box.y1 - inside.y1), (0, box.x1 - inside.x1), *[(0, 0)] * (window.ndim - 2))
    return np.pad(pixels, missing, mode="edge") if any(after for _, after in missing) else pixels


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
