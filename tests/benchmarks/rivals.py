"""Segments one slide with unetpp and with other libraries, on the same cores, in one run; writes rivals.json.

    make rivals            (makes both environments of the others, runs this and updates the README)
    make rivals-memory     (the same for peak memory on 1.02 gigapixels)
    python tests/benchmarks/rivals.py [--side 4096] [--rounds 1]
    python tests/benchmarks/rivals.py --memory [--height 31232 --width 32768] [--minutes 30] [--only NAME ...]

Everybody goes from the slide on disk to labels on disk, without a tissue mask, in a process of its own; see
contestant.py for what the others do. They get the weights of the bundled nuclei model as we export them and, beside
it, a network of their own of the size class with random weights; precision, memory layout, tile and batch are the
fastest of a small sweep. Seams: labels on a slide of 2048 px against one call of the same network, in the same
library, precision and layout, over the whole of it.

For memory MONAI and TIAToolbox run one convolution instead of a network: what they need for a slide of that size is
their canvas, and so they get to the end of it; where a run is stopped, its peak is a lower bound. The loop holds one
tile at a time whatever the slide: it runs with its networks and is stopped after five minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from archive import MODEL, SIZES, SOURCE, make_slide
from numpy.typing import NDArray
from speed import kind, precision, provenance
from watch import Watched, watch

from unetpp.engine import choose_engine
from unetpp.export import export_package
from unetpp.geometry import Box
from unetpp.io import open_raster
from unetpp.native.support import why_no_cpu
from unetpp.package import bundled_package, load_package
from unetpp.processor import cpu_has_bf16

HERE = Path(__file__).parent
RESULT = HERE / "rivals.json"
PYTHON = {name: HERE.parents[1] / f".venv-{name}/bin/python" for name in ("peers", "tiatoolbox")}
Settings = dict[str, Any]
CROP = 2048
EDGE = 128
"""Pixels from the image's edge that do not count as inside: there, libraries differ in what they pad with."""
LEAST: Settings = {"precision": precision(), "layout": "channels_last", "tile": 512, "batch": 1}
"""Settings for little memory."""
LOOP_MINUTES = 5
SPARE_MB = 2500
"""Memory that a run must leave to the machine."""


@dataclass(frozen=True)
class Contestant:
    """A library with a network.

    Attributes:
        name: as the table has it.
        runner: of contestant.py; empty for ours.
        network: "same" (our weights) or one of contestant.py's.
        slow: it gets the slide of 2048 px only.
        small: ours, with what takes little memory: one tile at a time, of a sixteenth of the area, by all cores.
        options: ours, of `segment`.
    """

    name: str
    runner: str
    network: str
    slow: bool = False
    small: bool = False
    options: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        return PYTHON["tiatoolbox" if self.runner == "tiatoolbox" else "peers"]


OURS = Contestant("unetpp segment", "", "same")
ALONE = Contestant("unetpp segment, labels alone", "", "same", options=("--formats", ""))
BYTES = Contestant("unetpp segment, labels alone, int8", "", "same", options=(*ALONE.options, "--precision", "int8"))
EVERY_OURS = (OURS, ALONE, *((BYTES,) if why_no_cpu("int8") is None else ()))
SMALL = Contestant("unetpp segment, small tiles", "", "same", small=True)
SMALL_CORE = 256
SAME = (
    Contestant("OpenSlide loop", "plain", "same"),
    Contestant("MONAI sliding_window_inference", "monai", "same"),
    Contestant("TIAToolbox SemanticSegmentor", "tiatoolbox", "same"),
)
OWN = (
    Contestant("OpenSlide loop, smp UnetPlusPlus mobilenet_v2", "plain", "smp"),
    Contestant("MONAI sliding_window_inference, BasicUNetPlusPlus", "monai", "monai", slow=True),
    Contestant("TIAToolbox SemanticSegmentor, UNetModel resnet50", "tiatoolbox", "tiatoolbox", slow=True),
)
FIXED: Settings = {"precision": "fp32", "layout": "contiguous", "tile": 1024, "batch": 8}
"""Of TIAToolbox's own network, which runs as it comes: its patches, and the batch that is the default."""


