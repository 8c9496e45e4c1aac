"""The command `unetpp gc`; reads options, deletes what dead runs left behind, prints what it was."""

from __future__ import annotations

from typing import Annotated

import typer

from unetpp_workflows.cli_options import DONE, Outputs, reported, standard_output


@reported()
def gc(
    output: Outputs,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete what dead runs left behind: unfinished files, half-made products, expired leases; nothing finished.

    Refuses while a run writes the folder. The next run would make the same room, image by image; half-made products
    that it could have gone on with are made from the start.

    [bold]Examples[/]

        unetpp gc out --dry-run
        unetpp gc out
    """
    from unetpp_workflows.garbage import collect, find, foreign

    console = standard_output()
    found = find(output) if dry_run else collect(output)
    for why in foreign(output):
        console.print(f"left alone: {why}", markup=False, highlight=False, soft_wrap=True)
    total = sum(size for _, size in found)
    for path, size in found:
        line = f"{'would delete' if dry_run else 'deleted'} {path.relative_to(output)} ({size:,} bytes)"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(found)} leftover(s), {total:,} bytes", highlight=False)
    raise typer.Exit(DONE)
