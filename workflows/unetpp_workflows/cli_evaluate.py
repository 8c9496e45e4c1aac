"""The command `unetpp evaluate`; knows its options and how to print an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from unetpp_workflows.cli_options import PART_FAILED, Tracking, check_folder, plain_table, reported, standard_output

if TYPE_CHECKING:
    from rich.console import Console

    from unetpp.model.orientations import Tta
    from unetpp_workflows.evaluation import Evaluation

Data = Annotated[Path, typer.Option("--data", help="A store that `unetpp prepare` made.")]
Split = Annotated[str, typer.Option("--split", help="Its split: test, val or train.")]


@reported()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="models:/name@alias, models:/name/3, a bundled name or a folder.")
    ],
    data: Data,
    split: Split = "test",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for evaluation.html and evaluation.json.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="fp32 or bf16, or as in segment int16 or int8.")
    ] = "fp32",
    tta: Annotated[
        str, typer.Option("--tta", help="none, mirror (2x the time), flips (4x) or d4 (8x), as in segment.")
    ] = "none",
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    tracking_uri: Tracking = None,
) -> None:
    """Measure a model on a frozen split of a prepared store: figures, a page, and an MLflow run.

    Figures per class and group with intervals, calibration, speed and memory. The same weights on the same images are
    measured once: a second call finds the first one's result in MLflow, and goes on where an interrupted one ended.

    [bold]Examples[/]

        unetpp evaluate models:/nuclei@challenger --data nuclei.zarr -o report
        unetpp evaluate runs/nuclei --data nuclei.zarr --split val
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from unetpp.errors import ConfigError
    from unetpp.model.orientations import TTAS
    from unetpp.native.support import WHOLE
    from unetpp_workflows.evaluation import EvaluationData
    from unetpp_workflows.evaluation_tracking import PAGE, evaluated
    from unetpp_workflows.registry import resolve
    from unetpp_workflows.training_job import device as chosen_device

    check_folder("--data", data)
    if precision not in ("fp32", "bf16", *WHOLE):
        raise ConfigError(f"--precision {precision!r}: choose fp32, bf16, {' or '.join(WHOLE)}")
    if tta not in TTAS:
        raise ConfigError(f"--tta {tta!r}: choose {', '.join(TTAS)}")
    console = standard_output()
    resolved, opened = resolve(model, tracking_uri=tracking_uri), EvaluationData.open(data, split)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total = len(opened.source.images)
    if not console.is_terminal:
        console.print(f"evaluating {total} images, then timing the engine", highlight=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating", total=total)

        def judged() -> None:
            bar.advance(task)
            if bar.tasks[task].finished:
                bar.update(task, description="timing the engine")

        result = evaluated(
            resolved,
            opened,
            precision=precision,
            tta=cast("Tta", tta),
            device=chosen_device(device),
            output=output,
            tracking_uri=tracking_uri,
            on_image=judged,
        )
    print_evaluation(result.evaluation, console)
    if result.resumed:
        console.print(f"{result.resumed} images were judged before an interruption", highlight=False)
    if result.found:
        console.print("measured before, nothing was computed", highlight=False)
    if result.evaluation.run:
        console.print(f"MLflow run {result.evaluation.run}", highlight=False)
    if output is not None:
        console.print(f"page: {output / PAGE}", markup=False, highlight=False, soft_wrap=True)
    if result.warning:
        console.print(f"warning: not recorded in MLflow: {result.warning}", markup=False, soft_wrap=True)
        raise typer.Exit(PART_FAILED)


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print one row per class and two lines."""
    from unetpp_workflows.evaluation_page import interval, model_title, orientations, text

    figures = evaluation.figures
    names = {"iou": "IoU", "dice": "Dice", "precision": "precision", "recall": "recall", "boundary_f1": "boundary F1"}
    table = plain_table("class", *names.values(), "IoU, 95% interval")
    for info in evaluation.classes:
        name = info["name"]
        table.add_row(name, *(text(figures[key][name]) for key in names), interval(figures, name))
    data, speed = evaluation.data, evaluation.speed
    console.print(
        f"{model_title(evaluation)} on {data['name']}, split {data['split']}: {data['images']} images in "
        f"{data['groups']} groups{orientations(evaluation)}",
        highlight=False,
        markup=False,
    )
    console.print(table)
    console.print(
        f"calibration error {text(figures['ece'])}, best temperature {text(figures['temperature'])}; "
        f"{speed['mpx_per_second']:.2f} Mpx/s on one thread ({speed['engine']} {speed['precision']})",
        highlight=False,
    )
