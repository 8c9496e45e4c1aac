"""Deletes what dead runs left in an output folder while nobody writes it; knows leases and locks, no formats."""

from __future__ import annotations

import shutil
from pathlib import Path

from unetpp.durable import output_errors
from unetpp.litter import litter
from unetpp.lock import FolderLock
from unetpp_workflows.lease import Lease
from unetpp_workflows.outputs import image_folders, run_folder

Found = list[tuple[Path, int]]
"""Paths and their bytes."""


def find(output: Path) -> Found:
    """Return what `collect` would delete; a lease that is alive is no leftover. Raises `ConfigError`."""
    paths = [path for folder in image_folders(output) for path in litter(folder)]
    paths += [*_own(output), *Lease.expired(output)]
    return sorted((path, _size(path)) for path in paths)


def collect(output: Path) -> Found:
    """Delete the leftovers of an output folder and return them.

    Raises:
        ConfigError: there is no such folder, or no image in it.
        StoreError: a run holds the folder, or workers of one still hold an image.
        OutputError: something cannot be deleted.
    """
    folders = image_folders(output)
    leases = [(path, _size(path)) for path in Lease.expired(output)]
    # Entering takes an expired lease over, leaving deletes it; those of parts are deleted here.
    with Lease(run_folder(output, folders)):
        for path in Lease.expired(output):
            _delete(path)
        found = [(path, _size(path)) for path in _own(output)]
        for folder in folders:
            with FolderLock(folder, exclusive=True, wait_s=0):
                mine = [(path, _size(path)) for path in litter(folder)]
                for path, _ in mine:
                    _delete(path)
            found += mine
        for path in _own(output):
            _delete(path)
    return sorted([*leases, *found])


def _own(output: Path) -> list[Path]:
    """Return what lies beside the image folders and `write_file` and `discard_folder` left."""
    names = (".*.tmp", ".*.discarded")
    return sorted({path for name in names for path in output.glob(name)})


def _size(path: Path) -> int:
    files = (inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)


def _delete(path: Path) -> None:
    with output_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
