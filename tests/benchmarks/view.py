"""Measures `unetpp view` on a drawn result of one gigapixel: the first view in Chromium and how long tiles take.

The source is a tiled pyramidal TIFF whose tiles repeat a few drawn ones, the labels a store whose shards repeat one
drawn shard: both have the real number of tiles and levels, and are written in seconds. Run by `make view-bench`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tifffile
import uvicorn

from unetpp.geometry import Spacing
from unetpp.io import open_raster
from unetpp.io.base import fingerprint
from unetpp.io.resample import plan_grid
from unetpp.job import EngineChoice, SegmentJob
from unetpp.levels import level_shapes, level_shard
from unetpp.package import ClassInfo
from unetpp.store import LabelStore
from unetpp.tiling import make_plan
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.viewer.app import create_app

SIDE, TILE, ZOOMS = 32768, 512, 7
TILES, WORKERS, VIEWS = 600, 4, 7
RESULT = Path(__file__).with_name("view.json")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
CLASSES = (
    ClassInfo(value=0, name="background", color=(240, 240, 240), background=True),
    ClassInfo(value=1, name="nucleus", color=(34, 190, 90)),
)


def draw(folder: Path) -> Path:
    """Write the source and its result into `folder`; returns the output folder."""
    rng = np.random.default_rng(1)
    base = np.kron(rng.integers(90, 230, (33, 33, 3)), np.ones((16, 16, 1)))[:TILE, :TILE]
    drawn = [(base + rng.integers(-12, 12, (TILE, TILE, 3))).astype(np.uint8) for _ in range(4)]
    path = folder / "slide.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(ZOOMS):
            side = SIDE >> level
            count = (side // TILE) ** 2
            tiff.write(
                (drawn[k % 4] for k in range(count)), shape=(side, side, 3), dtype="uint8", tile=(TILE, TILE),
                photometric="rgb", compression="jpeg", compressionargs={"level": 85}, subfiletype=int(level > 0),
                resolution=(20000 / 2**level, 20000 / 2**level), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    out = folder / "out" / "slide"
    out.mkdir(parents=True)
    with open_raster(path) as raster:
        spacing = Spacing(0.5, 0.5, "um")
        grid = plan_grid(raster, model_spacing=None, override=spacing)
        plan = make_plan(grid.height, grid.width, halo=128, multiple=16)
        image = {"kind": raster.kind, "height": SIDE, "width": SIDE}
        mark = fingerprint(raster)
    job = SegmentJob(
        uri=str(path), out=out, package=folder, model_ref={"name": "drawn", "digest": ""}, classes=CLASSES,
        engine=EngineChoice(name="torch", version="", precision="fp32", threads=1), grid=grid, plan=plan,
        fingerprint=mark, key="drawn", spacing_override=spacing, image=image,
    )  # fmt: skip
    job.save()
    store = LabelStore.create(out, plan, grid, CLASSES)
    yy, xx = np.mgrid[: plan.shard, : plan.shard]
    blobs = (((yy % 37 - 18) ** 2 + (xx % 41 - 20) ** 2) < 90).astype(np.uint8)
    for level, shape in enumerate(level_shapes(plan)):
        if level:
            store.create_level(level)
        step = level_shard(plan, level)
        for row in range(-(-shape[0] // step)):
            for col in range(-(-shape[1] // step)):
                part = blobs[: min(step, shape[0] - row * step), : min(step, shape[1] - col * step)]
                store.write_chunks(level, row, col, dict(store.encode(part)))
    ImageRecord(name="slide", status="done", key="drawn").write(out)
    return out.parent


def serve(output: Path) -> tuple[uvicorn.Server, str]:
    server = uvicorn.Server(uvicorn.Config(create_app([output]), port=0, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.02)
    return server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"


def tiles(address: str) -> dict[str, dict[str, float]]:
    """Ask for different tiles, drawn at random over all zooms, as a browser does: several at a time."""
    image = httpx.get(address + "api/images").json()["images"][0]
    address_of, at = f"/api/images/{image['id']}", {"version": image["version"]}
    rng = np.random.default_rng(2)
    found = {}
    for layer in ("source", "labels"):
        places = {(z := int(rng.integers(0, ZOOMS - 2)), *map(int, rng.integers(0, (SIDE >> z) // TILE, 2)))
                  for _ in range(TILES)}  # fmt: skip

        with httpx.Client(base_url=address) as client:

            def one(place: tuple[int, ...], layer: str = layer, client: httpx.Client = client) -> float:
                started = time.perf_counter()
                z, row, col = place
                client.get(f"{address_of}/tiles/{layer}/{z}/{row}/{col}", params=at).raise_for_status()
                return (time.perf_counter() - started) * 1000

            with ThreadPoolExecutor(WORKERS) as pool:
                times = list(pool.map(one, list(places)))
        p50, p95 = np.percentile(times, (50, 95))
        found[layer] = {"tiles": len(times), "p50_ms": round(float(p50), 1), "p95_ms": round(float(p95), 1)}
    return found


def first_views(folder: Path) -> list[float]:
    """Seconds from opening the address to a picture with its labels, each with a new server and a new page."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or sys.exit("no chromium here: install the system's package")
    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for _ in range(VIEWS):
            server, address = serve(folder)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            answered: set[str] = set()
            page.on("requestfinished", lambda r, seen=answered: seen.add(r.url.split("/tiles/")[-1].split("/")[0]))
            started = time.perf_counter()
            page.goto(address)
            while not ({"source", "labels"} <= answered and page.evaluate("location.hash.includes('at=')")):
                page.wait_for_timeout(5)
            page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            seconds.append(round(time.perf_counter() - started, 3))
            page.close()
            server.should_exit = True
        browser.close()
    return seconds


def main() -> int:
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="unetpp-view-") as name:
        started = time.perf_counter()
        output = draw(Path(name))
        drawing = time.perf_counter() - started
        views = first_views(output)
        _, address = serve(output)
        latency = tiles(address)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    content: dict[str, Any] = {
        "side": SIDE, "first_view_s": views, "tiles": latency, "workers": WORKERS, "draw_s": round(drawing, 1),
        "cores": os.cpu_count(), "machine": platform.processor() or platform.machine(),
        "load": [round(before, 1), round(os.getloadavg()[0], 1)], "commit": commit.stdout.strip(),
        "date": date.today().isoformat(), "chromium": shutil.which("chromium"),
    }  # fmt: skip
    content.pop("chromium")
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
