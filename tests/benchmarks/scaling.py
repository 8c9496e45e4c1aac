"""Measures the time per epoch of one and of two training workers at equal global batch; writes scaling.json.

    make bench-train
    python tests/benchmarks/scaling.py [--rounds 3] [--steps 24] [--output FILE]

Every round is a run of `unetpp train` with the default network on drawn slides, prepared once: one thread per worker,
batch 8 of 128² px split among the workers, an epoch being the steps between two validations. The first epoch, with the
start of the workers, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / "scaling.json"
EPOCHS = 3
SETTINGS = {
    "train.batch": 8,
    "train.patch": 128,
    "train.threads": 1,
    "train.precision": "'bf16'",
    "network.filters": [32, 64, 128, 256, 512],
}
COMMAND = "import sys; from unetpp_workflows.cli import main; sys.exit(main())"


def train(output: Path, store: Path | None, workers: int, steps: int) -> list[float]:
    """Run one training; returns the seconds of its epochs after the first."""
    sets = {**SETTINGS, "train.steps": EPOCHS * steps, "train.validate_every": steps}
    command = [sys.executable, "-c", COMMAND, "train", "smoke", "--output", str(output), "--no-register"]
    command += [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    command += ["--workers", str(workers), *(["--store", str(store)] if store else [])]
    environment = {**os.environ, "UNETPP_HOME": str(output / "home"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        sys.exit(ended.stdout[-2000:] + ended.stderr[-2000:])
    history = json.loads((output / "history.json").read_text(encoding="utf-8"))
    return [epoch["seconds"] for epoch in history[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="per epoch")
    parser.add_argument("--output", type=Path, default=RESULT)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="unetpp-scaling-") as folder:
        store: Path | None = None
        for number in range(asked.rounds):
            for workers in seconds:
                output = Path(folder) / f"{number}-{workers}"
                seconds[workers] += train(output, store, workers, asked.steps)
                store = store or output / "data.zarr"
                print(f"round {number + 1}, {workers} workers: {seconds[workers][-1]:.2f} s an epoch", flush=True)
    median = {workers: statistics.median(found) for workers, found in seconds.items()}
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "command": " ".join(["make bench-train", *(["with", *sys.argv[1:]] if sys.argv[1:] else [])]),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "versions": {name: version(name) for name in ("torch", "ray")},
        "settings": {"batch": 8, "patch": 128, "steps": asked.steps, "rounds": asked.rounds},
        "seconds": {str(workers): round(value, 3) for workers, value in median.items()},
        "seconds_all": {str(workers): [round(s, 3) for s in found] for workers, found in seconds.items()},
        "speed_up": round(median[1] / median[2], 3),
    }
    asked.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE).stdout.strip()


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
