"""The command `unetpp lineage`; knows how to print where a mask or a model comes from."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unetpp_workflows.cli_options import Tracking, reported, standard_output

if TYPE_CHECKING:
    from rich.console import Console

    from unetpp_workflows.lineage import Mask, ModelLineage

_SHOWN = 20


@reported()
def lineage(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MASK_OR_MODEL", help="A file or folder of a segmentation, or models:/name/3, or a name."
        ),
    ],
    lines: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
    tracking_uri: Tracking = None,
) -> None:
    """Say which model made a mask and what trained it; or which masks a model made.

    [bold]Examples[/]

        unetpp lineage out/slide_1/classes.tif
        unetpp lineage models:/nuclei@champion
        unetpp lineage models:/nuclei/3 --json
    """
    from unetpp.errors import ModelNotFoundError, RegistryError
    from unetpp.job import RECORD
    from unetpp_workflows.lineage import lineage as of_model
    from unetpp_workflows.lineage import mask_of

    console = standard_output()
    path = Path(what)
    mask = mask_of(path) if _is_file(what) and not _is_package(path) else None
    model, trouble = None, ""
    try:
        reference = what if mask is None else f"models:/{mask.model}/{mask.version}" if mask.version else mask.model
        model = of_model(reference, tracking_uri=tracking_uri)
    except (ModelNotFoundError, RegistryError) as error:
        if mask is None:
            raise
        trouble = str(error)  # the record says enough of the mask; only what is before it is not known
    if model is not None and mask is not None and model.digest != mask.digest:
        trouble, model = f"{model.uri} has other weights today than those that made this; {RECORD} holds", None
    if lines:
        told = {"mask": mask and dataclasses.asdict(mask), "model": model and dataclasses.asdict(model)}
        console.file.write(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        return
    if mask is not None:
        _print_mask(mask, console)
    if model is not None:
        _print_model(model, console, masks=mask is None)
    if trouble:
        console.print(f"no more is known: {trouble}", markup=False, highlight=False, soft_wrap=True)


def _is_file(what: str) -> bool:
    """Say whether a file or folder is meant, which need not be there."""
    return Path(what).exists() or (not what.startswith("models:") and (os.sep in what or "." in what))


def _is_package(folder: Path) -> bool:
    from unetpp.package import SPEC

    return (folder / SPEC).is_file()


def _print_mask(mask: Mask, console: Console) -> None:
    version = f" version {mask.version}" if mask.version else ""
    alias = f" (then @{mask.alias})" if mask.alias else ""
    _line(console, f"mask      {mask.output}, {mask.status}, {mask.finished}")
    _line(console, f"image     {mask.image}, fingerprint {mask.fingerprint[:16]}")
    _line(console, f"made by   {mask.model}{version}{alias}, digest {mask.digest[:16]}")
    _line(console, f"run       {mask.run or 'not recorded in MLflow'}")


def _print_model(model: ModelLineage, console: Console, *, masks: bool) -> None:
    _line(console, f"model     {model.uri}, digest {model.digest[:16]}")
    _line(console, f"trained   run {model.run or 'not recorded in MLflow'}: {model.training.get('command', 'unknown')}")
    if start := model.training.get("start"):
        _line(console, f"started   from {start['uri']}, digest {start['digest'][:16]}")
    for data in model.datasets:
        _line(console, f"  {data['role']:<11}{data['name']}, fingerprint {data['digest'][:16]}")
    if not model.datasets:
        for role in ("training", "validation"):
            found = str(model.training.get(f"{role}_fingerprint") or "not stated")
            _line(console, f"  {role:<11}{model.training.get('source', '')}, fingerprint {found[:16]}")
    for row in model.evaluations:
        where = f"{row['name']}, split {row['split']}, fingerprint {row['fingerprint'][:16]}"
        _line(console, f"evaluated {where}: mean IoU {row['mean_iou']}, run {row['run']}")
    for row in model.decisions:
        _line(console, f"{row['outcome']:<10}{row['moment']} by {row['by']}, run {row['run']}")
    if masks:
        _line(console, f"masks     {len(model.masks)}")
        for made in model.masks[:_SHOWN]:
            _line(console, f"  {made.finished}  {made.image} -> {made.output} ({made.status})")
        if len(model.masks) > _SHOWN:
            _line(console, f"  and {len(model.masks) - _SHOWN} more; --json lists all")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
