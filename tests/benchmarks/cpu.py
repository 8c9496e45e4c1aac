"""Compares our network in several CPU engines with other libraries' UNet++, in one run; writes cpu.json.

    make cpu-bench        (makes .venv-peers, runs this in it and updates the README)
    python tests/benchmarks/cpu.py [--rounds 3] [--seconds 1] [--output FILE]

Raw uint8 tile in, labels out, for every row of both sides. Needs UNETPP_DATA with dsb2018 for calibration and
accuracy. Run it on a quiet machine; the load is recorded beside the figures.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from ours import ORDERS, WEIGHTS, Pixels, Runner, build, engine_names, package
from timing import throughput

from unetpp.metrics import Confusion
from unetpp.native.support import why_not
from unetpp.package import Package
from unetpp.processor import cpu_has_bf16

HERE = Path(__file__).parent
RESULT = HERE / "cpu.json"
RECIPE = HERE.parents[1] / "workflows/unetpp_workflows/recipes/nuclei.toml"
CALIBRATION_SIDE = 256
MOST_ERROR = 0.005  # relative to fp32, of an engine that may be the default
DISTRIBUTIONS = (
    "torch", "llvmlite", "openvino", "onnxruntime", "onnx", "nncf", "numpy",
    "segmentation_models_pytorch", "timm", "torchvision", "monai",
)  # fmt: skip
COLUMNS = ("network", "engine", "precision")


class Sample(NamedTuple):
    """One image of the nuclei set: its kind, pixels (H, W, 3) uint8 and labels (H, W), 1 where a nucleus is."""

    group: str
    pixels: Pixels
    labels: Pixels


def load_images() -> tuple[list[Sample], list[Sample]]:
    """The nuclei recipe's own training and validation images."""
    root = os.environ.get("UNETPP_DATA")
    if not root:
        raise SystemExit("set UNETPP_DATA to the folder that holds dsb2018 (see recipes/nuclei.toml)")
    from PIL import Image

    # Only its table and its patterns: what checks a recipe reads images of every kind, with what is not installed here.
    data: dict[str, Any] = tomllib.loads(RECIPE.read_text(encoding="utf-8"))["data"]
    samples: dict[str, list[Sample]] = {"train": [], "val": []}
    with Path(root, data["table"]).open(newline="", encoding="utf-8") as file:
        for row in sorted(csv.DictReader(file), key=lambda row: row[data["key"]]):
            image = Path(root, data["images"]).with_name(f"{row[data['key']]}.png")
            pixels = np.asarray(Image.open(image).convert("RGB"))
            labels = np.asarray(Image.open(Path(root, data["labels"].format(stem=image.stem))))
            samples[row[data["split"]]].append(Sample(row[data["stratum"]], pixels, (labels > 0).astype(np.uint8)))
    return samples["train"], samples["val"]


