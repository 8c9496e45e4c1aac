"""The command `unetpp nightly`; knows its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetpp_workflows.cli_options import Sets, reported, standard_output


@reported()
def nightly(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What a night is; see below.")],
    sets: Sets = None,
) -> None:
    """Sync an archive, segment what is new with the champion, judge a waiting challenger, report, alert.

    Made for cron, systemd, Slurm and Kubernetes. Run it as often as you like: what is done is not done again. A killed
    night is continued by the next. Images that are gone keep their results; the ledger says since when they are gone.

    Exit codes: 0 done; 1 something failed (named, in the report, and posted as JSON to the URL in UNETPP_WEBHOOK);
    2 wrong usage; 75 another night is running, and this one left.

    [bold]Example[/]

        unetpp nightly nightly.toml

    A configuration:

        archive = ["/archive/slides"]
        output = "/archive/out"
        model = "nuclei"   # registered: its champion segments

        # As in `unetpp segment --config`, without a model and a shadow.
        \\[segment]
        executor = { kind = "ray", workers = 8, address = "auto" }

        # Without it, no waiting challenger is judged.
        \\[promotion]
        data = "/archive/nuclei.zarr"
        gates = "/archive/gates.toml"
    """
    from unetpp_workflows.nightly import load_nightly, run_night

    raise typer.Exit(run_night(load_nightly(config, sets or ()), standard_output()))
