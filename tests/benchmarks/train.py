"""Measures one training step of our networks beside other libraries' UNet++, in one run; writes train.json.

    make bench-train        (makes .venv-peers, runs this in it and updates the README)
    python tests/benchmarks/train.py [--rounds 3] [--steps 3] [--output FILE]

A step is forward, cross-entropy + Dice, backward and AdamW on random patches, the same for every row; ours minimises
the mean over four heads (deep supervision), the others over the one they have. Every row and round is a process of its
own, so that its peak memory is its own. On a machine with a GPU the rows run there instead.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).parent
RESULT = HERE / "train.json"
OURS = ("pw_dw", "dw_pw", "standard")
CLASSES = 2


def rows() -> list[dict[str, str]]:
    from peers import NETWORKS

    found = [{"network": order, "layout": "channels_last"} for order in OURS]
    # MONAI's instance norm is slower in channels_last: it gets its better layout.
    layouts = {name: "contiguous" if name.startswith("monai") else "channels_last" for name in NETWORKS}
    found += [{"network": name, "layout": layout} for name, layout in layouts.items()]
    return [{**row, "precision": precision} for precision in ("fp32", "bf16") for row in found]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in OURS:
        from unetpp.model import GridConfig, UNetPlusPlus

        return Heads(UNetPlusPlus(GridConfig(classes=CLASSES, conv=name)))
    from peers import NETWORKS

    return NETWORKS[name]()


class Heads(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.network.heads(x))


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy + Dice over the batch, in plain torch, for both sides."""
    logits = logits.float()
    probability = logits.softmax(1)
    truth = F.one_hot(target, CLASSES).permute(0, 3, 1, 2).float()
    overlap, size = (probability * truth).sum((0, 2, 3)), (probability + truth).sum((0, 2, 3))
    return F.cross_entropy(logits, target) + (1 - (2 * overlap + 1) / (size + 1)).mean()


def run_row(row: dict[str, str], batch: int, side: int, steps: int, threads: int) -> dict[str, Any]:
    """Train one network for a few steps in this process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    network = build(row["network"]).to(device).train()
    layout = torch.channels_last if row["layout"] == "channels_last" else torch.contiguous_format
    network = network.to(memory_format=layout)
    optimizer = torch.optim.AdamW(network.parameters())
    pixels = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=layout)
    target = torch.randint(0, CLASSES, (batch, side, side), device=device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=row["precision"] == "bf16"):
            outputs = network(pixels)
        heads = outputs if isinstance(outputs, list) else [outputs]
        optimizer.zero_grad()
        torch.stack([loss(head, target) for head in heads]).mean().backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "seconds": statistics.median(seconds),
        "peak_mb": round(torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else peak * 1024 / 1e6),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def provenance() -> dict[str, Any]:
    system = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    names = [line.split(":")[1].strip() for line in system.splitlines() if line.startswith("model name")]
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=True, cwd=HERE)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "command": " ".join(["make bench-train", *(["with", *sys.argv[1:]] if sys.argv[1:] else [])]),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else names[0] if names else "unknown",
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "segmentation_models_pytorch", "timm", "monai")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    settings = {name: getattr(asked, name) for name in ("batch", "side", "steps", "threads")}
    if asked.row is not None:
        print(json.dumps(run_row(asked.row, **settings)))
        return
    load_before = os.getloadavg()[0]
    measured: list[dict[str, Any]] = rows()
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    for number in range(asked.rounds):
        for row in measured:
            label = {name: row[name] for name in ("network", "layout", "precision")}
            command = [sys.executable, __file__, *options, "--row", json.dumps(label)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                row["error"] = (ended.stderr.strip().splitlines() or ["no message"])[-1][:300]
                continue
            found = json.loads(ended.stdout.strip().splitlines()[-1])
            row.setdefault("seconds_all", []).append(round(found["seconds"], 4))
            row["seconds"] = statistics.median(row["seconds_all"])
            row["peak_mb"] = max(row.get("peak_mb", 0), found["peak_mb"])
            row["parameters"] = found["parameters"]
            print(f"round {number + 1}: {label} {found['seconds']:.2f} s, {found['peak_mb']} MB", flush=True)
    result = {
        **provenance(),
        "load_before": round(load_before, 2),
        "settings": {**settings, "rounds": asked.rounds},
        "rows": measured,
    }
    asked.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
