"""Peak memory of a whole segmentation, finalize included: it must not grow with the image."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from unetpp.drawing.slide import draw_slide

MOST_GROWTH = 100 * 2**20
SIDES = (4096, 16384)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Drawn slides by their side; the large one has more than 100,000 nuclei."""
    folder = tmp_path_factory.mktemp("slides")
    for side in SIDES:
        draw_slide(folder / f"{side}.tif", folder / "truth.tif", side=side, seed=1)
    return {side: folder / f"{side}.tif" for side in SIDES}


def pss(process: psutil.Process) -> int:
    """Return the proportional set size of a process and all below it, in bytes."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def peak_pss(command: list[str]) -> int:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        watched = psutil.Process(run.pid)
        peak = 0
        while run.poll() is None:
            try:
                peak = max(peak, pss(watched))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        output = run.communicate()[0]
    assert run.returncode == 0, output
    return peak


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_peak_memory_does_not_grow_with_the_image(
    executor: str, slides: dict[int, Path], ink_package: Path, tmp_path: Path
) -> None:
    peaks = {}
    for side, slide in slides.items():
        output = tmp_path / str(side)
        command = [sys.executable, "-m", "unetpp_workflows", "segment", str(slide), "-m", str(ink_package)]
        settings = ["--set", "tracking.enabled=false", "--tissue", "none"]
        peaks[side] = peak_pss([*command, "-o", str(output), "--executor", executor, "--workers", "2", *settings])
        record = json.loads((output / slide.stem / "record.json").read_text())
        objects = record["figures"]["classes"][1]["objects"]
        print(f"{executor} {side}: {peaks[side] / 2**20:.0f} MB, {objects} objects, {record['seconds']}")
    assert objects >= 100_000
    assert peaks[16384] - peaks[4096] <= MOST_GROWTH
