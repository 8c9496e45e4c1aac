"""Measures what an engine computes and writes per second at several tile sizes; every figure is a measurement."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.engine import Engine, choose_engine
from unetpp.engine.work import leaves_margins_out, useful_share
from unetpp.errors import EngineError
from unetpp.geometry import Box
from unetpp.model.margins import NO_MARGINS, Margins
from unetpp.model.orientations import Tta
from unetpp.package import Package

CORES = (256, 512, 1024, 1536)


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One interior tile size, run by `workers` threads at once for about the asked time.

    Attributes:
        tile: side of the square that the network computes, in pixels.
        core: side of the part that is written.
        useful_share: multiply-adds that serve written pixels / all of them; of a whole tile, written / computed pixels.
        computed_mpx_s, written_mpx_s: million pixels per second over all workers, in wall-clock time.
            Computed are all pixels of the tile, though deeper levels alone may see its margins.
        cpu_mpx_s: million computed pixels per second of processor time, which other programs on the machine disturb
            less.
        tiles: network calls that finished.
        peak_mb: most resident memory during the row above that before it, over all workers; None where the system
            does not tell.
    """

    tile: int
    core: int
    useful_share: float
    computed_mpx_s: float
    written_mpx_s: float
    cpu_mpx_s: float
    tiles: int
    peak_mb: float | None
    engine: str
    precision: str
    device: str
    workers: int
    threads: int
    whole: bool = False


def bench(
    package: Package,
    *,
    engine: str = "auto",
    precision: str = "auto",
    tiles: Sequence[int] | None = None,
    workers: int = 1,
    threads: int = 1,
    tta: Tta = "none",
    seconds: float = 5.0,
    whole: bool = False,
) -> list[BenchRow]:
    """Run the engine on noise at each tile side and return one row per side.

    Args:
        package: the model.
        engine, precision, threads, tta: as for `choose_engine`.
        tiles: sides in pixels, halo included, multiples of the network's; by default cores of 256, 512, 1024 and
            1536 px plus the halo.
        workers: threads that call the engine at once, as the local executor does.
        seconds: time per row, after each worker's first call; each worker finishes at least one more.
        whole: compute every level over the whole tile, instead of with no more halo than it needs.

    Raises:
        EngineError: a tile side that leaves no core, or an engine that is not available.
    """
    model = package.load_model()
    halo, multiple = model.halo, model.multiple
    sides = [core + 2 * halo for core in CORES] if tiles is None else list(tiles)
    for side in sides:
        if side <= 2 * halo or side % multiple:
            raise EngineError(f"tile {side}: give a multiple of {multiple} above twice the halo, {2 * halo}")
    rows = []
    for side in sides:
        runner = choose_engine(package, name=engine, precision=precision, threads=threads, tta=tta)
        rows.append(_measure(runner, package, side, halo, workers, seconds, whole=whole))
    return rows


def best_row(rows: Sequence[BenchRow], memory_mb: float | None = None) -> BenchRow:
    """Return the row that writes most among those whose peak fits `memory_mb`; the smallest tile when none fits."""
    fitting = [r for r in rows if memory_mb is None or r.peak_mb is None or r.peak_mb <= memory_mb]
    return max(fitting, key=lambda r: r.written_mpx_s) if fitting else min(rows, key=lambda r: r.tile)


@dataclass(slots=True)
class _Share:
    """What one worker did between its first call and the end."""

    calls: int = 0
    written: int = 0
    seconds: float = 0.0


def _measure(
    engine: Engine, package: Package, side: int, halo: int, workers: int, seconds: float, *, whole: bool
) -> BenchRow:
    pixels = _noise(package, side)
    before = _reset_peak()
    margins = NO_MARGINS if whole or not leaves_margins_out(engine.name) else (halo, halo, halo, halo)
    shares, processor = _run(engine, pixels, halo, margins, workers, seconds)
    peak = _peak_mb()
    computed = sum(s.calls * side * side / s.seconds for s in shares)
    calls = sum(s.calls for s in shares)
    core = side - 2 * halo
    return BenchRow(
        tile=side,
        core=core,
        useful_share=useful_share(engine.name, package.spec, (side, side), margins)
        if any(margins)
        else core * core / (side * side),
        computed_mpx_s=computed / 1e6,
        written_mpx_s=sum(s.written / s.seconds for s in shares) / 1e6,
        cpu_mpx_s=calls * side * side / processor / 1e6,
        tiles=calls,
        peak_mb=None if before is None or peak is None else peak - before,
        engine=engine.name,
        precision=engine.precision,
        device=engine.device,
        workers=workers,
        threads=engine.threads,
        whole=not any(margins),
    )


def _noise(package: Package, side: int) -> NDArray[Any]:
    spec = package.spec
    noise = np.random.default_rng(0).normal(spec.mean, spec.std, (side, side, len(spec.bands)))
    return np.clip(noise, 0, 255 if spec.dtype == "uint8" else 65_535).astype(spec.dtype)


def _run(
    engine: Engine, pixels: NDArray[Any], halo: int, margins: Margins, workers: int, seconds: float
) -> tuple[list[_Share], float]:
    """Call the engine from `workers` threads; return their shares and the processor time in seconds."""
    side = pixels.shape[0]
    everything = (slice(None), slice(None))
    core = everything if any(margins) else Box(halo, halo, side - halo, side - halo).slices()
    start = threading.Barrier(workers + 1)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_work, engine, pixels, margins, core, seconds, start) for _ in range(workers)]
        with contextlib.suppress(threading.BrokenBarrierError):  # a worker failed; its error is raised below
            start.wait()
        began = time.process_time()
        wait(futures)
        processor = time.process_time() - began
    errors = [e for e in (f.exception() for f in futures) if e and not isinstance(e, threading.BrokenBarrierError)]
    if errors:
        raise EngineError(f"the {engine.name} engine failed at tile {side}: {errors[0]}") from errors[0]
    return [future.result() for future in futures], processor


def _work(
    engine: Engine,
    pixels: NDArray[Any],
    margins: Margins,
    core: tuple[slice, slice],
    seconds: float,
    start: threading.Barrier,
) -> _Share:
    try:
        engine.labels(pixels, margins)  # compiles, and touches every buffer
    except BaseException:
        start.abort()
        raise
    start.wait()
    share = _Share()
    began = time.perf_counter()
    while share.calls == 0 or share.seconds < seconds:
        share.written += engine.labels(pixels, margins)[core].size
        share.calls += 1
        share.seconds = time.perf_counter() - began
    return share


def _reset_peak() -> float | None:
    """Forget the process's peak memory; return what is resident now, in MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status_mb("VmRSS")


def _peak_mb() -> float | None:
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(values[0]) * 1024 / 1e6 if values else None