class Bench:
    """The slides, the exported network and the settings of one run, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.threads = len(os.sched_getaffinity(0))
        self.package = load_package(bundled_package(MODEL))
        self.same = export_package(self.package, "torch-export", folder / "same.pt2")
        self.source = Path(os.environ.get("UNETPP_DATA", "")) / "slides" / SOURCE
        self._outputs = 0

    def slide(self, height: int, width: int) -> Path:
        path = self.folder / f"{height}x{width}.tif"
        if not path.exists():
            make_slide(self.source, path, height, width)
        return path

    def command(self, contestant: Contestant, slide: Path, output: Path, settings: Settings) -> list[str]:
        if not contestant.runner:
            words = [sys.executable, "-m", "unetpp_workflows", "segment", slide, "-m", MODEL, "-o", output]
            words += ["--workers", 1 if contestant.small else self.threads, "--tissue", "none"]
            words += ["--set", "tracking.enabled=false", *contestant.options]
            if contestant.small:
                words += ["--set", f"engine.threads={self.threads}", "--set", f"tiling.core={SMALL_CORE}"]
            return [str(word) for word in words]
        words = [*self.contestant(contestant, contestant.runner), "--slide", slide, "--output", output]
        words += [word for name in ("precision", "layout", "tile", "batch") for word in (f"--{name}", settings[name])]
        return [str(word) for word in words]

    def contestant(self, contestant: Contestant, runner: str) -> list[str]:
        network = self.same if contestant.network == "same" else contestant.network
        script = HERE / "contestant.py"
        return [str(contestant.python), str(script), runner, "--network", str(network), "--threads", str(self.threads)]

    def run(
        self, contestant: Contestant, slide: Path, settings: Settings, seconds: float | None = None
    ) -> tuple[dict[str, Any], Path]:
        """Run a contestant; return its figures and the folder of its labels."""
        self._outputs += 1
        output = self.folder / f"out{self._outputs}"
        output.mkdir()
        most = psutil.virtual_memory().available / 1e6 - SPARE_MB
        command = self.command(contestant, slide, output, settings)
        ours = not contestant.runner
        watched = watch(command, environment=None if ours else bare(), most_seconds=seconds, most_mb=most)
        if watched.ended.startswith("exit code"):
            print(watched.text[-3000:], file=sys.stderr)
        figures = watched.figures()
        if watched.ended == "done":
            figures |= {"ready_seconds": start_up(watched)} if ours else last_facts(watched.text)
        return figures, output

    def sweep(self, contestant: Contestant) -> dict[str, Any]:
        command = [*self.contestant(contestant, "sweep"), *(["--bf16"] if cpu_has_bf16() else [])]
        command += ["--few"] if contestant.slow else []
        done = subprocess.run(command, env=bare(), stdout=subprocess.PIPE, text=True, check=True)
        facts = last_facts(done.stdout)
        facts["best"] = max(facts["sweep"], key=lambda row: float(row["mpx_s"]))
        print(f"sweep of {contestant.name}: {json.dumps(facts)}", flush=True)
        return facts


def start_up(watched: Watched) -> float:
    """Return what `unetpp segment` took beside the time that it says itself: imports."""
    own = re.search(r"segmented in ([0-9.]+) s", watched.text)
    assert own is not None, watched.text
    return round(watched.seconds - float(own[1]), 1)


def torch_mb(python: Path) -> int:
    """Return the memory of a process that has imported torch and nothing else."""
    code = "import psutil, torch; print(round(psutil.Process().memory_full_info().pss / 1e6))"
    done = subprocess.run([python, "-c", code], env=bare(), stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


def last_facts(text: str) -> dict[str, Any]:
    """Return the JSON that contestant.py printed last; libraries may print after it."""
    facts: dict[str, Any] = json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
    return facts


def bare() -> dict[str, str]:
    """The environment without PYTHONPATH, which would show the others our packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def labels(contestant: Contestant, slide: Path, output: Path) -> NDArray[np.uint8]:
    """Read what a contestant wrote."""
    if not contestant.runner:
        path = output / slide.stem / "labels.ome.zarr" / "classes" / "0"
    elif contestant.runner == "tiatoolbox":
        path = output / f"{slide.stem}.zarr" / "predictions"
    else:
        path = output / "labels.zarr"
    array = zarr.open_array(str(path), mode="r")
    return np.asarray(array[:], np.uint8)


