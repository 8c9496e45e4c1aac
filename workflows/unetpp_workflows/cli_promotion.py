"""The commands `unetpp promote` and `unetpp rollback`; knows their options and how to print a decision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unetpp_workflows.cli_evaluate import Data, Split
from unetpp_workflows.cli_options import (
    DONE,
    PART_FAILED,
    Tracking,
    check_folder,
    plain_table,
    reported,
    standard_output,
)

if TYPE_CHECKING:
    from rich.console import Console

    from unetpp_workflows.promotion import Decision

Name = Annotated[str, typer.Argument(help="Registered name, like nuclei.")]


@reported()
def promote(
    name: Name,
    data: Data,
    version: Annotated[
        str | None, typer.Option("--version", help="Version to promote; default: @challenger, else the newest.")
    ] = None,
    split: Split = "test",
    gates: Annotated[
        Path | None, typer.Option("--gates", help="TOML file with the limits; default: see below.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen; decide nothing.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda; for the evaluations.")] = "auto",
    tracking_uri: Tracking = None,
) -> None:
    """Make a version the champion if it passes every gate; else say which one failed and by how much (exit code 1).

    Challenger and champion are evaluated on the same images and compared by pairs of groups. All pass: the champion
    becomes @previous and the challenger @champion. Every decision is an MLflow run with its evidence.

    [bold]Examples[/]

        unetpp promote nuclei --data nuclei.zarr
        unetpp promote nuclei --version 4 --data nuclei.zarr --gates gates.toml --dry-run

    A gates file, with its defaults and, behind #, what may be added:

        off = []                                      # "speed", "memory", ...
        non_inferiority = { margin = 0.01, confidence = 0.95 }
        floors = {}      # { classes = { nucleus = 0.7 }, strata = { HE = 0.6 }, group = 0.3 }
        calibration = { ece = 0.1 }
        speed = { share = 0.8 }                       # least = 1.0 (Mpx/s)
        memory = { share = 1.25 }                     # most_mb = 2000
        leak = { training = 0, validation = 0 }
        shadow = { agreement = 0.9, images = 0 }      # asked where the challenger ran as a shadow
    """
    from unetpp_workflows.gates import load_gates
    from unetpp_workflows.promotion import promote as run
    from unetpp_workflows.training_job import device as chosen_device

    check_folder("--data", data)
    console = standard_output()
    with console.status(f"comparing versions of {name}"):
        decision = run(
            name,
            data,
            version=version,
            split=split,
            gates=load_gates(gates),
            dry_run=dry_run,
            device=chosen_device(device),
            tracking_uri=tracking_uri,
        )
    print_decision(decision, console)
    raise typer.Exit(DONE if decision.passed else PART_FAILED)


@reported()
def rollback(
    name: Name,
    to: Annotated[str | None, typer.Option("--to", help="Version to go back to; default: @previous.")] = None,
    tracking_uri: Tracking = None,
) -> None:
    """Make the previous champion, or any version, champion again. Asks no gates, and is recorded.

    [bold]Examples[/]

        unetpp rollback nuclei
        unetpp rollback nuclei --to 3
    """
    from unetpp_workflows.promotion import rollback as run

    print_decision(run(name, to=to, tracking_uri=tracking_uri), standard_output())


def print_decision(decision: Decision, console: Console) -> None:
    """Print the gates as a table, and what became of the aliases."""
    from rich.markup import escape

    from unetpp_workflows.decision_page import outcome_text

    if decision.gates:
        table = plain_table("gate", "measured", "limit", "")
        for gate in decision.gates:
            style = "green" if gate.passed else "bold red"
            cells = (escape(gate.gate), escape(gate.measured), escape(gate.limit))
            table.add_row(*cells, f"[{style}]{outcome_text(gate)}[/]")
        console.print(table)
    model = f"models:/{decision.name}/{decision.version}"
    before = f"version {decision.champion}" if decision.champion else "none"
    sentences: dict[str, str] = {
        "promoted": f"{model} is now @champion; before: {before}",
        "refused": f"{model} was not promoted: {sum(not gate.passed for gate in decision.gates)} gate(s) failed; "
        f"champion: {before}",
        "unchanged": f"{model} is @champion already",
        "would promote": f"dry run: {model} would become @champion; now: {before}",
        "would refuse": f"dry run: {model} would not be promoted; champion: {before}",
        "rolled back": f"{model} is @champion again; before: {before}",
        "set by hand": f"{model} is now @champion, by hand and without gates; before: {before}",
        "deleted": f"{model} is deleted",
    }
    console.print(sentences[decision.outcome], markup=False, highlight=False, soft_wrap=True)
    if decision.run:
        console.print(f"MLflow run {decision.run}", highlight=False)
