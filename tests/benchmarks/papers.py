"""Repeats the UNet++ papers' comparisons on nuclei and EM with one recipe for every network; writes papers.json.

    make papers                                    (hours on a CPU; each finished run is kept, run again to continue)
    python tests/benchmarks/papers.py --sets nuclei --networks unet plusplus --seeds 0 --minutes 9

Protocol (Zhou et al. 2018 and 2020): images are split once, nuclei 50/20/30 by image (papers_nuclei.json, drawn from a
fixed seed), EM 24/3/3 by blocks of sections; networks see windows of 96 x 96 px and are judged on the test images'
windows of 96 px at steps of 32. The papers do not say which "IoU" they print, so three are given: that of the class,
pooled over all windows' pixels; the mean of the windows' own (1 where neither side has any); and the mean over the
class and its background, which the authors' published training code shows. EM's class is the cell interior. Needs
UNETPP_DATA.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from typed import typed

from unetpp.model import GridConfig, UNet, UNetPlusPlus
from unetpp.train import ArraySource, AugmentConfig, TrainConfig, fit

HERE = Path(__file__).parent
RESULT, SPLIT = HERE / "papers.json", HERE / "papers_nuclei.json"
WINDOW, STRIDE = 96, 32
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"kind": "unet", "conv": "standard"},
    "plusplus": {"conv": "standard", "deep_supervision": False},
    "plusplus_ds": {"conv": "standard"},
    "plusplus_dw_pw": {"conv": "dw_pw"},
    "plusplus_pw_dw": {"conv": "pw_dw"},
}
MEANS = ("iou", "window_iou", "both_iou", "train_seconds", "seconds")
TARGETS = {"nuclei": 92.4, "em": 89.0}
Images = list[tuple[str, str, NDArray[np.uint8], NDArray[np.uint8], None]]


def nuclei(root: Path) -> dict[str, Images]:
    """The 564 images of dsb2018 that are here, split 50/20/30 by image."""
    split = json.loads(SPLIT.read_text(encoding="utf-8"))
    found: dict[str, Images] = {}
    for part, names in split.items():
        found[part] = []
        for name in names:
            pixels = np.array(Image.open(root / f"dsb2018/images/{name}.png").convert("RGB"))
            labels = np.array(Image.open(root / f"dsb2018/labels/{name}.png"))
            found[part].append((name, part, pixels, (labels > 0).astype(np.uint8), None))
    return found


def em(root: Path) -> dict[str, Images]:
    """Sections 0-23, 24-26 and 27-29 of ISBI 2012; class 1 is the interior."""
    parts = {"train": range(24), "val": range(24, 27), "test": range(27, 30)}
    found: dict[str, Images] = {}
    for part, sections in parts.items():
        found[part] = []
        for number in sections:
            pixels = np.array(Image.open(root / f"em_isbi2012/train/image/{number:02d}.png").convert("RGB"))
            labels = np.array(Image.open(root / f"em_isbi2012/train/label/{number:02d}.png").convert("L"))
            found[part].append((f"{number:02d}", part, pixels, (labels > 127).astype(np.uint8), None))
    return found


SETS = {"nuclei": nuclei, "em": em}


def write_split(root: Path) -> None:
    """Draw the nuclei split once; the file is committed."""
    names = sorted(path.stem for path in (root / "dsb2018/images").glob("*.png"))
    order = np.random.default_rng(2018).permutation(len(names))
    cuts = [round(len(names) * share) for share in (0.5, 0.7)]
    parts = {"train": order[: cuts[0]], "val": order[cuts[0] : cuts[1]], "test": order[cuts[1] :]}
    SPLIT.write_text(json.dumps({k: sorted(names[i] for i in v) for k, v in parts.items()}, indent=0) + "\n")


def build(switches: dict[str, Any]) -> UNet | UNetPlusPlus:
    values = {name: value for name, value in switches.items() if name != "kind"}
    return (UNet if switches.get("kind") == "unet" else UNetPlusPlus)(GridConfig(**values))


def multiply_adds(network: UNet | UNetPlusPlus) -> int:
    """Return the multiply-adds of one window, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, WINDOW, WINDOW))
    return counter.get_total_flops() // 2


def windows(labels: NDArray[Any]) -> list[tuple[slice, slice]]:
    """Return the windows of an image; one smaller than a window is one window of its own size."""
    starts = [range(0, max(1, size - WINDOW + 1), STRIDE) for size in labels.shape[-2:]]
    return [(slice(y, y + WINDOW), slice(x, x + WINDOW)) for y in starts[0] for x in starts[1]]


@torch.no_grad()
def judge(network: UNet | UNetPlusPlus, test: Images, mean: Any, std: Any, device: str) -> dict[str, Any]:
    """Predict every window on its own, as the papers do, and return the IoUs in percent, with counts per image."""
    network.to(device).eval()
    counts, own, seconds = [], [], 0.0
    for _, _, pixels, labels, _ in test:
        parts = windows(labels)
        normal = (pixels.astype(np.float32) - mean) / std
        batch = torch.from_numpy(np.stack([normal[part] for part in parts])).permute(0, 3, 1, 2).to(device)
        began = time.perf_counter()
        found = torch.cat([network(piece).argmax(1) for piece in batch.split(16)]).bool().cpu().numpy()
        seconds += time.perf_counter() - began
        truth = np.stack([labels[part] for part in parts]).astype(bool)
        both = (found & truth).sum((1, 2)).astype(np.float64)
        either = (found | truth).sum((1, 2)).astype(np.float64)
        own += list(np.where(either > 0, both / np.maximum(either, 1), 1.0))
        counts.append([int(both.sum()), int(either.sum()), truth.size])
    return {**pooled(counts), "window_iou": 100 * statistics.mean(own), "counts": counts, "seconds": seconds}


