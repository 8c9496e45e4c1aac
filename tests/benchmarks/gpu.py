"""Measures the fused kernels on one GPU beside torch: every node, the whole network, memory; writes gpu.json.

    python tests/benchmarks/gpu.py                       everything, about 20 minutes (max-autotune compiles long)
    python tests/benchmarks/gpu.py --parts copy network  some parts; the others keep their earlier figures

Needs torch, triton and this repository on the path, nothing else. One run holds all that is compared: per shape, ours
and every baseline take turns. Medians of CUDA-event times, caches flushed between calls; batches leave the L2 cache.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.model.deploy import Deployed, deploy
from unetpp.model.fold import fold
from unetpp.model.order import Step
from unetpp_kernels import forced

RESULT = Path(__file__).with_name("gpu.json")
PARTS = ("copy", "nodes", "network", "peers")
MEAN, STD = (120.0,) * 3, (60.0,) * 3
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SIDE = 512


def median_ms(call: Callable[[], object], rep: int = 200) -> float:
    """Return the median time of a call in milliseconds."""
    return float(triton.testing.do_bench(call, warmup=50, rep=rep, return_mode="median"))


def copy_bandwidth() -> dict[str, Any]:
    """Bytes read and written per second by a plain copy of 2 GiB: what "share of bandwidth" is a share of."""
    source = torch.empty(2**30, dtype=torch.float16, device="cuda")
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source))
    return {"gb_s": round(2 * source.numel() * 2 / ms / 1e6, 1), "bytes": 2 * source.numel() * 2}


class Traffic(TorchDispatchMode):
    """Adds up the bytes that our operators must move: each input once, each result once, weights left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.namespace == "unetpp":
            maps = [t for t in _tensors(args) if t.dim() == 4] + [found]
            self.bytes += sum(t.numel() * t.element_size() for t in maps)
        return found


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def networks(conv: str, dtype: torch.dtype) -> tuple[nn.Module, Deployed]:
    """Return the folded network in torch, channels_last, and the same one deployed."""
    torch.manual_seed(0)
    model = UNetPlusPlus(GridConfig(conv=conv, deep_supervision=False)).eval()  # type: ignore[arg-type]
    deployed = deploy(model, mean=MEAN, std=STD, values=(0, 1), dtype=dtype).cuda()
    plain = fold(model).to("cuda", dtype).to(memory_format=torch.channels_last)
    return plain.requires_grad_(False), deployed


