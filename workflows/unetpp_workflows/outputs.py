"""Reads an output folder that some run made or is making: its status, its integrity, its pages; segments nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from unetpp.errors import ConfigError, StoreError, UnetppError, VersionError
from unetpp.job import RECORD
from unetpp.lock import FolderLock
from unetpp_workflows.cli_options import DONE, PART_FAILED, plain_table
from unetpp_workflows.inputs import JOB
from unetpp_workflows.lease import Lease
from unetpp_workflows.record import ImageRecord

_STYLE = {"done": "green", "empty": "yellow", "running or interrupted": "cyan", "partial": "yellow"}


@dataclass(frozen=True)
class ImageState:
    """One image folder as it lies on the disk; `committed` of `shards` shards are finished."""

    folder: Path
    status: str
    committed: int = 0
    shards: int = 0
    message: str = ""


def image_folders(output: Path) -> list[Path]:
    """Return the image folders of an output folder, or the folder itself where it is one image's.

    Raises:
        ConfigError: There is no such folder, or no image in it.
    """
    if not output.is_dir():
        what = "a file" if output.exists() else "no such folder"
        raise ConfigError(f"{output}: {what}; give the --output folder of `unetpp segment`")
    if _is_image(output):
        return [output]
    children = (child for child in output.iterdir() if child.is_dir() and not _is_doomed(child))
    folders = sorted(child for child in children if _is_image(child))
    if not folders:
        raise ConfigError(f"{output}: no segmented image in it; give the --output folder of `unetpp segment`")
    return folders


def check_version(folder: Path) -> None:
    """Raise `VersionError` where another version of unetpp wrote an image: nothing of it is ours to mend or delete."""
    from unetpp.job import SegmentJob

    for read in (ImageRecord.read, SegmentJob.load):
        try:
            read(folder)
        except VersionError:
            raise
        except StoreError:
            continue  # damage, which is for the caller to find


def read_state(folder: Path) -> ImageState:
    """Say what an image folder holds; a record that belongs to an earlier job than job.json does not count."""
    from unetpp.job import SegmentJob, progress

    try:
        record, job = ImageRecord.read(folder), SegmentJob.load(folder)
    except StoreError as error:
        return ImageState(folder, "damaged", message=str(error))
    if job is None:
        return ImageState(folder, "failed", message=(record.message or "") if record else "")
    state = progress(job)
    current = record is not None and record.key in (job.key, None)
    status = record.status if record is not None and current else "running or interrupted"
    return ImageState(
        folder, status, state.committed, state.shards, (record.message or "") if record and current else ""
    )


def print_status(output: Path, console: Console) -> int:
    """Print one row per image; returns the exit code: 1 where an image failed or lacks a part."""
    states = [read_state(folder) for folder in image_folders(output)]
    table = plain_table("image", "status", "shards", "note")
    for state in states:
        shards = f"{state.committed}/{state.shards}" if state.shards else "-"
        style = _STYLE.get(state.status, "bold red")
        table.add_row(escape(state.folder.name), f"[{style}]{state.status}[/]", shards, escape(state.message))
    console.print(table)
    counts = {name: sum(state.status == name for state in states) for name in dict.fromkeys(s.status for s in states)}
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()), highlight=False)
    return PART_FAILED if any(state.status in ("failed", "partial", "damaged") for state in states) else DONE


def print_verification(output: Path, console: Console, *, repair: bool = False) -> int:
    """Hash everything again; prints what is wrong, and with `repair` forgets it so that segment makes it anew.

    Raises:
        ConfigError: there is no such folder, or no image in it.
        StoreError: with `repair`, a run holds the folder, or workers of one still hold an image.
    """
    folders = image_folders(output)
    with nullcontext() if not repair else Lease(run_folder(output, folders)):
        found = Counter(_print_verified(folder, console, repair=repair) for folder in folders)
    if bad := found["bad"]:
        advice = (
            "run segment again: it makes them anew" if repair else "run `unetpp verify --repair`, then segment again"
        )
        console.print(f"{bad} image(s) damaged or not finished; {advice}", markup=False, highlight=False)
    return DONE if found["whole"] == len(folders) else PART_FAILED


def run_folder(output: Path, folders: Sequence[Path]) -> Path:
    """Return the folder that a run would hold: that of one image lies in it."""
    return output.absolute().parent if folders == [output] else output


def _print_verified(folder: Path, console: Console, *, repair: bool) -> Literal["whole", "bad", "foreign"]:
    """Print what is wrong with an image, or that it is whole; with `repair` while no other process writes it."""
    with nullcontext() if not repair else FolderLock(folder, exclusive=True, wait_s=0):
        try:
            check_version(folder)
            faults = list(_faults(folder, repair=repair))
        except VersionError as error:
            console.print(f"{folder.name}: {error}", markup=False, highlight=False, soft_wrap=True)
            return "foreign"
        except UnetppError as error:
            faults = [str(error)]
        for fault in faults:
            console.print(f"{folder.name}: {fault}", markup=False, highlight=False, soft_wrap=True)
        if faults and repair:
            (folder / RECORD).unlink(missing_ok=True)
    if faults:
        return "bad"
    console.print(f"{folder.name}: whole", markup=False, highlight=False)
    return "whole"


def print_audit(output: Path, console: Console) -> int:
    """Say from records and journals whether every shard was written once; returns the exit code."""
    from unetpp import commit
    from unetpp.job import SegmentJob

    code = DONE
    for folder in image_folders(output):
        try:
            job = SegmentJob.load(folder)
            found = commit.audit(job.store, job.key) if job is not None else None
        except StoreError as error:
            found = None
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        if found is None:
            code = PART_FAILED
            continue
        for kind, shards in (("lost", found.lost), ("written twice", found.twice)):
            for shard, text in shards.items():
                console.print(f"{folder.name}: shard {shard} {kind}: {text}", markup=False, soft_wrap=True)
        unseen = f", {len(found.unwitnessed)} by a worker that died right after" if found.unwitnessed else ""
        counts = f"{len(found.lost)} lost, {len(found.twice)} written twice"
        written = found.once + len(found.unwitnessed)
        line = f"{folder.name}: {written} of {found.shards} shards written once{unseen}; {counts}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        code = PART_FAILED if found.lost or found.twice else code
    return code


def redraw_reports(output: Path, console: Console) -> int:
    """Write every image's report page again, and that of the whole output folder; returns the exit code."""
    from unetpp_workflows.archive_page import write_archive_page
    from unetpp_workflows.report import write_report

    code = _each(output, console, lambda folder, record: str(write_report(folder, record)))
    folders = image_folders(output)
    if folders != [output]:
        try:
            line = f"all images: {write_archive_page(output, folders)}"
        except StoreError as error:
            line, code = str(error), PART_FAILED
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return code


