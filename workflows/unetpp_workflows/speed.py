"""Measures one package's speed and memory in a process of its own; knows nothing of images or other models.

In a process that has done other work, memory which that work has freed is used again and does not show.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unetpp.errors import EngineError

if TYPE_CHECKING:
    from unetpp.model.orientations import Tta

_TILE, _SECONDS, _PATIENCE = 512, 2.0, 600.0


def measure_speed(folder: Path, tta: Tta = "none", precision: str = "auto") -> dict[str, Any]:
    """Run the default engine of a package folder on noise for two seconds on one thread.

    Returns:
        mpx_per_second: computed megapixels per second of processor time, which other programs disturb least.
        peak_mb: memory on top of the process's for one tile; None where the system does not tell.
        engine, precision, device, tile (side in pixels).

    Raises:
        EngineError: the engine fails.
    """
    command = [sys.executable, "-m", "unetpp_workflows.speed", str(folder), tta, precision]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"{folder}: the engine took over {_PATIENCE:g} s for a few tiles; see unetpp doctor"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"{folder}: the engine's speed cannot be measured: {last}")
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def _measure(folder: Path, tta: Tta, precision: str) -> dict[str, Any]:
    from unetpp.engine.bench import bench
    from unetpp.package import load_package

    package = load_package(folder)
    network = package.load_model()
    step = network.multiple
    side = -(-max(_TILE, 2 * network.halo + step) // step) * step
    del network
    row = bench(package, tiles=[side], seconds=_SECONDS, tta=tta, precision=precision)[0]
    return {
        "mpx_per_second": round(row.cpu_mpx_s, 4),
        "peak_mb": None if row.peak_mb is None else round(row.peak_mb, 1),
        "engine": row.engine,
        "precision": row.precision,
        "device": row.device,
        "tile": row.tile,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), cast("Tta", sys.argv[2]), sys.argv[3])))
