"""Outlines of one block against a walk from edge to edge in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from unetpp.finalize.outlines import Walks
from unetpp.finalize.rings import polygons
from unetpp.finalize.trace import trace_block

STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # east, south, west, north as (y, x)
ENDS = ((0, 1), (1, 1), (1, 0), (0, 0))  # the lattice point at which the edge of a pixel ends
Edge = tuple[int, int, int]


class Block:
    """A block whose margin is known, pixel by pixel; (0, 0) is its first pixel inside."""

    def __init__(self, labels: np.ndarray, keep: np.ndarray) -> None:
        self.labels, self.keep = labels, keep
        self.height, self.width = labels.shape[0] - 2, labels.shape[1] - 2

    def inside(self, y: int, x: int) -> bool:
        return 0 <= y < self.height and 0 <= x < self.width

    def at(self, y: int, x: int) -> int:
        value = int(self.labels[y + 1, x + 1])
        return value if self.keep[value] else -1

    def edges(self) -> list[Edge]:
        return [
            (y, x, d)
            for y in range(self.height)
            for x in range(self.width)
            for d in range(4)
            if self.at(y, x) >= 0 and self.at(y + STEPS[d - 1][0], x + STEPS[d - 1][1]) != self.at(y, x)
        ]

    def follower(self, edge: Edge) -> Edge | None:
        """Return the edge that comes next, None where it is outside."""
        y, x, d = edge
        (dy, dx), (oy, ox) = STEPS[d], STEPS[d - 1]
        if self.at(y + dy, x + dx) != self.at(y, x):
            return y, x, (d + 1) % 4
        if self.at(y + dy + oy, x + dx + ox) != self.at(y, x):
            y, x = y + dy, x + dx
        else:
            y, x, d = y + dy + oy, x + dx + ox, (d - 1) % 4
        return (y, x, d) if self.inside(y, x) else None

    def walks(self) -> list[tuple[bool, tuple[int, int], list[tuple[int, int]]]]:
        """Return of each walk if it is closed, a pixel of it and its vertices (x, y): open ones first."""
        follower = {edge: self.follower(edge) for edge in self.edges()}
        entered = follower.keys() - {edge for edge in follower.values() if edge is not None}
        found, seen = [], set()
        for closed, begins in ((False, sorted(entered)), (True, sorted(e for e in follower if e[2] == 0))):
            for begin in begins:
                if begin in seen:
                    continue
                vertices, edge = [], begin
                if not closed:
                    y, x, d = begin
                    vertices.append((x + ENDS[d - 1][1], y + ENDS[d - 1][0]))
                while edge is not None and edge not in seen:
                    seen.add(edge)
                    y, x, d = edge
                    edge = follower[edge]
                    if edge is None or edge[2] != d:
                        vertices.append((x + ENDS[d][1], y + ENDS[d][0]))
                found.append((closed, begin[:2], vertices))
        return found

    def pieces(self) -> np.ndarray:
        """Return (h, w) the first pixel of each pixel's piece, as y * w + x."""
        found = np.full((self.height, self.width), -1)
        inner = self.labels[1:-1, 1:-1]
        for value in np.flatnonzero(self.keep):
            numbers, count = ndimage.label(inner == value)
            for number in range(1, count + 1):
                found[numbers == number] = np.flatnonzero(numbers == number)[0]
        return found


