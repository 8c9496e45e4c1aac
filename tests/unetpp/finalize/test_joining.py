"""Walks that blocks cut into pieces against the rings that they were cut from."""

from __future__ import annotations

import numpy as np
import pytest

from unetpp.finalize.joining import linked
from unetpp.finalize.outlines import Walks


def ring(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return points of a staircase and of the way back; only the points and their order matter here."""
    return rng.permutation(10**4)[: 2 * count].reshape(count, 2).astype(np.int64)


def cut(points: np.ndarray, at: list[int]) -> list[np.ndarray]:
    """Return the open walks from one place to the next, both included, right round."""
    return [
        np.take(points, np.arange(begin, end + 1), axis=0, mode="wrap")
        for begin, end in zip(at, [*at[1:], at[0] + len(points)], strict=True)
    ]


def gather(pieces: list[tuple[int, bool, np.ndarray]]) -> Walks:
    starts = np.concatenate(([0], np.cumsum([len(points) for _, _, points in pieces])))
    owner, closed = (np.array(column) for column in list(zip(*pieces, strict=True))[:2])
    return Walks(np.concatenate([points for _, _, points in pieces]), starts, owner, closed)


def canonical(owner: int, points: np.ndarray) -> tuple[int, bytes]:
    turn = int(np.lexsort((points[:, 0], points[:, 1]))[0])
    return owner, np.roll(points, -turn, axis=0).tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_pieces_in_any_order_make_the_rings_they_were_cut_from(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rings, pieces = [], []
    for number in range(40):
        owner, points = number % 7, ring(rng, int(rng.integers(4, 30)))
        rings.append((owner, points))
        at = sorted(rng.choice(len(points), int(rng.integers(0, 4)), replace=False).tolist())
        pieces += [(owner, False, piece) for piece in cut(points, at)] if at else [(owner, True, points)]
    found = linked(gather([pieces[k] for k in rng.permutation(len(pieces))]))
    assert found.closed.all()
    bounds = zip(found.starts[:-1], found.starts[1:], strict=True)
    ours = [canonical(int(o), found.vertices[a:b]) for o, (a, b) in zip(found.owner, bounds, strict=True)]
    assert sorted(ours) == sorted(canonical(owner, points) for owner, points in rings)


def test_two_objects_whose_walks_pass_one_point_stay_apart() -> None:
    points = np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
    pieces = [(owner, False, piece) for owner in (1, 0) for piece in cut(points + 4 * owner, [0, 2])]
    found = linked(gather(pieces))
    assert sorted(found.owner.tolist()) == [0, 1] and np.diff(found.starts).tolist() == [4, 4]


def test_an_end_without_a_beginning_is_an_error() -> None:
    points = np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
    first, second = cut(points, [0, 2])
    with pytest.raises(ValueError, match="do not meet"):
        linked(gather([(0, False, first)]))
    with pytest.raises(ValueError, match="do not meet"):
        linked(gather([(0, False, first), (1, False, second)]))
