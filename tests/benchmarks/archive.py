"""Measures `unetpp segment` end to end on slides of 0.1 and 1 gigapixel made of real tissue; writes archive.json.

Figures of processors that multiply bf16 and of those that do not are kept beside each other.

    UNETPP_DATA=DATA python tests/benchmarks/archive.py
    UNETPP_DATA=DATA python tests/benchmarks/archive.py --memory    (4 gigapixels, only the peak of memory; an hour)

Beside the whole command stands what the engine alone writes per second, on interior tiles of the size that segment
uses. A shared machine's speed changes by a tenth and more within minutes, so the engine is measured before, after and
about every half minute between: the command is stopped meanwhile, and that time is not its own. Memory is the
proportional set size (PSS) of the process and all below it; see watch.py. Its peak does not mind other work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from speed import kind, provenance
from watch import Pauses, Watched, watch

from unetpp.allocation import restart_with_huge_pages
from unetpp.engine.bench import bench
from unetpp.package import bundled_package, load_package

SOURCE = "giardia_HE_left_1.02GP.tif"
SMALLEST = 1024
"""Longest side of the coarsest level."""
FIRST_TILE = (36, 17)
"""Row and column of the source's tile where the tissue that is repeated begins."""
PERIOD = 8
"""Rows and columns of tiles that are repeated: 4096 x 4096 pixels."""
SIZES = {"0.1 GP": (10240, 10240), "1.02 GP": (31232, 32768)}
LARGEST = "4.09 GP", (62464, 65536)
MODEL = "nuclei"
TILE, LARGER_TILE = 1152, 2176
"""As segment takes them, the larger one in int8."""
ENGINE_S, EVERY_S = 8.0, 25.0
RESULT = Path(__file__).with_name("archive.json")


