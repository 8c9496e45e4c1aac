"""The rings of a few hundred objects in flat arrays, to work numbers out for all at once; knows no file format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
_BATCH_OBJECTS, BATCH_VERTICES = 512, 2**16


@dataclass(frozen=True, slots=True)
class PixelObject:
    """One 4-connected object of one class.

    `rings` are (n, 2) int64 lattice points (x, y) in output-grid pixels, not closed: the shell first, clockwise on
    screen, then the holes, counter-clockwise; each starts at its first point in raster order, holes are in that order.
    """

    label: int
    first: tuple[int, int]
    """First pixel (y, x) in raster order."""
    pixels: int
    rings: tuple[Ints, ...]


@dataclass(frozen=True, slots=True)
class Outlines:
    """Rings of n objects, each ring closed: its first vertex comes again at its end.

    `vertices[starts[k]:starts[k + 1]]` is ring k, of object `owner[k]`; the first ring of an object is its shell.
    """

    vertices: Ints
    """(m, 2) lattice points (x, y) in output-grid pixels."""
    starts: Ints
    owner: Ints
    count: int

    @classmethod
    def of(cls, objects: Sequence[Sequence[Ints]]) -> Outlines:
        """Gather objects, each given by its rings as `PixelObject` has them."""
        rings = [ring for rings in objects for ring in rings]
        vertices = np.concatenate([part for ring in rings for part in (ring, ring[:1])])
        starts = np.concatenate(([0], np.cumsum([len(ring) + 1 for ring in rings])))
        owner = np.repeat(np.arange(len(objects)), [len(rings) for rings in objects])
        return cls(vertices, starts, owner, len(objects))

    @property
    def shells(self) -> Bools:
        """(rings,) whether the ring is a shell."""
        return np.diff(self.owner, prepend=-1) > 0

    def steps(self) -> Ints:
        """Return (m - 1, 2) differences of successive vertices, 0 between two rings."""
        steps = np.diff(self.vertices, axis=0)
        steps[self.starts[1:-1] - 1] = 0
        return steps

    def total(self, of_steps: npt.NDArray[np.float64]) -> Floats:
        """Return (n,) the sum over each object of (m - 1,) values of `steps`."""
        # The last ring gets the 0 that others have behind them: NumPy adds in another order where there are more
        # numbers, and an object's area would depend on its place in the batch.
        by_ring = np.add.reduceat(np.append(of_steps, 0.0), self.starts[:-1])
        return np.asarray(np.bincount(self.owner, weights=by_ring, minlength=self.count), np.float64)


@dataclass(frozen=True, slots=True)
class Walks:
    """Walks around objects with their pixels on the right hand; a closed one does not repeat its first vertex.

    `vertices[starts[k]:starts[k + 1]]` is walk k, of object `owner[k]`.
    """

    vertices: Ints
    """(m, 2) lattice points (x, y)."""
    starts: Ints
    owner: Ints
    closed: Bools
    """(walks,) whether the walk is a whole ring; an open one runs from its first to its last vertex."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A few hundred or thousand objects: their class values (n,), first pixels (n, 2) as (y, x), pixel counts (n,)."""

    labels: npt.NDArray[np.uint8]
    first: Ints
    pixels: Ints
    outlines: Outlines

    @classmethod
    def of(cls, objects: Sequence[PixelObject]) -> Batch:
        return cls(
            np.array([one.label for one in objects], np.uint8),
            np.array([one.first for one in objects], np.int64),
            np.array([one.pixels for one in objects], np.int64),
            Outlines.of([one.rings for one in objects]),
        )

    def objects(self) -> list[PixelObject]:
        """Return the objects one by one; their rings are views into the outlines."""
        rings: list[list[Ints]] = [[] for _ in self.labels]
        bounds = self.outlines.starts.tolist()
        for k, owner in enumerate(self.outlines.owner.tolist()):
            rings[owner].append(self.outlines.vertices[bounds[k] : bounds[k + 1] - 1])
        columns = (self.labels.tolist(), self.first.tolist(), self.pixels.tolist(), rings)
        return [PixelObject(label, (y, x), px, tuple(own)) for label, (y, x), px, own in zip(*columns, strict=True)]


def bounds_of(owner: Ints, count: int) -> Ints:
    """Return (count + 1,) where the rings or walks of each owner begin, in their order, and where the last end."""
    return np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=count))))


def batches(objects: Iterable[PixelObject]) -> Iterator[Batch]:
    """Group objects in their order; a batch ends with the object that fills it."""
    batch: list[PixelObject] = []
    vertices = 0
    for found in objects:
        batch.append(found)
        vertices += sum(map(len, found.rings))
        if len(batch) >= _BATCH_OBJECTS or vertices >= BATCH_VERTICES:
            yield Batch.of(batch)
            batch, vertices = [], 0
    if batch:
        yield Batch.of(batch)
