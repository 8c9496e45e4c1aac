"""Measures engines against plain PyTorch, and whole segmentation against its engine, in one run; writes speed.json.

    python tests/benchmarks/speed.py [--side 6144] [--seconds 6]

Prints ratios and medians. Run it on a quiet machine; the load is recorded beside every figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from typed import typed

from unetpp.engine.bench import BenchRow, bench
from unetpp.native.support import WHOLE, why_no_cpu
from unetpp.package import Package, bundled_package, load_package
from unetpp.processor import cpu_flags, cpu_has_bf16
from unetpp_workflows.machine import cpu_name

ROUNDS = 3
MEMORY_MB = 4096
RESULT = Path(__file__).with_name("speed.json")


def engines(package: Package, workers: int, seconds: float) -> list[dict[str, Any]]:
    """Every engine and precision at every tile, rounds interleaved; medians over the rounds."""
    kinds = [("native", name) for name in WHOLE if why_no_cpu(name) is None]
    numbers = ("bf16", "fp32") if cpu_has_bf16() else ("fp32",)
    kinds += [(engine, name) for engine in ("native", "openvino", "torch") for name in numbers]
    tiles = [512, 768, 1024, 1280, 1536]
    found: dict[tuple[str, str, int], list[BenchRow]] = {}
    for _ in range(ROUNDS):
        for engine, precision in kinds:
            # The baselines are slow; one tile size is enough to compare with.
            sides = [768] if engine == "torch" else tiles
            for row in bench(
                package, engine=engine, precision=precision, tiles=sides, workers=workers, seconds=seconds
            ):
                found.setdefault((engine, precision, row.tile), []).append(row)
    return [_median(rows) for rows in found.values()]


def _median(rows: list[BenchRow]) -> dict[str, Any]:
    figures = ("computed_mpx_s", "written_mpx_s", "cpu_mpx_s")
    spread = {f"{name}_all": [round(getattr(r, name), 3) for r in rows] for name in figures}
    medians = {name: round(statistics.median(getattr(r, name) for r in rows), 3) for name in figures}
    peaks = [r.peak_mb for r in rows if r.peak_mb is not None]
    return {**asdict(rows[0]), **medians, **spread, "peak_mb": round(max(peaks)) if peaks else None}


def segmentation(side: int, workers: int) -> dict[str, Any]:
    """The shard phase of `unetpp segment` on a drawn slide without a tissue mask: written pixels per second."""
    from unetpp.drawing import draw_slide
    from unetpp.job import pending
    from unetpp.segment import prepare_job
    from unetpp_workflows.executors.local import run_local

    with tempfile.TemporaryDirectory(prefix="unetpp-speed-") as folder:
        work = Path(folder)
        draw_slide(work / "slide.tif", work / "truth.tif", side=side, seed=0)
        seconds = []
        stages: dict[str, float] = {}
        for index in range(ROUNDS):
            job = prepare_job(work / "slide.tif", work / str(index), bundled_package("nuclei"), tissue="none")
            start = time.perf_counter()
            outcomes = run_local([job], workers=workers, on_commit=lambda _, record: _add(stages, record.seconds))
            seconds.append(time.perf_counter() - start)
            assert not outcomes[0].failed and not pending(job)
    written = side * side / 1e6
    return {
        "side": side,
        "tile": job.plan.tile_shape[0],
        "core": job.plan.core,
        "shard": job.plan.shard,
        "useful_share": round(job.plan.useful_share, 3),
        "engine": f"{job.engine.name} {job.engine.precision}",
        "workers": workers,
        "written_mpx_s": round(written / statistics.median(seconds), 3),
        "written_mpx_s_all": [round(written / s, 3) for s in seconds],
        "stage_seconds": {name: round(value / ROUNDS, 1) for name, value in stages.items()},
    }


def _add(total: dict[str, float], seconds: Any) -> None:
    for name, value in seconds.items():
        total[name] = total.get(name, 0.0) + value


def provenance(
    script: str = "tests/benchmarks/speed.py",
    packages: Sequence[str] = ("torch", "llvmlite", "openvino", "numpy", "zarr"),
) -> dict[str, Any]:
    """Return what a figure needs beside it: date, commit, command, processor, load and versions."""
    from importlib.metadata import version

    flags = cpu_flags()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=RESULT.parent
        ).stdout.strip(),
        "command": typed(script),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "features": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags],
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in packages},
        "gpu": "not measured",
    }


def precision() -> str:
    """Return what networks are computed in on this processor."""
    return "bf16" if cpu_has_bf16() else "fp32"


def kind() -> str:
    """Return what this processor multiplies matrices with, by which its figures are kept."""
    return "amx" if "amx_bf16" in cpu_flags() else precision()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=6144)
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    facts = provenance()
    package = load_package(bundled_package("nuclei"))
    rows = engines(package, workers, arguments.seconds)
    whole = segmentation(arguments.side, workers)
    best = max(
        (r for r in rows if f"{r['engine']} {r['precision']}" == whole["engine"] and (r["peak_mb"] or 0) <= MEMORY_MB),
        key=lambda r: r["written_mpx_s"],
    )  # fmt: skip
    whole["share_of_best_tile"] = round(whole["written_mpx_s"] / best["written_mpx_s"], 3)
    whole["best_tile"] = best["tile"]
    result = {**facts, "memory_limit_mb": MEMORY_MB, "engines": rows, "segment": whole}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for r in rows:
        print(f"{r['engine']:9}{r['precision']:5} tile {r['tile']:5} computed {r['computed_mpx_s']:6.2f} Mpx/s "
              f"written {r['written_mpx_s']:6.2f} Mpx/s peak {r['peak_mb']} MB")  # fmt: skip
    print(f"segment writes {whole['written_mpx_s']} Mpx/s: {whole['share_of_best_tile']:.0%} of the best tile's "
          f"{best['written_mpx_s']} ({best['tile']} px)")  # fmt: skip


if __name__ == "__main__":
    main()
