"""Our network in every convolution order and every engine of cpu.py, those that unetpp does not offer included."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetpp.engine import choose_engine
from unetpp.engine.base import pad_tile
from unetpp.engine.network import TileNetwork, tile_networks
from unetpp.engine.openvino import import_openvino
from unetpp.model import UNetPlusPlus
from unetpp.native.support import WHOLE, why_no_cpu
from unetpp.package import Package, bundled_package, load_package, save_package
from unetpp.processor import cpu_has_bf16

Pixels = NDArray[np.uint8]
ORDERS = ("pw_dw", "dw_pw", "standard")
WEIGHTS = {
    "pw_dw": "bundled nuclei",
    "dw_pw": "random, BatchNorm statistics from the images",
    "standard": "bundled nuclei, multiplied out",
}


class Runner(Protocol):
    """The part of `unetpp.engine.Engine` that is measured: logits for the error, labels for the speed."""

    def logits(self, tile: Pixels) -> NDArray[np.float32]: ...

    def labels(self, tile: Pixels) -> Pixels: ...


class FunctionRunner:
    """An engine that unetpp does not offer: a function from raw pixels to two logits."""

    def __init__(self, function: Callable[[Pixels], NDArray[np.float32]]) -> None:
        self._function = function

    def logits(self, tile: Pixels) -> NDArray[np.float32]:
        return np.array(self._function(tile))

    def labels(self, tile: Pixels) -> Pixels:
        found = self._function(tile)
        return (found[1] > found[0]).astype(np.uint8)


def package(order: str, images: Sequence[Pixels], folder: Path) -> Package:
    """Save the bundled nuclei model, rewritten to another order of convolutions, as a package below `folder`.

    A pointwise and a following depthwise convolution are one standard convolution, so that `standard` computes the
    very function of the bundled weights. `dw_pw` cannot: it gets random weights.
    """
    nuclei = load_package(bundled_package("nuclei"))
    spec = dataclasses.replace(
        nuclei.spec, name=order, architecture=dataclasses.replace(nuclei.spec.architecture, conv=order)
    )
    torch.manual_seed(0)
    network = UNetPlusPlus(spec.architecture)
    if order == "dw_pw":
        _settle_norms(network, images, spec.mean, spec.std)
    else:
        weights = nuclei.load_model().state_dict()
        network.load_state_dict(weights if order == "pw_dw" else multiplied_out(weights))
    return save_package(folder / order, network, spec, "Made for a benchmark.\n")


def multiplied_out(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `pw_dw` weights as those of the equal `standard` network: w[o, c, y, x] = dw[o, y, x] * pw[o, c]."""
    found = {name: value for name, value in weights.items() if not name.endswith((".pointwise", ".depthwise"))}
    for name, pointwise in weights.items():
        if name.endswith(".pointwise"):
            unit = name.removesuffix(".pointwise")
            found[f"{unit}.standard"] = pointwise * weights[f"{unit}.depthwise"]
    return found


@torch.no_grad()
def _settle_norms(network: UNetPlusPlus, images: Sequence[Pixels], mean: Sequence[float], std: Sequence[float]) -> None:
    """Average BatchNorm's statistics over images; with the initial ones, activations would be unlike any real ones."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average over all batches
    network.train()
    for image in images:
        x = (torch.from_numpy(image).float() - torch.tensor(mean)) / torch.tensor(std)
        network(x.permute(2, 0, 1)[None])
    network.eval()


def engine_names() -> list[tuple[str, str]]:
    """List (engine, precision) of every row; a precision only where the CPU multiplies it."""
    bf16 = cpu_has_bf16()
    return [
        *(("native", name) for name in ("fp32", "bf16", *WHOLE) if why_no_cpu(name) is None),
        ("openvino", "fp32"),
        *([("openvino", "bf16")] if bf16 else []),
        ("openvino", "int8"),
        ("onnxruntime", "fp32"),
        ("torch.compile", "fp32"),
        ("torch", "fp32"),
        *([("torch", "bf16")] if bf16 else []),
    ]


def build(
    source: Package, engine: str, precision: str, *, threads: int, side: int, calibration: Sequence[Pixels]
) -> Runner:
    """Return the network in one engine; those that fix their shape are made for tiles of `side`."""
    if (engine, precision) == ("openvino", "int8"):
        return openvino_int8(source, calibration, threads)
    if engine in ("native", "openvino", "torch"):
        return choose_engine(source, name=engine, precision=precision, threads=threads)
    network = _logits_network(source)
    return _onnx_runtime(network, side, threads) if engine == "onnxruntime" else _compiled(network)


def _logits_network(source: Package) -> TileNetwork:
    return tile_networks(source.load_model(), source.spec)["logits"]


def openvino_int8(source: Package, calibration: Sequence[Pixels], threads: int) -> FunctionRunner:
    """Quantise weights and activations after training (NNCF): one range per tensor, seen on the calibration images.

    The graph keeps its concatenations: split ones, which help bf16, put an unfused int8 sum behind every part. What
    stays in floating point runs in bf16 where the CPU has it.
    """
    openvino = import_openvino()  # before nncf, which then finds no way to send usage statistics either
    import nncf

    nncf.set_log_level(logging.ERROR)
    bands, multiple = len(source.spec.bands), source.spec.architecture.multiple
    example = torch.zeros(16 * multiple, 16 * multiple, bands, dtype=torch.uint8)
    network = _logits_network(source)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of branches on shapes, which are "needs no padding" here
        traced = torch.jit.trace(network, example, check_trace=False)
        graph = openvino.convert_model(traced, example_input=example, input=[-1, -1, bands])
    graph.reshape(list(calibration[0].shape))
    quantised = nncf.quantize(
        graph, nncf.Dataset(calibration), subset_size=len(calibration), preset=nncf.QuantizationPreset.MIXED
    )
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if cpu_has_bf16() else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    core, requests = openvino.Core(), {}

    def run(tile: Pixels) -> NDArray[np.float32]:
        height, width = tile.shape[:2]
        pixels = np.ascontiguousarray(pad_tile(tile, multiple))
        if pixels.shape not in requests:
            requests.clear()  # one shape's buffers at a time
            shaped = quantised.clone()
            shaped.reshape(list(pixels.shape))
            requests[pixels.shape] = core.compile_model(shaped, "CPU", settings).create_infer_request()
        result = requests[pixels.shape].infer([pixels], share_inputs=True, share_outputs=True)[0]
        return result[:, :height, :width]

    return FunctionRunner(run)


def _onnx_runtime(network: TileNetwork, side: int, threads: int) -> FunctionRunner:
    import onnxruntime

    example = torch.zeros(side, side, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter through the tracer is deprecated; the other needs onnxscript
        path = Path(folder) / "network.onnx"
        torch.onnx.export(network, (example,), path, dynamo=False, input_names=["tile"], output_names=["logits"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return FunctionRunner(lambda tile: session.run(None, {"tile": tile})[0])


def _compiled(network: TileNetwork) -> FunctionRunner:
    # Freezing makes constants of the weights, which the folded network allows and which is its faster form.
    function = torch.compile(network, dynamic=False, options={"freezing": True})

    def run(tile: Pixels) -> NDArray[np.float32]:
        with torch.inference_mode():
            return function(torch.from_numpy(tile)).numpy()

    return FunctionRunner(run)
