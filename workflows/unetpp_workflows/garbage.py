"""Deletes what dead runs left in an output folder while nobody writes it; knows leases and locks, no formats."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from unetpp.durable import output_errors
from unetpp.errors import ConfigError, VersionError
from unetpp.litter import litter
from unetpp.lock import FolderLock
from unetpp_workflows.lease import Lease
from unetpp_workflows.outputs import check_version, image_folders, run_folder
from unetpp_workflows.shadow import FOLDER as SHADOW

Found = list[tuple[Path, int]]
"""Paths and their bytes."""


def find(output: Path) -> Found:
    """Return what `collect` would delete; a lease that is alive is no leftover.

    Raises:
        ConfigError: there is no such folder, or no image in it.
    """
    paths: list[Path] = []
    for root, folders in _roots(output):
        paths += [path for folder in folders for path in litter(folder)]
        paths += [*_own(root), *Lease.expired(root)]
    return sorted((path, _size(path)) for path in paths)


def collect(output: Path) -> Found:
    """Delete the leftovers of an output folder and of its shadows' and return them.

    Raises:
        ConfigError: as `find`.
        StoreError: a run holds a folder, or workers of one still hold an image.
        OutputError: something cannot be deleted.
    """
    roots = list(_roots(output))
    found = [(path, _size(path)) for root, _ in roots for path in Lease.expired(root)]
    with ExitStack() as held:
        # Entering takes an expired lease over, leaving deletes it; those of parts are deleted in `_collected`.
        for root, folders in roots:
            held.enter_context(Lease(run_folder(root, folders)))
        for root, folders in roots:
            found += _collected(root, folders)
    return sorted(found)


def foreign(output: Path) -> list[VersionError]:
    """Return why images are left alone: another version of unetpp wrote them and knows what of them is litter."""
    return [why for _, folders in _all_roots(output) for folder in folders if (why := _why_foreign(folder)) is not None]


def _why_foreign(folder: Path) -> VersionError | None:
    try:
        check_version(folder)
    except VersionError as error:
        return error
    return None


def _roots(output: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield the folders that runs hold, but for foreign images, each with those of its images that are not foreign."""
    for root, folders in _all_roots(output):
        ours = [folder for folder in folders if _why_foreign(folder) is None]
        if ours or folders != [root]:
            yield root, ours


def _all_roots(output: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield the output and the folders of its shadows, each with its images'."""
    for root in (output, *sorted(path for path in (output / SHADOW).glob("*") if path.is_dir())):
        try:
            folders = image_folders(root)
        except ConfigError:
            if root == output:
                raise
            folders = []  # of a shadow that ended before its first image
        yield root, folders


def _collected(root: Path, folders: list[Path]) -> Found:
    """Delete the leftovers in a folder that is held, and return them."""
    for path in Lease.expired(root):
        _delete(path)
    found = [(path, _size(path)) for path in _own(root)]
    for folder in folders:
        with FolderLock(folder, exclusive=True, wait_s=0):
            mine = [(path, _size(path)) for path in litter(folder)]
            for path, _ in mine:
                _delete(path)
        found += mine
    for path in _own(root):
        _delete(path)
    return found


def _own(output: Path) -> list[Path]:
    """Return what lies beside the image folders and `write_file` and `discard_folder` left."""
    names = (".*.tmp", ".*.discarded")
    return sorted({path for name in names for path in output.glob(name)})


def _size(path: Path) -> int:
    files = (inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else (path,)
    size = 0
    for file in files:
        with suppress(FileNotFoundError):  # a run that is alive has moved it to its place
            size += file.stat().st_size
    return size


def _delete(path: Path) -> None:
    with output_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