def make_slide(source: Path, path: Path, height: int, width: int) -> None:
    """Write a JPEG pyramid, as scanners do, of height x width pixels that repeat a part of the source.

    Level 0 is the source's own tiles, not coded again; the other levels are means of them, each half of the one above.
    """
    with tifffile.TiffFile(source) as file, tifffile.TiffWriter(path, bigtiff=True) as writer:
        page: Any = file.pages[0]
        side, columns = page.tilewidth, -(-page.imagewidth // page.tilewidth)
        block = [
            [_tile(file, page, (FIRST_TILE[0] + y) * columns + FIRST_TILE[1] + x) for x in range(PERIOD)]
            for y in range(PERIOD)
        ]
        assert page.jpegtables is None, "tiles of a page with tables cannot be copied alone"
        options = {"tile": (side, side), "compression": "jpeg", "subsampling": (2, 2), "metadata": None}

        def write(tiles: Sequence[Sequence[Any]], height: int, width: int, **more: Any) -> None:
            rows = islice(cycle(tiles), -(-height // side))
            found = (tile for row in rows for tile in islice(cycle(row), -(-width // side)))
            writer.write(found, shape=(height, width, 3), dtype="uint8", **options, **more)

        write(block, height, width, photometric="ycbcr")  # as its tiles are coded
        pixels = np.vstack([np.hstack([simplejpeg.decode_jpeg(tile) for tile in row]) for row in block])
        while max(height, width) > SMALLEST:
            height, width = -(-height // 2), -(-width // 2)
            pixels = np.rint(pixels.reshape(len(pixels) // 2, 2, -1, 2, 3).mean((1, 3))).astype(np.uint8)
            times = max(1, side // len(pixels))
            parts = np.tile(pixels, (times, times, 1))
            starts = range(0, len(parts), side)
            tiles = [[parts[y : y + side, x : x + side] for x in starts] for y in starts]
            write(tiles, height, width, photometric="rgb", subfiletype=1)


def _tile(file: Any, page: Any, index: int) -> bytes:
    file.filehandle.seek(page.dataoffsets[index])
    data: bytes = file.filehandle.read(page.databytecounts[index])
    return data


def run(
    slide: Path, output: Path, workers: int, pauses: Pauses | None = None, precision: str = "auto"
) -> tuple[Watched, dict[str, Any]]:
    """Segment one slide; return what the process did and the image's record."""
    command = [sys.executable, "-m", "unetpp_workflows", "segment", str(slide), "-m", MODEL, "-o", str(output)]
    settings = ["--workers", str(workers), "--tissue", "none", "--set", "tracking.enabled=false"]
    watched = watch([*command, *settings, "--precision", precision], pauses=pauses)
    if watched.ended != "done":
        sys.exit(f"{watched.ended}\n{watched.text}")
    return watched, json.loads((output / slide.stem / "record.json").read_text())


def facts_of(watched: Watched, record: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on the machine's speed."""
    return {
        "mpx": round(record["shards"]["valid_px"] / 1e6, 1),
        "peak_pss_mb": round(watched.peak_pss_mb),
        "engine": f"{record['engine']['name']} {record['engine']['precision']}",
        "tile": record["plan"]["tile_shape"][0],
        "objects": record["figures"]["classes"][1]["objects"],
    }


def speeds_of(watched: Watched, record: dict[str, Any]) -> dict[str, Any]:
    line = next(line for line in watched.text.splitlines() if " shards in " in line)
    shards = float(line.split(" shards in ")[1].split(" s")[0]) - watched.paused_seconds
    pixels, seconds, processor = record["shards"]["valid_px"] / 1e6, watched.seconds, watched.processor_seconds
    return {
        "seconds": round(seconds, 1),
        "paused_seconds": round(watched.paused_seconds, 1),
        "shard_seconds": round(shards, 1),
        "processor_seconds": round(processor, 1),
        "written_mpx_s": round(pixels / seconds, 3),
        "shards_written_mpx_s": round(pixels / shards, 3),
        "written_mpx_per_processor_s": round(pixels / processor, 3),
        "limited_by": record["limited_by"],
        "load": round(watched.load, 2),
    }


def measure(slide: Path, output: Path, workers: int, precision: str) -> dict[str, Any]:
    """Segment one slide and return its figures beside those of the engine alone."""

    tile = LARGER_TILE if precision == "int8" else TILE

    def rate() -> dict[str, float]:
        return engine_rate(tile, workers, precision)

    rates = [rate()]
    pauses = Pauses(EVERY_S, lambda: rates.append(rate()), until="finishing")
    ended = run(slide, output, workers, pauses, precision)
    row = {**facts_of(*ended), **speeds_of(*ended)}
    rates.append(rate())
    assert row["tile"] == tile, "measure the engine at the tile that segment uses"
    alone: dict[str, Any] = {key: round(mean(rate[key] for rate in rates), 3) for key in rates[0]}
    row["engine_alone"] = {**alone, "written_mpx_s_each": [round(rate["written_mpx_s"], 2) for rate in rates]}
    for share, key in (("share", "written_mpx_s"), ("processor_share", "written_mpx_per_processor_s")):
        row[share] = round(row[key] / alone[key], 3)
    return row


def engine_rate(tile: int, workers: int, precision: str) -> dict[str, float]:
    package = load_package(bundled_package(MODEL))
    [row] = bench(package, precision=precision, tiles=[tile], workers=workers, seconds=ENGINE_S)
    written = row.written_mpx_s / row.computed_mpx_s
    return {"written_mpx_s": row.written_mpx_s, "written_mpx_per_processor_s": row.cpu_mpx_s * written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="folder for slides and results, a temporary one by default")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", default=["auto"], help="as of segment: auto int8")
    parser.add_argument("--memory", action="store_true", help="measure the peak of memory on 4 gigapixels instead")
    arguments = parser.parse_args()
    source = Path(os.environ.get("UNETPP_DATA", "")) / "slides" / SOURCE
    if not source.is_file():
        sys.exit("set UNETPP_DATA to the folder of sample images")
    facts = provenance(
        "tests/benchmarks/archive.py", ("torch", "openvino", "llvmlite", "zarr", "tifffile", "simplejpeg")
    )
    workers = len(os.sched_getaffinity(0))
    result: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="unetpp-archive-", dir=arguments.work) as folder:
        if arguments.memory:
            name, size = LARGEST
            slide = Path(folder) / "slide.tif"
            make_slide(source, slide, *size)
            row = facts_of(*run(slide, Path(folder) / "out", workers))
            result["memory"] = {**facts, "rows": {name: row}}
        else:
            rows: dict[str, Any] = {}
            for name in arguments.sizes:
                slide = Path(folder) / f"{name.replace(' ', '')}.tif"
                make_slide(source, slide, *SIZES[name])
                for precision in arguments.precisions:
                    row = measure(slide, Path(folder) / f"out-{precision}", workers, precision)
                    rows[name if precision == "auto" else f"{name}, {precision}"] = row
                    print(name, json.dumps(row), flush=True)
            result[kind()] = {**facts, "workers": workers, "model": MODEL, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    restart_with_huge_pages()  # as the command does
    main()
