"""Finds what dead runs left behind in an image's folder; knows the names that unfinished things have, deletes nothing.

    .<array>.ome.zarr.new, .<name>.discarded, .<name>.tmp   of writes and deletions that never ended
    <shard>.*.partial                                      of Zarr shards that were never whole
    finalize/work, finalize/<token>.*                      of products that are not finished

Nothing that has its own name is litter: a shard without a commit record, a product without a marker stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unetpp.commit import COMMITS
from unetpp.finalize.markers import FOLDER, unfinished
from unetpp.maps import MAPS, map_folder
from unetpp.store import LABELS

_UNFINISHED = re.compile(r"\..+\.(tmp|discarded)|\.[a-z]+\.ome\.zarr\.new")


def litter(folder: Path) -> list[Path]:
    """Return the files and folders of an image's folder that only a dead run can have left; sorted."""
    return sorted({*_top(folder), *_top(folder / COMMITS), *unfinished(folder / FOLDER), *_partial(folder)})


def _top(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name):
            yield path


def _partial(folder: Path) -> Iterator[Path]:
    # Shards are written as <object>.new.partial and renamed, documents of Zarr as <document>.<uuid>.partial.
    for pattern in ("*.partial", "*/*.partial", "*/*/*.partial", "*/*/c/*/*.partial", "*/c/*/*/*.partial"):
        for name in (LABELS, *map(map_folder, MAPS)):
            yield from (folder / name).glob(pattern)
