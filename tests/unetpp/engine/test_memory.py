"""Estimated memory of network calls beside what a process took, and by hand for a small network."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from tests.engines import NATIVE, NATIVE_BF16
from unetpp.engine.base import Precision
from unetpp.engine.memory import call_bytes
from unetpp.package import bundled_package, load_package

TILE = 640
BENCH = """
import sys
from unetpp.engine.bench import bench
from unetpp.package import bundled_package, load_package
[row] = bench(load_package(bundled_package(sys.argv[1])), engine=sys.argv[2], precision=sys.argv[3],
              tiles=[int(sys.argv[4])], seconds=0.1)
print(row.peak_mb)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what the peak was")
@pytest.mark.parametrize(
    ("name", "engine", "precision", "least", "most"),
    [
        ("nuclei", "openvino", "fp32", 0.6, 1.25),
        ("nuclei-full", "openvino", "fp32", 0.6, 1.25),
        ("nuclei", "torch", "fp32", 0.6, 1.25),
        *((name, engine, "fp32", 0.8, 1.15) for name in ("nuclei", "nuclei-full") for engine in NATIVE),
        *((name, engine, "bf16", 0.8, 1.15) for name in ("nuclei", "nuclei-full") for engine in NATIVE_BF16),
    ],
)
def test_an_estimate_is_near_what_a_call_takes(
    name: str, engine: str, precision: Precision, least: float, most: float
) -> None:
    command = [sys.executable, "-c", BENCH, name, engine, precision, str(TILE)]
    took = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    estimate = call_bytes(load_package(bundled_package(name)).spec, engine, precision, (TILE, TILE), maps=False) / 1e6
    assert least * estimate <= took <= most * estimate


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_native_takes_more_for_a_higher_tile_only_for_its_pixels(precision: Precision) -> None:
    spec = load_package(bundled_package("nuclei")).spec
    low, high = (call_bytes(spec, "native", precision, (height, 640), maps=False) for height in (640, 6400))
    assert high - low == (6400 - 640) * 640 * (3 + 1)
    wide = call_bytes(spec, "native", precision, (640, 1280), maps=False)
    assert 1.5 * low < wide < 2.1 * low
