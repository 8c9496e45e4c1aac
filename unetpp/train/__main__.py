"""Runs a slice of an exported training: `python -m unetpp.train FOLDER --minutes 9`; knows a folder and a clock.

For machines that have torch and numpy and nothing else of unetpp's. Copy checkpoint.pt back beside the recipe's other
output, and `unetpp train` continues or finishes from it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from unetpp.errors import ConfigError, UnetppError
from unetpp.train.job import DATA, ExportedTraining
from unetpp.train.loop import Epoch, TrainResult, fit
from unetpp.train.store import PatchStore

TIME_UP = 75


def main() -> int:
    """Train until done (exit code 0) or until the time is up (75); what is wrong is one line (2)."""
    parser = argparse.ArgumentParser(prog="python -m unetpp.train", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="written by `unetpp train RECIPE --export FOLDER`")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop behind a checkpoint after so long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    try:
        return 0 if _run(asked.folder, asked.device, asked.minutes * 60).finished else TIME_UP
    except UnetppError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(folder: Path, device: str, seconds: float) -> TrainResult:
    if not seconds > 0:  # a loop that goes on while the time was up would never end
        raise ConfigError(f"--minutes {seconds / 60:g}: give a number above 0")
    training = ExportedTraining.load(folder)
    store = PatchStore.open(folder / DATA).filled(training.mean)
    start = time.monotonic()

    def on_step(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"step {step} loss {loss:.4f} {time.monotonic() - start:.1f} s", flush=True)

    def on_epoch(epoch: Epoch, _: object) -> None:
        print(asdict(epoch), flush=True)

    torch.manual_seed(training.config.seed)
    return fit(
        training.network(folder),
        store.source("train"),
        store.source("val"),
        training.config,
        mean=training.mean,
        std=training.std,
        folder=folder,
        device=device,
        seconds=seconds,
        on_step=on_step,
        on_epoch=on_epoch,
    )


if __name__ == "__main__":
    sys.exit(main())
