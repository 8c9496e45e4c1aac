"""The command `unetpp prepare`; reads options, calls the library, prints what was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from unetpp.errors import ConfigError, DataError
from unetpp_workflows.cli_options import DONE, USAGE, Executor, Sets, Workers, check_folder, reported, standard_output

if TYPE_CHECKING:
    from rich.progress import TaskID

    from unetpp_workflows.prepare.build import Prepared, Progress

_MOST_LINES = 40


@reported()
def prepare(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="TOML file that describes the data set, or a (bundled) recipe.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The store to make; ends in .zarr.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder its paths start from; default: UNETPP_DATA."),
    ] = None,
    executor: Executor = None,
    workers: Workers = None,
    address: Annotated[str | None, typer.Option("--address", help="Of a running Ray cluster: auto, host:6379.")] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Also write .npy files there, for machines without zarr.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Turn labelled images into one training store; run again to continue where it stopped.

    Images may be anything `segment` reads. Labels may be masks (PNG, TIFF, GeoTIFF, Zarr, OME-Zarr), instance masks, or
    polygons (QuPath GeoJSON, GeoJSON, GeoPackage, GeoParquet in any CRS).

    [bold]Examples[/]

        unetpp prepare buildings.toml --data DATA --output buildings.zarr
        unetpp prepare slides.toml -o slides.zarr --executor ray

    A data set is a TOML file:

        \\[data]
        table = "slides.csv"
        spacing = "0.5um"
        shares = { train = 0.8, val = 0.2 }
        no_data = ["Artifact"]

        [\\[classes]]
        name = "stroma"
        color = [120, 180, 90]
        background = true

        [\\[classes]]
        name = "tumour"
        color = [200, 30, 60]
        labels = ["Tumor", "Tumour"]

    The table (CSV, Parquet) has the columns image, labels and group; split, mask, ignore and annotator where wanted.
    Without a split, whole groups are divided by shares. Instead of a table: images = "images/*.png",
    labels = "masks/{stem}.png", group_pattern and validation. Labels of a class are polygon classes, values or colours
    ([[200, 30, 60]]); what lies outside all polygons is background. Without a spacing, level 0 is kept.

    A page beside the store shows samples of every split, class frequencies and all faults. A group in two splits,
    labels of another size, or one picture in two splits are errors: exit code 2, and nothing is stored.
    """
    from unetpp.train import store as stores
    from unetpp_workflows.prepare import build
    from unetpp_workflows.prepare.dataset import load_dataset
    from unetpp_workflows.prepare.page import write_page
    from unetpp_workflows.training_data import data_root

    check_folder("--data", data)
    if output.suffix != ".zarr":
        raise ConfigError(f"--output {output} does not end in .zarr; name the store like {output.with_suffix('.zarr')}")
    if executor not in (None, "local", "ray"):
        raise ConfigError(f"--executor {executor!r} is not known; choose local or ray")
    console = standard_output()
    run = build.Run(executor or "local", workers or 0, address)
    try:
        described = load_dataset(dataset, sets or ())
        with _progress(console) as progress:
            prepared = build.prepare(described, data_root(data), output, run=run, progress=progress)
    except DataError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(USAGE) from None
    page = write_page(prepared)
    if prepared.facts is not None:
        build.discard_work(output)
    _print(prepared, page, console)
    if prepared.errors:
        raise typer.Exit(USAGE)
    if export is not None:
        console.print(f"exported to {stores.export(output, export)}", markup=False, highlight=False)
    raise typer.Exit(DONE)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """Yield what shows progress: a bar on a terminal, a line per stage elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    titles = {"images": "looking at images", "shards": "writing shards"}
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(titles[what], total=total)
                if not console.is_terminal:
                    console.print(f"{titles[what]}: {done} of {total} done", markup=False, highlight=False)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def _print(prepared: Prepared, page: Path, console: Console) -> None:
    from unetpp_workflows.prepare.faults import lines

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    warnings = lines(fault for fault in prepared.faults if fault.level == "warning")
    for fault in warnings[:_MOST_LINES]:
        say(f"warning: {fault}", "yellow")
    if len(warnings) > _MOST_LINES:
        say(f"and {len(warnings) - _MOST_LINES} more warnings, on the page", "yellow")
    complaints = Console(stderr=True)
    for fault in lines(prepared.errors):
        complaints.print(f"error: {fault}", style="red", markup=False, highlight=False, soft_wrap=True)
    facts = prepared.facts
    if facts is None:
        say(f"nothing was stored; see {page}")
        return
    splits = ", ".join(
        f"{name} {part['images']} image(s), {part['patches']} patches" for name, part in facts["splits"].items()
    )
    say(f"{'stored' if prepared.fresh else 'stored already'}: {splits}")
    shares = zip(facts["classes"], facts["frequencies"], strict=True)
    say("classes: " + ", ".join(f"{info['name']} {share:.1%}" for info, share in shares))
    say(f"store {prepared.store}\npage {page}")
