"""The bench counts what was run; nothing here judges speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.engines import NATIVE
from unetpp.engine.bench import bench, best_row
from unetpp.errors import EngineError
from unetpp.package import Package


@pytest.fixture(scope="module")
def package(make_package: Callable[..., Package]) -> Package:
    return make_package()


@pytest.mark.parametrize(("engine", "workers"), [("openvino", 2), ("torch", 1), *((engine, 2) for engine in NATIVE)])
def test_rows_count_computed_and_written_pixels(package: Package, engine: str, workers: int) -> None:
    options: dict[str, Any] = {"engine": engine, "precision": "fp32", "workers": workers, "seconds": 0.01}
    small, large = bench(package, tiles=[64, 120], whole=True, **options)
    assert (small.tile, small.core, large.tile, large.core) == (64, 8, 120, 64)
    assert small.useful_share == 64 / 4096
    (cut,) = bench(package, tiles=[120], **options)
    assert cut.whole == (engine == "torch") and (cut.useful_share > large.useful_share) == (engine != "torch")
    assert cut.written_mpx_s == pytest.approx(cut.computed_mpx_s * large.useful_share)
    for row in (small, large):
        assert row.written_mpx_s == pytest.approx(row.computed_mpx_s * row.useful_share)
        assert row.tiles >= workers and row.cpu_mpx_s > 0
        assert (row.engine, row.precision, row.workers, row.threads) == (engine, "fp32", workers, 1)


def test_best_row_is_the_most_written_that_fits(package: Package) -> None:
    (row,) = bench(package, engine="torch", precision="fp32", tiles=[64], seconds=0.0)
    small = replace(row, tile=512, written_mpx_s=1.0, peak_mb=100.0)
    large = replace(row, tile=1024, written_mpx_s=2.0, peak_mb=900.0)
    assert best_row([small, large]) == large
    assert best_row([small, large], memory_mb=500.0) == small
    assert best_row([small, large], memory_mb=50.0) == small


@pytest.mark.parametrize("side", [56, 62, 0])
def test_sides_without_a_core_are_refused(package: Package, side: int) -> None:
    with pytest.raises(EngineError, match="above twice the halo, 56"):
        bench(package, tiles=[side])


def test_an_engine_that_fails_is_named(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, *_: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr("unetpp.engine.torch.TorchEngine.labels", fail)
    with pytest.raises(EngineError, match="the torch engine failed at tile 64: no memory"):
        bench(package, engine="torch", precision="fp32", tiles=[64], workers=2, seconds=0.0)
