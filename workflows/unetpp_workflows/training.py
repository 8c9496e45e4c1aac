"""Runs one training under a progress display and records it in MLflow; the training itself is `recipe.train`'s."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from unetpp.errors import UnetppError
from unetpp_workflows.cli_options import DONE, PART_FAILED

if TYPE_CHECKING:
    from unetpp.package import Package
    from unetpp.train import Epoch


def run_training(
    recipe: str, data: Path | None, output: Path, sets: Sequence[str], tracking_uri: str | None, console: Console
) -> int:
    """Train, print every validation and where the package is; returns the exit code."""
    from unetpp_workflows.recipe import load_recipe, train

    names = [info.name for info in load_recipe(recipe, sets).classes]
    seen: list[Epoch] = []

    def on_epoch(epoch: Epoch) -> None:
        seen.append(epoch)
        scores = "  ".join(f"{name} {value:.3f}" for name, value in zip(names, epoch.iou, strict=True))
        console.print(f"step {epoch.step:>6}  loss {epoch.loss:.4f}  IoU: {scores}", markup=False, highlight=False)

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=None)

        def on_step(step: int, steps: int, loss: float) -> None:
            bar.update(task, total=steps, completed=step, description=f"training, loss {loss:.4f}")

        package = train(recipe, data=data, output=output, overrides=sets, on_step=on_step, on_epoch=on_epoch)
    console.print(f"model package {package.folder} (mean IoU {package.spec.metrics['mean_iou']})", highlight=False)
    if not seen:
        console.print("it was finished already; change the recipe or the output folder to train anew")
        return DONE
    return _record(package, seen, names, tracking_uri, console)


def _record(
    package: Package, epochs: Sequence[Epoch], names: Sequence[str], tracking_uri: str | None, console: Console
) -> int:
    from unetpp_workflows.recipe import HISTORY, RESOLVED
    from unetpp_workflows.tracking import log_training

    history = [_metrics(epoch, names) for epoch in epochs]
    recipe = package.folder / RESOLVED
    try:
        run = log_training(
            history,
            package,
            params=json.loads(recipe.read_text(encoding="utf-8")),
            artifacts=[recipe, package.folder / HISTORY],
            tracking_uri=tracking_uri,
        )
    except UnetppError as error:
        console.print(f"warning: not recorded in MLflow: {error}", markup=False, highlight=False, soft_wrap=True)
        return PART_FAILED
    console.print(f"MLflow run {run}", highlight=False)
    return DONE


def _metrics(epoch: Epoch, names: Sequence[str]) -> dict[str, Any]:
    iou = {f"iou.{name}": value for name, value in zip(names, epoch.iou, strict=True)}
    return {
        **{k: v for k, v in dataclasses.asdict(epoch).items() if k in ("loss", "seconds")},
        **iou,
        "epoch": epoch.step,
    }
