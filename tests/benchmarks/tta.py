"""Measures what the mean over orientations gains and costs: bundled models on their validation images; writes tta.json.

    make tta-bench                                     (needs UNETPP_DATA; ten minutes on two cores)

Images are predicted whole, at full size, by the engine and precision that `unetpp segment` takes on this machine.
Counts are pooled over the pixels of all images. Speed is that of a tile as archives have them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from speed import provenance

from unetpp.engine import choose_engine
from unetpp.engine.bench import bench
from unetpp.geometry import Box
from unetpp.metrics import Confusion
from unetpp.model.orientations import Tta
from unetpp.package import Package, bundled_package, load_package
from unetpp.train.store import PatchStore

RESULT = Path(__file__).with_name("tta.json")
MODELS = {"nuclei": "nuclei", "nuclei-full": "nuclei", "landcover": "landcover"}
"""Bundled model -> the recipe whose validation images it is judged on."""
WORKERS, TILE, SECONDS = 2, 1024, 20.0
COMMAND = "import sys; from unetpp_workflows.cli import main; sys.exit(main())"


def prepared(recipe: str, root: Path, folder: Path) -> PatchStore:
    store = folder / f"{recipe}.zarr"
    command = ["prepare", recipe, "--data", str(root), "--output", str(store)]
    subprocess.run([sys.executable, "-c", COMMAND, *command], check=True)
    return PatchStore.open(store)


def labelled(store: PatchStore) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Yield pixels and labels of the whole validation images."""
    source = store.source("val")
    for index, image in enumerate(source.images):
        crop = source.read(index, Box(0, 0, image.height, image.width))
        yield np.ascontiguousarray(crop.pixels), crop.labels


def ranks_of(package: Package) -> NDArray[np.uint8]:
    """Return the class index of every class value, 255 for others."""
    ranks = np.full(256, 255, np.uint8)
    ranks[[info.value for info in package.spec.classes]] = range(len(package.spec.classes))
    return ranks


def row(model: str, tta: Tta, store: PatchStore) -> dict[str, Any]:
    package = load_package(bundled_package(model))
    engine = choose_engine(package, tta=tta)
    [measured] = bench(package, tiles=[TILE], workers=WORKERS, tta=tta, seconds=SECONDS)
    found = Confusion(max(2, package.spec.architecture.classes))
    ranks = ranks_of(package)
    images = list(labelled(store))
    for pixels, labels in images:
        found.update(labels, ranks[engine.labels(pixels)])
    iou = [float(value) for value in found.iou]
    names = [info.name for info in package.spec.classes]
    made = {
        "model": model, "tta": tta, "engine": engine.name, "precision": engine.precision, "images": len(images),
        "score": round(found.judged_iou, 4), "mpx_s": round(measured.written_mpx_s, 3),
        "iou": dict(zip(names, np.round(iou, 4).tolist(), strict=True)),
        "dice": dict(zip(names, found.dice.round(4).tolist(), strict=True)),
    }  # fmt: skip
    print(json.dumps(made), flush=True)
    return made


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    root = Path(os.environ.get("UNETPP_DATA") or sys.exit("set UNETPP_DATA to the folder with dsb2018/ and dubai/"))
    facts = {
        **provenance(packages=("torch", "openvino")),
        "command": "make tta-bench",
        "workers": WORKERS,
        "tile": TILE,
    }
    with tempfile.TemporaryDirectory(prefix="unetpp-tta-") as scratch:
        stores = {recipe: prepared(recipe, root, Path(scratch)) for recipe in dict.fromkeys(MODELS.values())}
        rows = [row(model, tta, stores[recipe]) for model, recipe in MODELS.items() for tta in get_args(Tta)]
    RESULT.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