def differing(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, float]:
    """Return the share of pixels whose label differs: of all, and of those inside."""
    different = found != truth
    inside = different[EDGE:-EDGE, EDGE:-EDGE]
    return {"all": float(f"{different.mean():.3g}"), "inside": float(f"{inside.mean():.3g}")}


def compare(bench: Bench, side: int, rounds: int) -> dict[str, Any]:
    """Return the speed of every contestant and the seam error of those with our weights."""
    sweeps = {contestant.network: bench.sweep(contestant) for contestant in (SAME[0], *OWN[:2])}
    parameters = {name: facts["parameters"] for name, facts in sweeps.items()}
    settings = {name: facts["best"] for name, facts in sweeps.items()} | {"tiatoolbox": FIXED}
    rows: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        # A shared machine's speed changes within minutes: the fastest of the others, OWN's first, runs next to ours.
        for contestant in (*EVERY_OURS, *OWN, *SAME):
            length = CROP if contestant.slow else side
            used = settings[contestant.network]
            figures, _ = bench.run(contestant, bench.slide(length, length), used)
            row = rows.setdefault(contestant.name, {"network": contestant.network, "side": length, "runs": []})
            row["runs"].append(figures)
            if contestant.runner:
                row["settings"] = {name: used[name] for name in ("precision", "layout", "tile", "batch")}
                row["parameters"] = parameters.get(contestant.network)
            print(f"round {number + 1}: {contestant.name}: {json.dumps(figures)}", flush=True)
    for row in rows.values():
        _summarise(row)
    seams = measure_seams(bench, settings["same"])
    return {"side": side, "crop": CROP, "edge": EDGE, "sweeps": sweeps, "rows": rows, "seams": seams}


def _summarise(row: dict[str, Any]) -> None:
    runs, mpx = row["runs"], row["side"] ** 2 / 1e6
    if any(run["ended"] != "done" for run in runs):
        row["failed"] = next(run["ended"] for run in runs if run["ended"] != "done")
        return
    row["mpx_s"] = round(mpx / statistics.median(run["seconds"] for run in runs), 4)
    if all("ready_seconds" in run for run in runs):
        row["ready_mpx_s"] = round(mpx / statistics.median(run["seconds"] - run["ready_seconds"] for run in runs), 4)
    row["peak_pss_mb"] = round(statistics.median(run["peak_pss_mb"] for run in runs))


