"""On CPUs of AVX2 alone every feature map stays in one layout, and the result is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetpp.engine.blocked import in_blocks, wants_blocks
from unetpp.engine.openvino import OpenVinoEngine, import_openvino
from unetpp.package import Package, bundled_package
from unetpp.processor import cpu_flags

RUN = """
import sys, json, numpy as np
from unetpp.engine import openvino as module
from unetpp.package import load_package
module.wants_blocks = lambda flags: sys.argv[2] == "blocks"
engine = module.OpenVinoEngine(load_package(sys.argv[1]))
pixels = np.random.default_rng(0).integers(0, 256, (256, 320, 3), np.uint8)
margins = (64, 64, 0, 64)
np.save(sys.argv[3], engine.logits(pixels, margins))
graph = engine._graph("logits", margins, 1).clone()
graph.reshape(list(pixels.shape))
settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
request = engine._core.compile_model(graph, "CPU", settings).create_infer_request()
request.infer([pixels])
print(json.dumps([[p.node_type, p.exec_type] for p in request.get_profiling_info() if p.real_time.total_seconds() > 0]))
"""


def run(folder: Path, how: str, result: Path) -> list[list[str]]:
    """Return (type, kernel) of everything that a CPU without AVX-512 would compute with."""
    found = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), how, str(result)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    kernels: list[list[str]] = json.loads(found.stdout)
    return kernels


@pytest.mark.skipif(not cpu_flags() >= {"avx2", "fma"}, reason="needs a CPU with AVX2")
def test_named_kernels_copy_nothing_and_compute_the_same(tmp_path: Path) -> None:
    folder = bundled_package("nuclei")
    run(folder, "as always", tmp_path / "before.npy")
    after = run(folder, "blocks", tmp_path / "after.npy")
    convolutions = [kernel for kind, kernel in after if kind in ("Convolution", "GroupConvolution")]
    assert len(convolutions) > 20 and all(kernel.startswith(("jit_avx2", "undef")) for kernel in convolutions)
    if wants_blocks(cpu_flags()):
        # The pixels that come in, and the logits that go out. With AVX-512 the limit above does not hold for all that
        # OpenVINO computes: its kernels that enlarge look at the CPU themselves, and stay on channels last.
        assert sum(kind == "Reorder" for kind, _ in after) <= 4
    expected, found = (np.load(tmp_path / name) for name in ("before.npy", "after.npy"))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def exported(package: Package, tmp_path: Path) -> bytes:
    engine = OpenVinoEngine(package)
    graph: Any = engine._graph("labels", (0, 0, 0, 0), 1)
    import_openvino().save_model(graph, str(tmp_path / "graph.xml"), compress_to_fp16=False)
    return (tmp_path / "graph.xml").read_bytes()


@pytest.mark.parametrize(("conv", "named"), [("pw_dw", True), ("dw_pw", False), ("standard", False)])
def test_only_where_two_convolutions_are_one_kernel(
    make_package: Callable[..., Package], tmp_path: Path, conv: str, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetpp.engine.openvino.wants_blocks", lambda flags: False)
    graph = exported(make_package(conv=conv), tmp_path)
    assert b"primitives_priority" not in graph
    found = in_blocks(graph)
    assert (found != graph) == named
    layers = sum(graph.count(f'type="{kind}"'.encode()) for kind in ("Convolution", "GroupConvolution"))
    assert found.count(b"primitives_priority") == (layers if named else 0)


@pytest.mark.parametrize(
    ("flags", "wants"),
    [("fma avx2", True), ("fma avx2 avx_vnni", True), ("fma avx2 avx512f", False), ("avx", False), ("", False)],
)
def test_which_processors(flags: str, wants: bool) -> None:
    assert wants_blocks(frozenset(flags.split())) == wants
