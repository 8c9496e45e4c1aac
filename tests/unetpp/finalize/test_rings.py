"""Points that a ring visits are numbered alike exactly where they are equal, whatever their hashes."""

from __future__ import annotations

import numpy as np
import pytest

from unetpp.finalize.rings import _places


@pytest.mark.parametrize(("count", "side"), [(1, 1), (2, 1), (3, 2), (64, 4), (1000, 20), (5000, 2**31 - 1)])
@pytest.mark.parametrize("seed", range(3))
def test_equal_points_and_only_they_have_the_index_of_their_first_visit(count: int, side: int, seed: int) -> None:
    ring = np.random.default_rng(seed).integers(0, side, (count, 2))
    _, first, which = np.unique(ring, axis=0, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(_places(ring), first[which.reshape(-1)])


def test_points_of_one_column_and_of_one_row_differ() -> None:
    line = np.arange(300)
    for ring in (np.stack([line, 0 * line], 1), np.stack([0 * line, line], 1), np.stack([line << 16, line << 16], 1)):
        np.testing.assert_array_equal(_places(ring), line)