def measure_seams(bench: Bench, settings: Settings) -> dict[str, Any]:
    """Return per contestant the share of labels unlike its own whole-image inference, and unlike ours in fp32."""
    slide = bench.slide(CROP, CROP)
    with open_raster(str(slide)) as raster:
        pixels = raster.read(Box(0, 0, CROP, CROP)).pixels
    exact = choose_engine(bench.package, precision="fp32", threads=bench.threads).labels(pixels)
    wholes = {}
    for contestant in EVERY_OURS:
        precision = "int8" if contestant is BYTES else "auto"
        wholes[contestant.name] = choose_engine(bench.package, precision=precision).labels(pixels)
    for contestant in (SAME[0], SAME[2]):
        whole = Contestant("whole", "whole", "same")
        output = bench.folder / f"whole-{contestant.runner}"
        output.mkdir()
        command = bench.command(whole, slide, output, settings)
        command[0] = str(contestant.python)
        subprocess.run(command, env=bare(), stdout=subprocess.DEVNULL, check=True)
        wholes[str(contestant.python)] = labels(whole, slide, output)
    seams = {}
    for contestant in (*EVERY_OURS, *SAME):
        figures, output = bench.run(contestant, slide, settings)
        if figures["ended"] != "done":
            seams[contestant.name] = {"failed": figures["ended"]}
            continue
        found = labels(contestant, slide, output)
        whole_labels = wholes[str(contestant.python) if contestant.runner else contestant.name]
        seams[contestant.name] = {"seam": differing(found, whole_labels), "fp32": differing(found, exact)}
        print(f"seams: {contestant.name}: {json.dumps(seams[contestant.name])}", flush=True)
    return seams


def measure_memory(
    bench: Bench, slide: Path, minutes: float, only: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each contestant's name and its figures on one slide."""
    for contestant in (OURS, SMALL, SAME[0], OWN[0], *SAME[1:]):
        if only and not any(word.lower() in contestant.name.lower() for word in only):
            continue
        canvas = contestant.runner in ("monai", "tiatoolbox")
        run = dataclasses.replace(contestant, network="tiny") if canvas else contestant
        seconds = 60 * (min(minutes, LOOP_MINUTES) if contestant.runner == "plain" else minutes)
        figures, _ = bench.run(run, slide, LEAST, seconds)
        print(f"{contestant.name}: {json.dumps(figures)}", flush=True)
        yield contestant.name, {**figures, "network": run.network}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096, help="of the slide for speed, px")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="measure peak memory on a large slide instead")
    parser.add_argument("--height", type=int, default=SIZES["1.02 GP"][0])
    parser.add_argument("--width", type=int, default=SIZES["1.02 GP"][1])
    parser.add_argument("--minutes", type=float, default=30, help="after which a run for memory is stopped")
    parser.add_argument("--only", nargs="+", default=[], help="of --memory: contestants whose names hold these words")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--work", type=Path, help="folder for slides and results, a temporary one by default")
    arguments = parser.parse_args()
    if not (Path(os.environ.get("UNETPP_DATA", "")) / "slides" / SOURCE).is_file():
        sys.exit("set UNETPP_DATA to the folder of sample images")
    missing = [str(path) for path in PYTHON.values() if not path.exists()]
    if missing:
        sys.exit(f"no {' and no '.join(missing)}: run make peers tiatoolbox")
    results = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    facts = provenance("tests/benchmarks/rivals.py", ("torch", "openvino", "llvmlite", "zarr"))
    facts |= {"threads": len(os.sched_getaffinity(0)), "memory_mb": round(psutil.virtual_memory().total / 1e6)}
    facts["torch_mb"] = {name: torch_mb(python) for name, python in PYTHON.items()}
    with tempfile.TemporaryDirectory(prefix="unetpp-rivals-", dir=arguments.work) as folder:
        bench = Bench(Path(folder))
        if arguments.memory:
            size = {"height": arguments.height, "width": arguments.width}
            before = results.get("memory", {})
            same = arguments.only and {name: before.get(name) for name in size} == size
            rows = before["rows"] if same else {}
            slide = bench.slide(**size)
            for name, row in measure_memory(bench, slide, arguments.minutes, arguments.only):
                rows[name] = row | {"commit": facts["commit"]}
                results["memory"] = {**facts, **size, "minutes": arguments.minutes, "rows": rows}
                save(results, arguments.output)
        else:
            speed = {**facts, **compare(bench, arguments.side, arguments.rounds)}
            results["speed"] = results.get("speed", {}) | {kind(): speed}
            save(results, arguments.output)


def save(results: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
