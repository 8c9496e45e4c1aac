"""Estimated memory of network calls beside what a process took, and by hand for a small network."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from unetpp.engine.memory import call_bytes
from unetpp.package import bundled_package, load_package

TILE = 640
BENCH = """
import sys
from unetpp.engine.bench import bench
from unetpp.package import bundled_package, load_package
[row] = bench(load_package(bundled_package(sys.argv[1])), engine=sys.argv[2], precision="fp32",
              tiles=[int(sys.argv[3])], seconds=0.1)
print(row.peak_mb)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what the peak was")
@pytest.mark.parametrize(("name", "engine"), [("nuclei", "openvino"), ("nuclei-full", "openvino"), ("nuclei", "torch")])
def test_an_estimate_is_near_what_a_call_takes(name: str, engine: str) -> None:
    command = [sys.executable, "-c", BENCH, name, engine, str(TILE)]
    took = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    estimate = call_bytes(load_package(bundled_package(name)).spec, engine, "fp32", (TILE, TILE), maps=False) / 1e6
    assert 0.6 * estimate <= took <= 1.25 * estimate


def test_maps_and_strips_by_hand() -> None:
    spec = load_package(bundled_package("nuclei")).spec
    spec = dataclasses.replace(spec, architecture=dataclasses.replace(spec.architecture, filters=(8, 16, 32), level=2))
    # X00 8; level 1 two of 16, a quarter each; level 2 32, a sixteenth; X01, X02 and what is between: three of 8.
    whole = 8 + 2 * 16 / 4 + 32 / 16 + 3 * 8
    assert call_bytes(spec, "torch", "fp32", (100, 60), maps=False) == pytest.approx(2.7 * 4 * whole * 6000)
    # Two strips of 256 rows, each with the context of two convolutions a node and the upsampling on one side.
    share = 0.5 + 2 * 6 / 512
    strips = call_bytes(spec, "openvino", "bf16", (512, 10), maps=False)
    assert strips == pytest.approx(1.15 * 3 * (whole - 3 * 8 + 3 * 8 * share) * 5120)
    more = call_bytes(spec, "openvino", "bf16", (512, 10), maps=True)
    assert more - strips == call_bytes(spec, "openvino", "bf16", (512, 10), "d4", maps=False) - strips == 96 * 5120
