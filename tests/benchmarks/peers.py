"""Runs other libraries' UNet++ on request; imports nothing of unetpp.

    python tests/benchmarks/peers.py --threads 2 --tile tile.npy [--bf16]

Prints one line of JSON with its rows, then answers each line {"row": index, "seconds": s} on its input with one line
{"mpx_s": ...} until the input ends. A row that cannot run answers {"error": ...}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import throughput
from torch import Tensor, nn

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is pretrained, and a benchmark must not wait for a network
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # or importing openvino sends statistics

Labels = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class Row:
    """One network in one engine; `layout` is the memory order of its weights and activations."""

    network: str
    engine: str
    precision: str
    layout: str

    def label(self) -> dict[str, str]:
        return {"network": self.network, "engine": self.engine, "precision": self.precision, "layout": self.layout}


class Tile(nn.Module):
    """What ours does around a network, so that both sides do it: (H, W, 3) uint8 -> (2, H, W) float32 logits."""

    def __init__(self, network: nn.Module, layout: str) -> None:
        super().__init__()
        self.network, self.layout = network, layout
        if layout == "channels_last":
            network.to(memory_format=torch.channels_last)

    def forward(self, tile: Tensor) -> Tensor:
        x = ((tile.to(torch.float32) - 127.5) / 60.0).permute(2, 0, 1)[None]  # a view: channels_last in memory
        logits = self.network(x if self.layout == "channels_last" else x.contiguous())
        return (logits[0] if isinstance(logits, list) else logits)[0]  # MONAI gives a list of heads


def rows(bf16: bool) -> list[Row]:
    """Eager is what these libraries offer; OpenVINO is the same engine as ours, exported by us without tuning."""
    found = []
    for network in NETWORKS:
        found.append(Row(network, "eager", "fp32", "channels_last"))
        if network.startswith("monai"):  # its instance norm is slower in channels_last: it gets its better layout
            found.append(Row(network, "eager", "fp32", "contiguous"))
        found += [Row(network, "openvino", p, "contiguous") for p in (("fp32", "bf16") if bf16 else ("fp32",))]
    return found


def _smp(encoder: str) -> nn.Module:
    _import_torchvision()
    import segmentation_models_pytorch as smp

    return smp.UnetPlusPlus(encoder, encoder_weights=None, in_channels=3, classes=2)


def _monai() -> nn.Module:
    from monai.networks.nets import BasicUNetPlusPlus

    return BasicUNetPlusPlus(spatial_dims=2, in_channels=3, out_channels=2)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "smp UnetPlusPlus resnet34": lambda: _smp("resnet34"),
    "smp UnetPlusPlus mobilenet_v2": lambda: _smp("mobilenet_v2"),
    "monai BasicUNetPlusPlus": _monai,
}


def _import_torchvision() -> None:
    """Import torchvision beside a CPU build of torch.

    smp imports timm, which imports torchvision. The package index offers torchvision built for CUDA only; beside a CPU
    torch its compiled part does not load, and its import then stops because the operators `nms` and `qnms` have no
    schema. Boxes are suppressed in detection, never in these networks: with the two schemas declared, and no code
    behind them, the rest of torchvision imports and is the real one.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)  # the declarations live as long as this object


_LIBRARIES: list[Any] = []


def prepare(row: Row, tile: NDArray[np.uint8], threads: int) -> tuple[Labels, int]:
    """Return the call to time, raw pixels to labels, and the network's number of parameters."""
    torch.manual_seed(0)
    network = NETWORKS[row.network]().eval()
    parameters = sum(p.numel() for p in network.parameters())
    module = Tile(network, row.layout).eval()
    logits = _openvino(module, tile, row.precision, threads) if row.engine == "openvino" else _eager(module)

    def labels() -> NDArray[np.uint8]:
        found = logits(tile)
        return (found[1] > found[0]).astype(np.uint8)

    return labels, parameters


def _eager(module: nn.Module) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    def run(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return module(torch.from_numpy(tile)).numpy()

    return run


def _openvino(
    module: nn.Module, tile: NDArray[np.uint8], precision: str, threads: int
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    import openvino

    example = torch.from_numpy(tile)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of branches on shapes; the tile's is the only one here
        graph = openvino.convert_model(torch.jit.trace(module, example, check_trace=False), example_input=example)
    graph.reshape(list(tile.shape))
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
    return lambda pixels: request.infer([pixels], share_inputs=True, share_outputs=True)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tile", required=True, help="raw pixels (H, W, 3) uint8, .npy")
    parser.add_argument("--bf16", action="store_true", help="the CPU multiplies bf16")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print must not end up among the answers
    torch.set_num_threads(arguments.threads)
    tile = np.load(arguments.tile)
    prepared: list[tuple[dict[str, Any], Labels | None]] = []
    for row in rows(arguments.bf16):
        try:
            call, parameters = prepare(row, tile, arguments.threads)
            call()
            prepared.append(({**row.label(), "parameters": parameters}, call))
        except Exception as error:  # noqa: BLE001  one row that fails must not cost the others
            prepared.append(({**row.label(), "error": f"{type(error).__name__}: {error}"[:300]}, None))
    answers.write(json.dumps([facts for facts, _ in prepared]) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        call_or_none = prepared[request["row"]][1]
        assert call_or_none is not None, "the row has reported an error"
        speed = throughput(call_or_none, tile.shape[0] * tile.shape[1], request["seconds"])
        answers.write(json.dumps({"mpx_s": speed}) + "\n")


if __name__ == "__main__":
    main()
