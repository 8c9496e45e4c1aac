"""What OpenVINO adds to an engine: its graphs, who runs them at once, and the memory that waits for the next call."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import unetpp.engine.exporter
import unetpp.engine.openvino
from unetpp.engine import choose_engine
from unetpp.engine.network import tile_networks
from unetpp.engine.rewrite import split_concatenations
from unetpp.errors import BandsError
from unetpp.package import Package, load_package


@pytest.fixture(scope="module")
def package(make_package: Callable[..., Package]) -> Package:
    return make_package()


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.filterwarnings("error")
def test_openvino_takes_arrays_that_must_not_be_written_to(package: Package) -> None:
    image = picture(32, 32)
    image.setflags(write=False)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch would warn of them once per process
    try:
        choose_engine(package, name="openvino", precision="fp32", tta="flips").labels(image)
    finally:
        torch.set_warn_always(before)


def test_openvino_gives_the_same_bits_for_any_threads_and_callers(package: Package) -> None:
    image = picture(200, 232)
    one = choose_engine(package, name="openvino", precision="auto", threads=1)
    two = choose_engine(package, name="openvino", precision="auto", threads=2)
    expected = one.logits(image)
    np.testing.assert_array_equal(two.logits(image), expected)
    with ThreadPoolExecutor(3) as pool:
        for logits in pool.map(lambda _: one.logits(image), range(9)):
            np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(
    "config", [{}, {"conv": "dw_pw", "classes": 1}, {"network": "unet", "upsample": "deconv"}], ids=str
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_graphs_are_those_of_openvinos_own_converter(
    make_package: Callable[..., Package], config: dict[str, Any], dtype: str
) -> None:
    openvino = unetpp.engine.openvino.import_openvino()
    package = make_package(**config, spec={"dtype": dtype, "name": "converted"})
    network = tile_networks(package.load_model(), package.spec)["labels"]
    example = torch.zeros(32, 48, 3, dtype=getattr(torch, dtype))
    traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    ours = unetpp.engine.exporter.converted(traced, example)
    theirs = openvino.convert_model(traced, example_input=example, input=[-1, -1, 3])
    del traced, network
    kinds = [[node.get_type_name() for node in graph.get_ordered_ops()] for graph in (ours, theirs)]
    assert kinds[0] == kinds[1] and ours.inputs[0].get_partial_shape() == theirs.inputs[0].get_partial_shape()
    image = picture(64, 96).astype(dtype)
    found, expected = (openvino.compile_model(graph, "CPU")([image])[0] for graph in (ours, theirs))
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1


def test_openvino_compiles_once_per_shape_and_concurrent_call(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unetpp.engine.openvino, "_COMPILED_SHAPES", 4)
    engine = unetpp.engine.openvino.OpenVinoEngine(package)
    compiled: list[tuple[int, int]] = []
    compile_one = engine._compile

    def counted(output: Any, shape: tuple[int, int], margins: Any) -> Any:
        compiled.append(shape)
        return compile_one(output, shape, margins)

    engine._compile = counted  # type: ignore[method-assign]
    shapes = [(64, 64), (64, 96), (96, 64), (32, 96)]
    for shape in (*shapes, *shapes):
        with ThreadPoolExecutor(1) as pool:  # a new thread each time
            pool.submit(engine.labels, picture(*shape)).result()
    assert compiled == shapes
    engine.labels(picture(96, 96))  # the fifth shape takes the place of the one not used longest
    engine.labels(picture(64, 96))
    assert compiled == [*shapes, (96, 96)]
    engine.labels(picture(64, 64))
    assert compiled[5:] == [(64, 64)]
    broken = np.zeros((64, 64, 2), np.uint8)
    for _ in range(3):
        with pytest.raises(BandsError):
            engine.labels(broken)
    engine.labels(picture(64, 64))
    assert compiled[6:] == []


def test_openvino_gives_the_same_bits_in_another_process(package: Package) -> None:
    script = (
        "import sys, hashlib, numpy as np\n"
        "from unetpp.engine import choose_engine\n"
        "from unetpp.package import load_package\n"
        "image = np.random.default_rng(0).integers(0, 256, (77, 90, 3), dtype=np.uint8)\n"
        "engine = choose_engine(load_package(sys.argv[1]), name='openvino', precision='auto')\n"
        "assert 'openvino_telemetry.main' not in sys.modules\n"
        "print(hashlib.sha256(engine.logits(image).tobytes()).hexdigest())\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(package.folder)],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )  # fmt: skip
    logits = choose_engine(package, name="openvino", precision="auto").logits(picture(77, 90))
    assert hashlib.sha256(logits.tobytes()).hexdigest() == other.stdout.strip()


FIRST_CALLS = """
import os, sys, threading
sys.modules["openvino_telemetry"] = None
import openvino
from unetpp.engine.openvino import import_openvino
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)
def call():
    start.wait()
    import_openvino().Type.u8.to_dtype()