def check(labels: np.ndarray, keep: np.ndarray) -> None:
    """Compare walks and borders of what goes on outside; of what ends inside, which points rings visit, and areas."""
    block, traced = Block(labels, keep), trace_block(labels, keep)
    piece = block.pieces()
    pixels = dict(zip(*np.unique(piece[piece >= 0], return_counts=True), strict=True))
    of = {
        found: [int(y) * block.width + int(x) for y, x in found_pieces.first]
        for found, found_pieces in (("whole", traced.whole), ("part", traced.part))
    }
    assert sorted(of["whole"] + of["part"]) == sorted(pixels)
    for name, pieces in (("whole", traced.whole), ("part", traced.part)):
        assert of[name] == sorted(of[name])
        assert pieces.pixels.tolist() == [pixels[first] for first in of[name]]
        assert pieces.labels.tolist() == [block.at(y, x) for y, x in pieces.first.tolist()]
    around = {
        int(piece[y, x])
        for y, x in np.argwhere(piece >= 0)
        for dy, dx in STEPS
        if not block.inside(y + dy, x + dx) and block.at(y + dy, x + dx) == block.at(y, x)
    }
    assert set(of["part"]) == around
    expected = [(int(piece[at]), closed, vertices) for closed, at, vertices in block.walks()]
    part = sorted((walk for walk in expected if walk[0] in around), key=lambda walk: walk[0])
    walks = traced.walks
    bounds = walks.starts.tolist()
    assert part == [
        (of["part"][owner], closed, [tuple(point) for point in walks.vertices[begin:end].tolist()])
        for owner, closed, begin, end in zip(
            walks.owner.tolist(), walks.closed.tolist(), bounds, bounds[1:], strict=False
        )
    ]
    for border, line in zip(traced.borders, (piece[0], piece[-1], piece[:, 0], piece[:, -1]), strict=True):
        assert border.tolist() == [of["part"].index(one) + 1 if one in around else 0 for one in line.tolist()]
    # `polygons` is told nothing here: it has every vertex looked at.
    whole = [walk for walk in expected if walk[0] not in around]
    vertices = np.array([point for *_, points in whole for point in points], np.int64).reshape(-1, 2)
    starts = np.concatenate([[0], np.cumsum([len(points) for *_, points in whole])]).astype(np.int64)
    owner = np.array([of["whole"].index(first) for first, *_ in whole], np.int64)
    outlines, _ = polygons(Walks(vertices, starts, owner, np.ones(len(owner), np.bool_)), len(of["whole"]))
    for name in ("vertices", "starts", "owner"):
        np.testing.assert_array_equal(getattr(traced.outlines, name), getattr(outlines, name))
    for begin, end in zip(traced.outlines.starts[:-1], traced.outlines.starts[1:], strict=True):
        ring = [tuple(point) for point in traced.outlines.vertices[begin:end].tolist()]
        assert ring[0] == ring[-1] and len(set(ring)) == len(ring) - 1


CLASSES = np.array([0, 1, 2, 255], np.uint8)
KEEPS = {"one": np.arange(256) == 1, "the first": np.arange(256) == 0, "all": np.arange(256) < 255}


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("seed", range(12))
def test_noise(seed: int, keep: str) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, tuple(rng.integers(3, 24, 2)), p=rng.dirichlet([1, 2, 0.5, 0.2]))
    check(labels, KEEPS[keep])
    check(np.ascontiguousarray(labels.repeat(3, axis=1)), KEEPS[keep])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (7, 6)])
@pytest.mark.parametrize("margin", [0, 1])
@pytest.mark.parametrize("period", [1, 2, 3])
def test_small_blocks_and_checkerboards_with_and_without_neighbours(
    shape: tuple[int, int], margin: int, period: int
) -> None:
    board = (np.indices(shape).sum(axis=0) % period == 0).astype(np.uint8)
    check(np.pad(board, 1, constant_values=margin), KEEPS["one"])
    wide = np.pad(np.indices((shape[0] + 2, shape[1] + 2)).sum(axis=0).astype(np.uint8) % max(period, 2), 3)
    check(wide[3:-3, 3:-3], KEEPS["all"])  # a view, with margins that go on as the block does


@pytest.mark.parametrize("turned", range(4))
def test_more_edges_on_one_side_than_on_the_others(turned: int) -> None:
    """The memory for corners is not guessed from the tops, of which a wedge that hangs down has one for all steps."""
    wedge = np.zeros((4, 7), np.uint8)
    for y in range(3):
        wedge[y, y : 6 - y] = 1
    check(np.ascontiguousarray(np.rot90(np.pad(np.tile(wedge, (2, 2)), 1), turned)), KEEPS["one"])
    many = trace_block(np.ascontiguousarray(np.rot90(np.pad(np.tile(wedge, (200, 100)), 1), turned)), KEEPS["one"])
    assert many.whole.pixels.tolist() == [12] * 20000
    assert (np.diff(many.outlines.starts) == 13).all()


def test_rings_within_rings_that_touch_at_corners() -> None:
    y, x = np.indices((27, 27)) - 13
    diamonds = ((abs(y) + abs(x)) % 4 < 2).astype(np.uint8)
    check(np.pad(diamonds, 1), KEEPS["one"])
    check(np.pad(1 - diamonds, 1), KEEPS["all"])
