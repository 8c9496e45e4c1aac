"""The command `unetpp train`; knows its options and what `run_training` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetpp.errors import ConfigError
from unetpp_workflows.cli_options import Sets, Tracking, check_folder, plain_table, reported, standard_output


@reported()
def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A bundled recipe (see `unetpp recipes`) or a TOML file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for checkpoint, history and model package.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of the training data; default: UNETPP_DATA."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="A store that `unetpp prepare` made, instead of --data."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start", help="Go on from this model's weights: models:/name@alias, a bundled name or a folder."
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, one CPU or GPU each, on Ray.")] = 1,
    least: Annotated[
        int | None, typer.Option("--least", min=1, help="Go on with as few workers when nodes vanish.")
    ] = None,
    address: Annotated[str | None, typer.Option("--address", help="Ray cluster; default: this machine.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0, help="Stop behind a checkpoint after so long (exit code 75).")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Only write data and settings for `python -m unetpp.train` on a bare machine."),
    ] = None,
    register: Annotated[bool, typer.Option(help="Register the trained model.")] = True,
    alias: Annotated[str | None, typer.Option("--alias", help="Alias of the new version, like challenger.")] = None,
    tracking_uri: Tracking = None,
    sets: Sets = None,
) -> None:
    """Train a network from a recipe to a registered model; run again to continue where it stopped.

    Killed, interrupted or out of time: the same command goes on from the last checkpoint, in the same MLflow run.

    [bold]Examples[/]

        unetpp train smoke --output runs/smoke
        unetpp train nuclei --data DATA --output runs/nuclei --alias challenger
        unetpp train my.toml --data DATA -o runs/mine --set train.steps=200 --workers 4
        unetpp train my.toml --data DATA -o runs/mine --start models:/mine@champion --set train.rate=5e-4
    """
    import json
    import math

    from unetpp.lock import FolderLock
    from unetpp_workflows.pipeline import make_folder
    from unetpp_workflows.training import TrainOptions, export_training, run_training

    check_folder("--data", data)
    check_folder("--store", store)
    if data is not None and store is not None:
        raise ConfigError(f"--data {data} is what a store is made of, and --store {store} is made; give one of them")
    if export is not None:
        _refuse_unused(workers=workers > 1, least=least, address=address, device=device != "auto", minutes=minutes,
                       alias=alias)  # fmt: skip
    console = standard_output()
    sets = [*(sets or ()), *([f"network.start={json.dumps(start, ensure_ascii=False)}"] if start is not None else [])]
    options = TrainOptions(
        store=store,
        workers=workers,
        least=least,
        address=address,
        device=device,
        minutes=math.inf if minutes is None else minutes,
        tracking_uri=tracking_uri,
        register=register,
        alias=alias,
    )
    make_folder(output)
    with FolderLock(output, exclusive=True, wait_s=0):
        if export is None:
            raise typer.Exit(
                run_training(recipe, data=data, output=output, sets=sets, options=options, console=console)
            )
        export_training(
            recipe, data=data, output=output, sets=sets, store=store, folder=export, tracking_uri=tracking_uri,
            console=console,
        )  # fmt: skip


def _refuse_unused(**given: object) -> None:
    """Raise `ConfigError` for options of a training that runs here, where it is only exported."""
    for name, value in given.items():
        if value is not None and value is not False:  # 0 is a number of minutes
            raise ConfigError(
                f"--{name} is for a training that runs here, and --export only writes one; leave it out, and give it "
                "with the command that ends the training"
            )


@reported()
def recipes() -> None:
    """List the bundled recipes: what each trains, on what, and what it should reach.

    [bold]Example[/]

        unetpp recipes
    """
    from unetpp_workflows.recipe import load_recipe, recipe_names

    table = plain_table("recipe", "trains", "data")
    for name in recipe_names():
        recipe = load_recipe(name)
        table.add_row(name, recipe.intended, f"{recipe.source} ({recipe.licence})")
    standard_output().print(table)
