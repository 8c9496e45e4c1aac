"""Sums over objects do not depend on the batch that they are in."""

from __future__ import annotations

import numpy as np
import pytest

from unetpp.finalize.outlines import Outlines


@pytest.mark.parametrize("corners", range(4, 40))
def test_an_objects_sum_is_the_same_wherever_it_stands(corners: int) -> None:
    """To the bit: last in a batch, before another, and alone."""
    rng = np.random.default_rng(corners)
    ring, other = rng.integers(0, 50, (corners, 2)), np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
    found = []
    for objects in ([[ring]], [[ring], [other]], [[other], [ring]], [[other, other], [ring], [other]]):
        outlines = Outlines.of(objects)
        values = (outlines.steps() @ np.array([0.1, 0.7])) * np.sqrt(1 + outlines.vertices[:-1, 0])
        place = next(k for k, rings in enumerate(objects) if rings[0] is ring)
        found.append(outlines.total(values)[place])
    assert len(set(found)) == 1, found
