"""Which images of a call are worked on: all, those that failed, or those changed since a moment; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path

from unetpp.errors import ConfigError, UnetppError
from unetpp_workflows.inputs import LISTS, Source
from unetpp_workflows.outputs import read_state


@dataclass(frozen=True)
class Selection:
    """A choice among the images that a call names.

    Attributes:
        retry: only those that an earlier run left failed, partial, damaged or unfinished, as one that was killed does.
        since: only those of which a file changed after this moment; remote images, mosaics and band lists always count
            as changed.
        force: work on finished ones anew, too.
        only: these URIs; None for all.
    """

    retry: bool = False
    since: datetime | None = None
    force: bool = False
    only: frozenset[str] | None = None

    def of(self, sources: Sequence[Source]) -> list[Source]:
        """Return the images that are to be worked on.

        Raises:
            ConfigError: a retry where no image was begun: the run before it failed too early to leave any.
        """
        if self.retry and sources and not any(source.folder.is_dir() for source in sources):
            raise ConfigError(f"nothing to retry: none of {len(sources)} image(s) was begun; run this without --retry")
        return [source for source in sources if self.takes(source)]

    def takes(self, source: Source) -> bool:
        """Say whether an image is to be worked on."""
        if self.only is not None and source.uri not in self.only:
            return False
        if self.retry and not _needs_another_try(source.folder):
            return False
        if self.since is None or "://" in source.uri or source.uri.lower().endswith(LISTS):
            return True
        return _changed(Path(source.uri), self.since.timestamp())


def parse_moment(text: str) -> datetime:
    """Return an ISO 8601 date or time; without an offset it is local. Raises `ConfigError`."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise ConfigError(f"--since {text!r} is no date; write it like 2026-11-01 or 2026-11-01T18:30") from None


def _changed(path: Path, moment: float) -> bool:
    """Say whether a file of an image changed: a folder's own time tells nothing of the files below it."""
    from unetpp.io.base import other_files

    try:
        return any(file.stat().st_mtime >= moment for file in chain((path,), other_files(path)))
    except OSError:
        return True  # missing or not readable: its reader says what is wrong


def _needs_another_try(folder: Path) -> bool:
    try:
        return folder.is_dir() and read_state(folder).status not in ("done", "empty")
    except UnetppError:
        return True
