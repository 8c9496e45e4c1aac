"""Measures reading whole slides window by window, ours beside OpenSlide's read_region; writes read.json.

    UNETPP_DATA=DATA python tests/benchmarks/read.py

One caller reads the windows of `segment`'s tiles, from files that the system has in memory. Both sides keep the cache
that they have in use, rounds are interleaved, and every window must have OpenSlide's pixels.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray
from speed import provenance

from unetpp.geometry import Box
from unetpp.io import open_raster

SLIDES = ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs", "giardia_HE_left_1.02GP.tif")
CORE, HALO = 1024, 64
MOST_PIXELS = 6144
"""Side of the part that is read, from the slide's middle."""
ROUNDS = 5
RESULT = Path(__file__).with_name("read.json")

Read = Callable[[Box], NDArray[np.uint8]]


def windows(height: int, width: int) -> list[Box]:
    rows, columns = ((max(0, (n - MOST_PIXELS) // 2), min(n, (n + MOST_PIXELS) // 2)) for n in (height, width))
    corners = [(y, x) for y in range(*rows, CORE) for x in range(*columns, CORE)]
    return [Box(y, x, y + CORE, x + CORE).expand(HALO).clip(height, width) for y, x in corners]


def measure(path: Path) -> dict[str, Any]:
    with open_raster(path) as raster:
        boxes = windows(raster.levels[0].height, raster.levels[0].width)
    pixels = sum(box.area for box in boxes)
    seconds: dict[str, list[float]] = {"openslide": [], "ours": []}
    processor: dict[str, list[float]] = {"openslide": [], "ours": []}
    for _ in range(ROUNDS):
        with openslide.OpenSlide(path) as slide, open_raster(path) as raster:
            readers: dict[str, Read] = {
                "openslide": lambda box, slide=slide: np.asarray(  # type: ignore[misc]
                    slide.read_region((box.x0, box.y0), 0, (box.width, box.height))
                )[..., :3],
                "ours": lambda box, raster=raster: raster.read(box).pixels,  # type: ignore[misc]
            }
            for name, read in readers.items():
                began, spent = time.perf_counter(), time.process_time()
                for box in boxes:
                    read(box)
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - spent)
            assert all(np.array_equal(readers["ours"](box), readers["openslide"](box)) for box in boxes), path
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "slide": path.name,
        "windows": len(boxes),
        "mpx": round(pixels / 1e6, 1),
        "mpx_s": {name: round(pixels / value / 1e6, 1) for name, value in medians.items()},
        "ratio": round(medians["openslide"] / medians["ours"], 2),
        "processor_ratio": round(statistics.median(processor["openslide"]) / statistics.median(processor["ours"]), 2),
        "seconds_all": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
    }


def main() -> None:
    folder = Path(os.environ.get("UNETPP_DATA", "")) / "slides"
    if not folder.is_dir():
        sys.exit("set UNETPP_DATA to the folder of sample images")
    facts = provenance("tests/benchmarks/read.py", ("openslide-python", "openslide-bin", "tifffile", "simplejpeg"))
    rows = [measure(folder / name) for name in SLIDES]
    RESULT.write_text(json.dumps({**facts, "rounds": ROUNDS, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{row['slide']:32} {row['mpx_s']} Mpx/s, {row['ratio']}x in time, {row['processor_ratio']}x in processor"
        )


if __name__ == "__main__":
    main()
