"""Which images of a call are worked on: all, those that failed, or those changed since a moment; computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from unetpp.errors import ConfigError, UnetppError
from unetpp_workflows.inputs import Source
from unetpp_workflows.outputs import read_state


@dataclass(frozen=True)
class Selection:
    """A choice among the images that a call names.

    Attributes:
        retry: only those that an earlier run left failed, partial or damaged.
        since: only those whose file changed after this moment; remote images always count as changed.
        force: work on finished ones anew, too.
        only: these URIs; None for all.
    """

    retry: bool = False
    since: datetime | None = None
    force: bool = False
    only: frozenset[str] | None = None

    def takes(self, source: Source) -> bool:
        """Say whether an image is to be worked on."""
        if self.only is not None and source.uri not in self.only:
            return False
        if self.retry and not _needs_another_try(source.folder):
            return False
        if self.since is None or "://" in source.uri:
            return True
        path = Path(source.uri)
        # A missing file is taken, so that its reader says what is wrong.
        return not path.exists() or path.stat().st_mtime >= self.since.timestamp()


def parse_moment(text: str) -> datetime:
    """Return an ISO 8601 date or time; without an offset it is local. Raises `ConfigError`."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise ConfigError(f"--since {text!r} is no date; write it like 2026-11-01 or 2026-11-01T18:30") from None


def _needs_another_try(folder: Path) -> bool:
    try:
        return folder.is_dir() and read_state(folder).status in ("failed", "partial", "damaged")
    except UnetppError:
        return True
