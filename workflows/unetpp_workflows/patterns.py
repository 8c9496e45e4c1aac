"""Finds what a pattern matches, each folder once, whatever links lead above it; knows no images."""

from __future__ import annotations

import glob
import heapq
import os
from collections.abc import Callable, Iterator
from pathlib import Path

Note = Callable[[str, OSError], None]


def matches(pattern: str, note: Note) -> Iterator[str]:
    """Yield what matches, in no order and some of it twice; `**` is a folder and all below it, each once.

    Args:
        note: called with a folder that cannot be read, and why.

    Python's own goes through links to folders above up to 40 times: of two such links it makes 2^40 paths.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(pattern)  # noqa: PTH207 (Path.glob refuses absolute patterns)
        return
    at = parts.index("**")
    rest = parts[at + 1 :]
    for top in filter(os.path.isdir, glob.glob(str(Path(*parts[:at])))):  # noqa: PTH207
        for folder in _folders_below(top, note):
            if not rest:
                yield folder
            yield from matches(str(Path(glob.escape(folder), *(rest or ("*",)))), note)


def _folders_below(top: str, note: Note) -> Iterator[str]:
    """Yield a folder and those below it that are not hidden; each by its shortest path, whatever links lead to it."""
    seen: set[tuple[int, int]] = set()
    waiting = [(len(top), top)]
    while waiting:
        _, folder = heapq.heappop(waiting)
        try:
            facts = Path(folder).stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
        except OSError as error:
            note(folder, error)
            continue
        yield folder
        for path in (str(Path(folder, name)) for name in names):
            heapq.heappush(waiting, (len(path), path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder or a link to one; a link that leads nowhere, or to itself, is none."""
    if not entry.is_symlink():
        return entry.is_dir()
    return os.path.isdir(entry)  # noqa: PTH112 (`Path.is_dir` fails where a link leads into what may not be read)