def nodes(conv: str, kind: str, batch: int, copy_gb_s: float, autotune: bool) -> list[dict[str, Any]]:
    """Time every node of the network at its level's size."""
    plain, deployed = networks(conv, DTYPES[kind])
    widths = GridConfig().filters
    rows = []
    for step in deployed.order[1:]:
        i = step.node[0]
        side = SIDE >> i
        sources, low = _inputs(step, widths, batch, side, DTYPES[kind])
        ours, theirs = deployed.nodes[step.key], plain.nodes[step.key]  # type: ignore[index]
        call = lambda node=ours, s=sources, x=low: node.finish(node.start(s, x))  # type: ignore[misc]  # noqa: E731

        def torch_call(node: Any = theirs, s: Any = sources, x: Any = low, pooled: bool = step.pooled) -> Tensor:
            inputs = [torch.nn.functional.max_pool2d(m, 2) for m in s] if pooled else s
            with forced("torch"):
                found: Tensor = node(inputs, x)
            return found

        traffic = Traffic()
        with traffic:
            expected = torch_call()
            found = call()
        error = float((found.double() - expected.double()).norm() / expected.double().norm())
        times = {"ours": median_ms(call), "eager": median_ms(torch_call)}
        times["eager nchw"] = median_ms(_contiguous(torch_call, theirs, sources, low))
        times["compile"] = median_ms(torch.compile(torch_call))
        if autotune:
            times["max-autotune"] = median_ms(torch.compile(torch_call, mode="max-autotune-no-cudagraphs"))
        gb_s = traffic.bytes / times["ours"] / 1e6
        best = min(value for name, value in times.items() if name != "ours")
        rows.append(
            {
                "conv": conv,
                "dtype": kind,
                "node": f"X{step.node[0]},{step.node[1]}",
                "shape": [batch, widths[i], side, side],
                "ms": {name: round(value, 4) for name, value in times.items()},
                "gb_s": round(gb_s, 1),
                "share_of_copy": round(gb_s / copy_gb_s, 3),
                "vs_best": round(best / times["ours"], 2),
                "difference_from_eager": error,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        torch._dynamo.reset()
    return rows


def _contiguous(
    call: Callable[..., Tensor], node: nn.Module, sources: list[Tensor], low: Tensor | None
) -> Callable[[], Tensor]:
    """Return the same call in the other memory layout, which cuDNN's depthwise kernels sometimes prefer."""
    other = copy.deepcopy(node).to(memory_format=torch.contiguous_format)
    plain = [s.contiguous() for s in sources]
    small = None if low is None else low.contiguous()
    return lambda: call(node=other, s=plain, x=small)


def _inputs(
    step: Step, widths: tuple[int, ...], batch: int, side: int, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor | None]:
    def random(channels: int, pixels: int) -> Tensor:
        made = torch.randn(batch, channels, pixels, pixels, device="cuda", dtype=dtype).relu_()
        return made.contiguous(memory_format=torch.channels_last)

    i = step.node[0]
    scale = 2 if step.pooled else 1
    sources = [random(widths[name[0]], side * scale) for name in step.sources]
    return sources, None if step.low is None else random(widths[i + 1], side // 2)


def network(conv: str, kind: str, batch: int, autotune: bool) -> dict[str, Any]:
    """Time the forward pass from uint8 pixels to uint8 classes, in a CUDA graph, beside torch in its best forms."""
    plain, deployed = networks(conv, DTYPES[kind])
    pixels = torch.randint(0, 256, (batch, SIDE, SIDE, 3), dtype=torch.uint8, device="cuda")
    mean, std = torch.tensor(MEAN, device="cuda"), torch.tensor(STD, device="cuda")

    def torch_call() -> Tensor:
        x = ((pixels.to(torch.float32) - mean) / std).permute(0, 3, 1, 2).to(DTYPES[kind])
        with forced("torch"):
            return plain(x).argmax(1).to(torch.uint8)  # type: ignore[no-any-return]

    calls: dict[str, Callable[[], Any]] = {"ours": _graph(lambda: deployed(pixels)), "eager": torch_call}
    calls["compile"] = torch.compile(torch_call)
    if autotune:
        calls["max-autotune"] = torch.compile(torch_call, mode="max-autotune")
    agree = float((deployed(pixels) == torch_call()).double().mean())
    row: dict[str, Any] = {"conv": conv, "dtype": kind, "shape": list(pixels.shape), "agreement_with_eager": agree}
    row["ms"], row["peak_mb"] = {}, {}
    for name, call in calls.items():
        call()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        row["peak_mb"][name] = round(torch.cuda.max_memory_allocated() / 1e6)
        row["ms"][name] = round(median_ms(call, 500), 3)
    row["mpx_s"] = {name: round(batch * SIDE * SIDE / ms / 1e3, 1) for name, ms in row["ms"].items()}
    print(json.dumps(row), flush=True)
    torch._dynamo.reset()
    return row


def _graph(call: Callable[[], Tensor]) -> Callable[[], Any]:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def peers(batch: int) -> list[dict[str, Any]]:
    """Time other libraries' UNet++ where they import; what does not is named."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "smp UnetPlusPlus resnet34": lambda: _smp("resnet34"),
        "smp UnetPlusPlus mobilenet_v2": lambda: _smp("mobilenet_v2"),
        "monai BasicUNetPlusPlus": _monai,
    }
    rows = []
    for name, make in makers.items():
        try:
            model = make().eval().cuda().half().to(memory_format=torch.channels_last)
        except ImportError as error:
            rows.append({"network": name, "not_measured": str(error)})
            continue
        x = torch.randn(batch, 3, SIDE, SIDE, device="cuda", dtype=torch.float16)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            ms = median_ms(lambda m=model, x=x: m(x), 500)  # type: ignore[misc]
        rows.append({"network": name, "ms": round(ms, 3), "mpx_s": round(batch * SIDE * SIDE / ms / 1e3, 1)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _smp(encoder: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.UnetPlusPlus(encoder, encoder_weights=None, in_channels=3, classes=2)  # type: ignore[no-any-return]


def _monai() -> nn.Module:
    from monai.networks.nets import BasicUNetPlusPlus

    return BasicUNetPlusPlus(spatial_dims=2, in_channels=3, out_channels=2)  # type: ignore[no-any-return]


def provenance() -> dict[str, Any]:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True, cwd=RESULT.parent).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = os.environ.get("UNETPP_COMMIT", "unknown")
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "memory_gib": round(properties.total_memory / 2**30),
        "capability": f"{properties.major}.{properties.minor}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python " + " ".join(["tests/benchmarks/gpu.py", *sys.argv[1:]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, default=32, help="images of 512 x 512 per call")
    parser.add_argument("--no-autotune", action="store_true", help="leave max-autotune out: it compiles for minutes")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing to measure")
    torch.backends.cudnn.benchmark = True
    found = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    found.update(provenance())
    autotune = not arguments.no_autotune
    with torch.no_grad():
        for part in arguments.parts:
            if part == "copy" or "copy" not in found:
                found["copy"] = copy_bandwidth()
            if part == "nodes":
                kinds = [(conv, kind) for conv in ("pw_dw", "dw_pw") for kind in DTYPES]
                found["nodes"] = [
                    row
                    for conv, kind in kinds
                    for row in nodes(conv, kind, arguments.batch, found["copy"]["gb_s"], autotune)
                ]
            if part == "network":
                kinds = [(conv, kind) for conv in ("pw_dw", "dw_pw") for kind in DTYPES]
                found["network"] = [network(conv, kind, arguments.batch, autotune) for conv, kind in kinds]
            if part == "peers":
                found["peers"] = peers(arguments.batch)
            # Written after every part: a time limit keeps what was measured.
            arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if "network" in found:
        best = max(found["network"], key=lambda row: float(row["mpx_s"]["ours"]))
        ratios = {name: round(best["mpx_s"]["ours"] / value, 2) for name, value in best["mpx_s"].items()}
        spread = statistics.median(row["share_of_copy"] for row in found.get("nodes", [{"share_of_copy": 0}]))
        print(f"best network: {best['conv']} {best['dtype']} {best['mpx_s']['ours']} Mpx/s; ours / others {ratios}; "
              f"median share of copy bandwidth over nodes {spread:.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
