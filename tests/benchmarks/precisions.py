"""Measures what the native engine's precisions gain and cost: bundled models on labelled images and on a slide.

    make precision-bench                               (needs UNETPP_DATA; six minutes on two cores)

Writes precisions.json, of each kind of processor the last run. Images are predicted whole, at full size. Counts are
pooled over the pixels of all images. Speed is that of a tile as archives have them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from archive import SOURCE, make_slide
from numpy.typing import NDArray
from speed import kind, provenance
from tta import MODELS, SECONDS, TILE, WORKERS, labelled, prepared, ranks_of

from unetpp.engine import choose_engine
from unetpp.engine.bench import bench
from unetpp.geometry import Box
from unetpp.io import open_raster
from unetpp.metrics import Confusion
from unetpp.native.support import why_no_cpu
from unetpp.package import Package, bundled_package, load_package

RESULT = Path(__file__).with_name("precisions.json")
PRECISIONS = tuple(name for name in ("fp32", "bf16", "int16", "int8") if why_no_cpu(name) is None)
SIDE = 4096
"""Of the slide, px."""
Image = tuple[NDArray[Any], NDArray[np.uint8] | None]


def slide(root: Path, folder: Path) -> Iterator[Image]:
    path = folder / "slide.tif"
    make_slide(root / "slides" / SOURCE, path, SIDE, SIDE)
    with open_raster(str(path)) as raster:
        yield np.ascontiguousarray(raster.read(Box(0, 0, SIDE, SIDE)).pixels), None


def rows(package: Package, images: Iterable[Image], what: str) -> Iterator[dict[str, Any]]:
    engines = {name: choose_engine(package, name="native", precision=name) for name in PRECISIONS}
    counts = {name: Confusion(max(2, package.spec.architecture.classes)) for name in PRECISIONS}
    unlike, pixels, seen = dict.fromkeys(PRECISIONS, 0), 0, 0
    ranks = ranks_of(package)
    truth: NDArray[np.uint8] | None = None
    for image, truth in images:
        found = {name: engine.labels(image) for name, engine in engines.items()}
        pixels, seen = pixels + found["fp32"].size, seen + 1
        for name, labels in found.items():
            unlike[name] += int(np.count_nonzero(labels != found["fp32"]))
            if truth is not None:
                counts[name].update(truth, ranks[labels])
    for name in PRECISIONS:
        [measured] = bench(package, engine="native", precision=name, tiles=[TILE], workers=WORKERS, seconds=SECONDS)
        score = None if truth is None else round(counts[name].judged_iou, 4)
        yield {
            "model": package.spec.name, "images": what.format(seen), "precision": name, "score": score,
            "unlike": float(f"{unlike[name] / pixels:.3g}"), "mpx_s": round(measured.written_mpx_s, 3),
        }  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    root = Path(os.environ.get("UNETPP_DATA") or sys.exit("set UNETPP_DATA to the folder with dsb2018/ and dubai/"))
    facts = provenance(packages=("torch", "llvmlite")) | {"command": "make precision-bench", "workers": WORKERS}
    facts |= {"tile": TILE, "side": SIDE}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="unetpp-precisions-") as scratch:
        stores = {recipe: prepared(recipe, root, Path(scratch)) for recipe in dict.fromkeys(MODELS.values())}
        sets = [(model, labelled(stores[recipe]), "{} labelled") for model, recipe in MODELS.items()]
        for model, images, what in [*sets, ("nuclei", slide(root, Path(scratch)), "a slide, H&E")]:
            for row in rows(load_package(bundled_package(model)), images, what):
                print(json.dumps(row), flush=True)
                found.append(row)
    known: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps(known | {kind(): {**facts, "rows": found}}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
