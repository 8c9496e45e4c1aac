"""Draws one self-contained page of a night; decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetpp.durable import write_file

if TYPE_CHECKING:
    from unetpp_workflows.ledger import Ledger


def write_page(file: Path, model: str, night: dict[str, Any], ledger: Ledger) -> None:
    """Write the page: problems first, then what was done, then the archive in numbers. Raises `OutputError`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unetpp_workflows"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    counts: dict[str, int] = {}
    for entry in ledger.images.values():
        counts[entry.status] = counts.get(entry.status, 0) + 1
    page = environment.get_template("nightly.html.j2").render(model=model, night=night, counts=sorted(counts.items()))
    write_file(file, page.encode())
