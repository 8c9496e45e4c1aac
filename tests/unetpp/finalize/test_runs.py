"""Pieces found by runs against SciPy's labelling and a look at every single pixel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from unetpp.finalize.runs import joined


def labelled(marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the piece of each pixel inside, -1 where none, and the first pixels: in raster order of these."""
    inside = marked[1:-1, 1:-1]
    found = np.zeros(inside.shape, np.int64)
    for value in np.unique(inside[inside > 0]):
        numbers, _ = ndimage.label(inside == value)
        found = np.where(numbers > 0, numbers + found.max(), found)
    values, first = np.unique(found, return_index=True)
    values, first = values[values > 0], first[values > 0]
    order = np.argsort(first)
    renumbered = np.full(found.max() + 1, -1)
    renumbered[values[order]] = np.arange(len(order))
    return renumbered[found], first[order]


def tops(marked: np.ndarray) -> list[int]:
    """Return the pixels that differ from the upper one where the left one is of another class or does not."""
    found = []
    height, width = marked.shape
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            value, begins = marked[y, x], x == 1 or marked[y, x - 1] != marked[y, x]
            after = not begins and y > 1 and marked[y - 1, x - 1] == value
            if value and marked[y - 1, x] != value and (begins or after):
                found.append(y * width + x)
    return found


def check(marked: np.ndarray) -> None:
    found = joined(marked)
    piece, first = labelled(marked)
    np.testing.assert_array_equal(found.first, first)
    np.testing.assert_array_equal(found.pixels, np.bincount(piece[piece >= 0], minlength=len(first)))
    for border, expected in zip(found.borders, (piece[0], piece[-1], piece[:, 0], piece[:, -1]), strict=True):
        np.testing.assert_array_equal(border, expected)
    around = np.pad(piece, 1, constant_values=-1)
    crossing = {
        int(around[y, x])
        for y, x in np.argwhere(around >= 0)
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
        if around[y + dy, x + dx] < 0 and marked[y + dy, x + dx] == marked[y, x]
    }
    assert set(np.flatnonzero(found.crossing).tolist()) == crossing
    assert found.tops.tolist() == tops(marked)
    np.testing.assert_array_equal(found.top_piece, around.reshape(-1)[np.array(tops(marked), int)])
    inside = marked[1:-1, 1:-1]
    begins = (inside > 0) & (np.diff(inside.astype(int), axis=1, prepend=-1) != 0)
    assert found.runs == begins.sum()


@pytest.mark.parametrize("width", [1, 2, 3, 8, 9, 63, 64, 65, 66, 128, 129, 130, 200])
@pytest.mark.parametrize("stretch", [1, 3, 30])
def test_noise_in_words_of_every_fill(width: int, stretch: int) -> None:
    rng = np.random.default_rng(width)
    for height, values in ((1, 2), (2, 2), (17, 2), (17, 3), (9, 256)):
        noise = rng.integers(0, values, (height + 2, width + 2)).astype(np.uint8)
        check(np.ascontiguousarray(noise.repeat(stretch, axis=1)[:, : width + 2]))


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_every_density(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 70, 2))
    check(rng.choice(np.array([0, 1, 2, 255], np.uint8), shape, p=rng.dirichlet([1, 1, 0.3, 0.3])))


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("margin", [0, 1])
def test_empty_and_full_blocks(value: int, margin: int) -> None:
    check(np.pad(np.full((5, 130), value, np.uint8), 1, constant_values=margin))


def test_pieces_that_begin_the_higher_the_further_right_are_joined_from_left_to_right() -> None:
    marked = np.zeros((44, 84), np.uint8)
    for tooth in range(40):
        marked[41 - tooth : 42, 2 + 2 * tooth] = 1  # each has a smaller number than the one to its left
    marked[42, 2:82] = 1
    check(marked)
    check(np.ascontiguousarray(marked[:, ::-1]))


@pytest.mark.parametrize("seed", range(3))
def test_noise_in_which_pieces_meet_late_and_often(seed: int) -> None:
    check((np.random.default_rng(seed).random((300, 300)) < 0.6).astype(np.uint8))


def test_pieces_that_were_joined_one_by_one_in_a_row_are_joined_in_the_next() -> None:
    """Of each comb, the piece to the left knows the first one only through all the others."""
    comb, teeth = np.zeros((26, 86), np.uint8), 20
    for tooth in range(teeth):
        comb[21 - tooth : 22, 1 + 4 * tooth : 4 + 4 * tooth] = 1
        comb[22, 3 + 4 * tooth : 6 + 4 * tooth] = 1
    for joint in range(3, 80, 4):
        marked = np.concatenate([comb, comb], axis=1)
        marked[23, joint : 86 + joint] = 1
        check(marked)