def pooled(counts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return the IoU of the class, and the mean of it and the background's, in percent.

    Args:
        counts: per image: pixels where truth and prediction agree on the class, where either has it, and all.
    """
    shared, union, pixels = np.array(counts).sum(0)
    iou = 100 * shared / union
    return {"iou": iou, "both_iou": (iou + 100 * (pixels - union) / (pixels - shared)) / 2}


def run(
    name: str, switches: dict[str, Any], data: dict[str, Images], seed: int, asked: argparse.Namespace
) -> dict[str, Any] | None:
    """Train and judge one network; None where the time is up."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    network = build(switches)
    values = np.concatenate([pixels.reshape(-1, 3) for _, _, pixels, _, _ in data["train"]]).astype(np.float64)
    mean, std = values.mean(0), values.std(0)
    config = TrainConfig(
        steps=asked.steps, batch=16, patch=WINDOW, rate=1e-3, warmup=100, ema=0.99, balance=1.0,
        validate_every=max(1, asked.steps // 8), seed=seed, threads=asked.threads,
        augment=AugmentConfig(scale=(1.0, 1.0), rotate=0.0, gamma=0.1, gain=0.1, offset=0.02, tint=0.0,
                              saturation=(1.0, 1.0), blur=0.0, noise=0.0),
    )  # fmt: skip
    folder = asked.work / f"{name}-{seed}-{asked.steps}"
    folder.mkdir(parents=True, exist_ok=True)
    result = fit(
        network, ArraySource(data["train"], 2), ArraySource(data["val"], 2), config, mean=list(mean), std=list(std),
        folder=folder, device=device, seconds=asked.deadline - time.monotonic(),
        on_step=lambda step, loss: print(f"{name} seed {seed} step {step} loss {loss:.3f}", flush=True)
        if step % 100 == 0 else None,
    )  # fmt: skip
    if not result.finished or result.best is None:
        return None
    network.load_state_dict(result.weights)
    judged = judge(network, data["test"], mean.astype(np.float32), std.astype(np.float32), device)
    print(f"{name} seed {seed}: IoU {judged['iou']:.2f}, mean of windows {judged['window_iou']:.2f}", flush=True)
    return {
        "seed": seed, "steps": asked.steps, "macs": multiply_adds(build(switches)),
        "parameters": sum(p.numel() for p in network.parameters()),
        "train_seconds": round(sum(e.seconds for e in result.history), 1), "device": device, **judged,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop behind a checkpoint after so long")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "unetpp-papers")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--split", action="store_true", help="draw papers_nuclei.json and end")
    asked = parser.parse_args()
    asked.deadline = time.monotonic() + asked.minutes * 60
    root = Path(os.environ.get("UNETPP_DATA") or sys.exit("set UNETPP_DATA to the folder with dsb2018 and em_isbi2012"))
    if asked.split:
        write_split(root)
        return
    results = json.loads(asked.output.read_text()) if asked.output.is_file() else {"runs": {}}
    for name in asked.sets:
        data = SETS[name](root)
        for network in asked.networks:
            for seed in asked.seeds:
                key = f"{name}/{network}/{seed}/{asked.steps}"
                if key in results["runs"] or time.monotonic() > asked.deadline:
                    continue
                found = run(f"{name}-{network}", NETWORKS[network], data, seed, asked)
                if found is not None:
                    results["runs"][key] = found
                    results |= provenance()
                    results["table"] = table(results["runs"])
                    asked.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def table(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per set, network and number of steps: means over seeds.

    Times are None in runs on a machine that did other work meanwhile (set so by hand); those of the others count.
    """
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for key, found in runs.items():
        name, network, _, steps = key.split("/")
        groups.setdefault((name, network, int(steps)), []).append(found)
    rows = []
    for (name, network, steps), found in groups.items():
        low, high = interval(np.array([run["counts"] for run in found]))
        mean = {part: _mean([run[part] for run in found]) for part in MEANS}
        rows.append(
            {"set": name, "network": network, "steps": steps, "seeds": len(found), **mean, "low": low, "high": high,
             "sd": statistics.stdev(run["iou"] for run in found) if len(found) > 1 else None,
             "parameters": found[0]["parameters"], "macs": found[0]["macs"], "target": TARGETS[name]}
        )  # fmt: skip
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def interval(counts: NDArray[Any]) -> tuple[float, float]:
    """Return the 95% interval of the pooled IoU, in percent, by bootstrap over images.

    Args:
        counts: (seeds, images, 3): intersection, union and all pixels.
    """
    drawn = np.random.default_rng(0).integers(0, counts.shape[1], (2000, counts.shape[1]))
    sums = counts[:, drawn].sum(2)  # (seeds, draws, 2)
    iou = (100 * sums[..., 0] / np.maximum(sums[..., 1], 1)).mean(0)
    low, high = np.quantile(iou, (0.025, 0.975))
    return float(low), float(high)


def provenance() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True, cwd=HERE
    )
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{cpu}, {os.cpu_count()} cores"
    command = typed("tests/benchmarks/papers.py") if sys.argv[1:] else "make papers"
    return {
        "date": datetime.now(UTC).date().isoformat(), "commit": commit.stdout.strip(), "command": command,
        "torch": str(torch.__version__), "device": device, "targets": TARGETS,
    }  # fmt: skip


if __name__ == "__main__":
    main()
