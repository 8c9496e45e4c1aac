"""Judges the landcover recipe on every scene by a model that never saw it; writes folds.json.

    make folds                                         (two hours on two cores; each finished scene is kept)
    python tests/benchmarks/folds.py --work runs/folds --scenes t2 t4 --minutes 50

Each scene is left out once: `unetpp train landcover` on the other five, `unetpp evaluate` on it at full size. Figures
are pooled over the pixels of all six. The weights are the best of each training's validations, which are on the scene
left out too: slightly optimistic. Needs UNETPP_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from speed import provenance

from unetpp.metrics import Confusion
from unetpp_workflows.recipe import load_recipe

RESULT = Path(__file__).with_name("folds.json")
RECIPE, TARGET = "landcover", 0.70
COMMAND = "import sys; from unetpp_workflows.cli import main; sys.exit(main())"
OUT_OF_TIME = 75


def scenes(root: Path) -> list[str]:
    data = load_recipe(RECIPE).data
    assert data.images is not None and data.group_pattern is not None
    names = [Path(path).name for path in root.glob(data.images)]
    return sorted({found[1] for name in names if (found := re.match(data.group_pattern, name))})


def fold(scene: str, folder: Path, root: Path, minutes: float) -> dict[str, Any] | None:
    """Train without a scene and judge on it, as far as that is not done; None where the time is up."""
    found = folder / "report/evaluation.json"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent.absolute()}/mlflow.db"}
    steps = [
        ["train", RECIPE, "--data", str(root), "--output", str(folder), "--no-register", "--minutes", f"{minutes:.1f}",
         "--set", f"data.validation=['{scene}']"],
        ["evaluate", str(folder), "--data", str(folder / "data.zarr"), "--split", "val", "--output", str(found.parent)],
    ]  # fmt: skip
    for step in [] if found.is_file() else steps:
        ended = subprocess.run([sys.executable, "-c", COMMAND, *step], check=False, env=environment)
        if ended.returncode == OUT_OF_TIME:
            return None
        if ended.returncode:
            sys.exit(f"{scene}: unetpp {step[0]} ended with {ended.returncode}")
    evaluation = json.loads(found.read_text(encoding="utf-8"))
    training = json.loads((folder / "model.json").read_text(encoding="utf-8"))["training"]
    names = [info["name"] for info in evaluation["classes"]]
    matrix = np.array(evaluation["groups"][scene]["confusion"], np.int64)
    known = {key: training[key] for key in ("steps", "best_step", "seconds")}
    return {"scene": scene, **known, "confusion": matrix.tolist(), **figures(names, matrix)}


def figures(names: list[str], matrix: NDArray[np.int64]) -> dict[str, Any]:
    found = Confusion.from_state(matrix)
    per_class = {key: dict(zip(names, getattr(found, key).round(4).tolist(), strict=True)) for key in ("dice", "iou")}
    return {**per_class, "mean_dice": round(float(np.nanmean(found.dice)), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(os.environ.get("UNETPP_DATA") or sys.exit("set UNETPP_DATA to the folder with dubai/"))
    known = scenes(root)
    parser.add_argument("--scenes", nargs="+", choices=known, default=known)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop behind a checkpoint after so long")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "unetpp-folds")
    asked = parser.parse_args()
    deadline = time.monotonic() + asked.minutes * 60
    asked.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for scene in asked.scenes:
        left = (deadline - time.monotonic()) / 60
        row = fold(scene, asked.work / scene, root, left) if left > 0 else None
        if row is not None:
            rows.append(row)
            print(scene, json.dumps(row["dice"]), row["mean_dice"], flush=True)
    if [row["scene"] for row in rows] != known:
        sys.exit(f"{len(rows)} of {len(known)} scenes are done; run the same command again")
    pooled = figures(list(rows[0]["dice"]), np.sum([row["confusion"] for row in rows], 0))
    facts = {**provenance(packages=("torch",)), "command": "make folds"}
    result = {**facts, "recipe": RECIPE, "target": TARGET, "pooled": pooled, "scenes": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"mean Dice {pooled['mean_dice']:.3f} over all scenes (target {TARGET})")


if __name__ == "__main__":
    main()