threads = [threading.Thread(target=call, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_first_calls_of_several_threads_do_not_wait_for_each_other_for_ever() -> None:
    for _ in range(6):  # without the care of import_openvino every second process stood still
        subprocess.run([sys.executable, "-c", FIRST_CALLS], check=True, timeout=60)


IDLE = """
import numpy as np, psutil
from unetpp.engine.openvino import OpenVinoEngine
from unetpp.package import bundled_package, load_package
engine = OpenVinoEngine(load_package(bundled_package("nuclei")))
tile = np.random.default_rng(0).integers(0, 256, (768, 768, 3), np.uint8)
inner, edge = (64, 64, 64, 64), (0, 64, 64, 64)
def used():
    return psutil.Process().memory_full_info().uss >> 20
before = used()
first = engine.labels(tile, inner)
one = used() - before
engine.labels(tile, edge)
two = used() - before
again = engine.labels(tile, inner)
engine.release()
print(one, two, used() - before, int((first != again).sum()))
"""


def test_openvino_keeps_the_buffers_of_one_graph_per_concurrent_call() -> None:
    run = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True)
    one, two, idle, changed = map(int, run.stdout.split())
    assert changed == 0
    assert one >= 200, "the tile is too small to tell"
    assert two < 1.5 * one, f"{one} MB with one graph, {two} with two"
    assert idle < 0.6 * one, f"{one} MB with one graph, {idle} after release"


def test_results_stay_valid_after_the_next_call(package: Package) -> None:
    engine = choose_engine(package, name="openvino", precision="fp32")
    first = engine.labels(picture(32, 32))
    kept = first.copy()
    engine.labels(picture(32, 32, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_engines_are_made_inside_inference_mode_too(package: Package) -> None:
    with torch.inference_mode():
        logits = choose_engine(load_package(package.folder), name="openvino", precision="fp32").logits(picture(8, 8))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw"])
def test_the_rewritten_graph_concatenates_nothing_and_computes_the_same(
    make_package: Callable[..., Package], conv: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = make_package(conv=conv)
    counts: list[int] = []
    concatenations: list[int] = []

    def rewrite(graph: Any) -> int:
        counts.append(split_concatenations(graph))
        parameter = graph.inputs[0].get_node()
        graph.reshape([32, 32, parameter.get_partial_shape()[2].get_length()])
        concatenations.append(len(reachable_concatenations(graph)))
        graph.reshape([-1, -1, 3])
        return counts[-1]

    image = picture(48, 48)
    monkeypatch.setenv("UNETPP_HOME", str(tmp_path / "split"))
    monkeypatch.setattr(unetpp.engine.exporter, "split_concatenations", rewrite)
    split = choose_engine(package, name="openvino", precision="fp32").logits(image)
    monkeypatch.setenv("UNETPP_HOME", str(tmp_path / "plain"))
    monkeypatch.setattr(unetpp.engine.exporter, "split_concatenations", lambda graph: 0)
    plain = choose_engine(package, name="openvino", precision="fp32").logits(image)
    assert counts[0] > 0 and concatenations == [0]
    assert np.abs(split - plain).max() <= 1e-5 * np.abs(plain).max()


def reachable_concatenations(graph: Any) -> list[Any]:
    """Return the channel concatenations that still feed the result."""
    return [
        node
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "Concat" and len(node.output(0).get_partial_shape()) == 4
    ]
