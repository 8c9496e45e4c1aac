"""Sums beside numpy over everything, in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unetpp_workflows.prepare.statistics import Statistics, Sums


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32"])
def test_mean_and_deviation_are_numpys_in_any_order(dtype: str) -> None:
    random = np.random.default_rng(0)
    centre, spread = {"uint8": (100, 30), "int16": (-300, 90), "uint16": (5e4, 5e3), "uint32": (4e9, 1e6)}.get(
        dtype, (1e5, 1)
    )
    patches = [(random.normal(centre, spread, (40, 40, 2)).astype(dtype), random.random((40, 40)) < p) for p in
               (0.0, 0.2, 0.5, 1.0)]  # fmt: skip

    def result(order: list[int]) -> Any:
        statistics = Statistics(2, whole=dtype != "float32")
        for index in order:
            statistics.add(Sums.of(*patches[index]))
        return statistics.result()

    found = result([0, 1, 2, 3])
    assert found == result([3, 1, 0, 2])
    everything = np.concatenate([pixels[valid] for pixels, valid in patches]).astype(np.longdouble)
    assert np.allclose(found[0], everything.mean(0).astype(float), rtol=1e-14)
    assert np.allclose(found[1], everything.std(0).astype(float), rtol=1e-9)


def test_a_constant_band_can_be_divided_by() -> None:
    statistics = Statistics(1, whole=True)
    statistics.add(Sums.of(np.full((4, 4, 1), 9, np.uint8), np.ones((4, 4), bool)))
    assert statistics.result() == ((9.0,), (1.0,))
    assert Statistics(1, whole=True).result() == ((0.0,), (1.0,))