def calibration_images(training: Sequence[Sample], count: int) -> list[Pixels]:
    """Return `count` training images spread over all, one shape each: corners of 256 px, mirrored where smaller."""
    chosen = training[:: max(1, len(training) // count)][:count]
    return [square(sample.pixels, CALIBRATION_SIDE) for sample in chosen]


def error_tiles(validation: Sequence[Sample], side: int) -> list[Pixels]:
    """Return one tile per kind of validation image, from the largest of the kind."""
    largest: dict[str, Sample] = {}
    for sample in validation:
        if sample.group not in largest or sample.labels.size > largest[sample.group].labels.size:
            largest[sample.group] = sample
    return [square(sample.pixels, side) for _, sample in sorted(largest.items())]


def square(pixels: Pixels, side: int) -> Pixels:
    bottom, right = (max(0, side - n) for n in pixels.shape[:2])
    padded = np.pad(pixels, ((0, bottom), (0, right), (0, 0)), mode="symmetric")
    return np.ascontiguousarray(padded[:side, :side])


def build_rows(
    packages: dict[str, Package], tiles: Sequence[Pixels], calibration: Sequence[Pixels], threads: int
) -> list[tuple[dict[str, Any], Runner | None]]:
    """Make every engine of every order and measure how far its logits are from eager fp32's."""
    rows: list[tuple[dict[str, Any], Runner | None]] = []
    for order, source in packages.items():
        make = {"threads": threads, "side": tiles[0].shape[0], "calibration": calibration}
        network = source.load_model()
        parameters = sum(p.numel() for p in network.parameters())
        exact = _all_logits(build(source, "torch", "fp32", **make), tiles)
        for engine, precision in engine_names():
            if engine == "native" and why_not(source.spec, precision) is not None:
                continue
            facts = {"network": order, "engine": engine, "precision": precision, "parameters": parameters,
                     "weights": WEIGHTS[order]}  # fmt: skip
            began = time.perf_counter()
            try:
                runner = build(source, engine, precision, **make)
                found = _all_logits(runner, tiles)
                facts |= {**difference(found, exact), "seconds_to_ready": round(time.perf_counter() - began, 1)}
                rows.append((facts, runner))
            except Exception as error:  # noqa: BLE001  one engine that fails must not cost the others
                rows.append(({**facts, "error": f"{type(error).__name__}: {error}"[:300]}, None))
            _print(rows[-1][0])
    return rows


def _all_logits(runner: Runner, tiles: Sequence[Pixels]) -> NDArray[np.float32]:
    return np.stack([runner.logits(tile) for tile in tiles])


def difference(found: NDArray[np.float32], exact: NDArray[np.float32]) -> dict[str, float]:
    """Relative Frobenius error of the logits over all tiles, and the share of pixels whose label changes."""
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    changed = (found[:, 1] > found[:, 0]) != (exact[:, 1] > exact[:, 0])
    return {"relative_error": float(f"{error:.3g}"), "labels_changed": float(f"{changed.mean():.3g}")}


class Peers:
    """The process that runs the other libraries; see peers.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.rows: list[dict[str, Any]] = self._answer()

    def measure(self, row: int, seconds: float) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"row": row, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["mpx_s"])

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"peers.py ended with exit code {self._process.wait()}; its message is above")
        return json.loads(line)


@contextmanager
def start_peers(tile: Pixels, threads: int, folder: Path) -> Iterator[Peers]:
    np.save(folder / "tile.npy", tile)
    command = [sys.executable, str(HERE / "peers.py"), "--threads", str(threads), "--tile", str(folder / "tile.npy")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # hides unetpp from it
    process = subprocess.Popen(
        command + (["--bf16"] if cpu_has_bf16() else []), env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Peers(process)
        assert process.stdin is not None
        process.stdin.close()  # the end of its input ends it
        process.wait(timeout=60)
    finally:
        process.kill()


def measure(
    rows: Sequence[tuple[dict[str, Any], Runner | None]], peers: Peers, tile: Pixels, rounds: int, seconds: float
) -> None:
    """Time every row once per round and write the figures into its facts."""
    pixels = tile.shape[0] * tile.shape[1]
    for number in range(rounds):
        began = time.perf_counter()
        for facts, runner in rows:
            if runner is not None:
                speed = throughput(lambda r=runner: r.labels(tile), pixels, seconds)
                facts.setdefault("mpx_s_all", []).append(round(speed, 4))
        for index, facts in enumerate(peers.rows):
            if "error" not in facts:
                facts.setdefault("mpx_s_all", []).append(round(peers.measure(index, seconds), 4))
        print(f"round {number + 1} of {rounds}: {time.perf_counter() - began:.0f} s", flush=True)
    for facts in [facts for facts, _ in rows] + peers.rows:
        if "mpx_s_all" in facts:
            facts["mpx_s"] = statistics.median(facts["mpx_s_all"])


def accuracy(rows: Sequence[tuple[dict[str, Any], Runner | None]], validation: Sequence[Sample]) -> dict[str, Any]:
    """Pooled IoU of nuclei over the validation images, each predicted whole, as the training recipe evaluates."""
    ordered = sorted(validation, key=lambda s: s.labels.shape)  # each shape is compiled once
    iou: dict[str, float] = {}
    for facts, runner in rows:
        if facts["network"] == "pw_dw" and facts["engine"] in ("native", "openvino") and runner is not None:
            confusion = Confusion(2)
            for sample in ordered:
                confusion.update(sample.labels, runner.labels(sample.pixels))
            iou[_name(facts)] = round(float(confusion.iou[1]), 5)
    return {"images": len(ordered), "iou": iou}


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the figures say about the default engine for the default order of convolutions."""
    measured = sorted((r for r in rows if r["network"] == "pw_dw" and "mpx_s" in r), key=lambda r: -r["mpx_s"])
    exact = [r for r in measured if r["relative_error"] <= MOST_ERROR]
    return {
        "fastest": _name(measured[0]),
        "fastest_within_error": _name(exact[0]),
        "most_error": MOST_ERROR,
    }


def _name(row: dict[str, Any]) -> str:
    return f"{row['engine']} {row['precision']}"


def provenance() -> dict[str, Any]:
    system = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    names = [line.split(":")[1].strip() for line in system.splitlines() if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True, cwd=HERE
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "command": " ".join(["make cpu-bench", *(["with", *sys.argv[1:]] if sys.argv[1:] else [])]),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "features": [f for f in ("avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if f in system],
        "versions": {name: version(name) for name in DISTRIBUTIONS},
    }


def _print(facts: dict[str, Any]) -> None:
    name = " ".join(facts[c] for c in COLUMNS)
    speed = f"{facts['mpx_s']:7.3f} Mpx/s" if "mpx_s" in facts else ""
    error = f"error {facts['relative_error']:.1e}" if "relative_error" in facts else facts.get("layout", "")
    print(f"{name:45}{speed:15}{facts.get('error') or error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=int, default=512, help="side in pixels, a multiple of 32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="per row and round")
    parser.add_argument("--calibration", type=int, default=64, help="images that int8 is calibrated on")
    parser.add_argument("--every", type=int, default=1, help="judge accuracy on every n-th validation image")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = provenance()
    training, validation = load_images()
    calibration = calibration_images(training, arguments.calibration)
    tiles = error_tiles(validation, arguments.tile)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="unetpp-cpu-") as name:
        folder = Path(name)
        packages = {order: package(order, calibration[:16], folder) for order in arguments.orders}
        rows = build_rows(packages, tiles, calibration, arguments.threads)
        with start_peers(tiles[0], arguments.threads, folder) as peers:
            measure(rows, peers, tiles[0], arguments.rounds, arguments.seconds)
        ours = [row for row, _ in rows]
        for row in [*ours, *peers.rows]:
            _print(row)
        judged = accuracy(rows, validation[:: arguments.every])
    result = {
        **facts,
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),  # this run's own threads are part of it
        "settings": {name: getattr(arguments, name) for name in ("tile", "threads", "rounds", "seconds")},
        "calibration_images": len(calibration),
        "error_tiles": len(tiles),
        "ours": ours,
        "peers": peers.rows,
        "accuracy": judged,
        "verdict": verdict(ours),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"accuracy": judged, "verdict": result["verdict"]}, indent=1))


if __name__ == "__main__":
    main()