def _each(output: Path, console: Console, step: Callable[[Path, ImageRecord], str]) -> int:
    code = DONE
    for folder in image_folders(output):
        try:
            record = ImageRecord.read(folder)
            line = f"{folder.name}: no record yet; run segment again" if record is None else step(folder, record)
            code = PART_FAILED if record is None else code
        except UnetppError as error:
            line, code = str(error), PART_FAILED
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return code


def _faults(folder: Path, *, repair: bool) -> Iterator[str]:
    from unetpp import commit
    from unetpp.finalize import discard_products, verify_products
    from unetpp.job import SegmentJob

    job = SegmentJob.load(folder)
    if job is None:
        record = ImageRecord.read(folder)
        why = f"failed: {record.message}" if record is not None and record.message else "not segmented: no job.json"
        yield why + (", forgotten" if repair else "; mend that and run segment again, or forget it with --repair")
        return
    shards, products = commit.verify(job.store, job.key), verify_products(job)
    if repair and (shards or products):
        (folder / RECORD).unlink(missing_ok=True)  # first: what is forgotten in part must not count as done
        for shard_id in shards:
            commit.revoke(job.store, job.plan.shard_by_id(shard_id))
        if products:
            discard_products(folder)
    yield from (f"shard {shard_id}: {fault}" for shard_id, fault in shards.items())
    yield from (f"{path}: {fault}" for path, fault in products.items())
    if not shards and not products:
        record = ImageRecord.read(folder)  # a damaged one is a fault
        if record is None or record.status not in ("done", "empty") or record.key != job.key:
            why = f": {record.message}" if record is not None and record.message else ", its products are not all made"
            yield f"not finished{why}; run segment again"


def _is_doomed(folder: Path) -> bool:
    """Say whether a run died as it deleted this image."""
    return folder.name.startswith(".") and folder.name.endswith(".discarded")


def _is_image(folder: Path) -> bool:
    return (folder / JOB).is_file() or (folder / RECORD).is_file()
