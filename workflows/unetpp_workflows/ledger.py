"""Remembers an archive between nights: which images it had, how each ended, what was removed; computes nothing.

An image counts as changed when a file of it has another size or time. That is cheaper than a fingerprint, which reads
every file's ends: a night of a million images that did not change is some million `stat` calls. Only remote images,
mosaics and band lists, which must be opened to know what they are made of, have their fingerprint taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unetpp.errors import StoreError, UnetppError
from unetpp_workflows.inputs import LISTS, Source, identity
from unetpp_workflows.record import ImageRecord, write_json
from unetpp_workflows.steps import utc_now

LEDGER = "ledger.json"
FORMAT = 1
_FINISHED = ("done", "empty")


@dataclass
class Entry:
    """One image.

    Attributes:
        stamp: what `stamp` returned last.
        status: of its last segmentation, or "new"; "removed" once it is no longer in the archive.
        model: registered version that made its result.
        first: when it was first seen; `settled`: when it was last segmented; `gone`: when it was found removed.
    """

    name: str
    first: str
    stamp: str | None = None
    status: str = "new"
    model: str | None = None
    settled: str | None = None
    gone: str | None = None


@dataclass
class Ledger:
    """All images ever seen by URI, and the questions about challengers that were answered with no."""

    images: dict[str, Entry] = field(default_factory=dict)
    refused: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Ledger:
        """Read the ledger; an empty one where there is none. Raises `StoreError` for one that cannot be read."""
        path = folder / LEDGER
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise StoreError(f"{path} is of format {values['format']}, not {FORMAT}: another version wrote it")
            return cls({uri: Entry(**entry) for uri, entry in values["images"].items()}, dict(values["refused"]))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); move it away: results are kept, history is not"
            ) from None

    def save(self, folder: Path) -> None:
        """Replace the ledger in one step. Raises `OutputError`."""
        images = {uri: asdict(entry) for uri, entry in sorted(self.images.items())}
        write_json(folder / LEDGER, {"format": FORMAT, "images": images, "refused": self.refused})

    def settle(self, uri: str, status: str, model: str | None, moment: str) -> None:
        """Write down how an image ended."""
        entry = self.images[identity(uri)]
        entry.status, entry.settled = status, moment
        entry.model = model or entry.model


@dataclass(frozen=True)
class Sync:
    """How the archive differs from what the ledger knew.

    Attributes:
        again: images that ended badly before and are tried again.
        todo: what is to be segmented: the new, the changed and those again.
    """

    new: tuple[str, ...]
    changed: tuple[str, ...]
    again: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int
    todo: tuple[Source, ...]

    def to_json(self) -> dict[str, Any]:
        names = {key: list(getattr(self, key)) for key in ("new", "changed", "again", "removed")}
        return {**names, "unchanged": self.unchanged}

    def sentence(self) -> str:
        counts = (f"{len(getattr(self, key))} {key}" for key in ("new", "changed", "again", "removed"))
        return f"archive: {', '.join(counts)}, {self.unchanged} unchanged"


def sync(ledger: Ledger, sources: Iterable[Source], *, complete: bool) -> Sync:
    """Bring the ledger up to date with the archive and return what has changed.

    Args:
        complete: whether all of the archive could be listed; else nothing counts as removed.
    """
    found: dict[str, list[str]] = {"new": [], "changed": [], "again": []}
    todo, seen, unchanged = [], set(), 0
    for source in sources:
        uri = identity(source.uri)
        seen.add(uri)
        entry = ledger.images.get(uri)
        before = (entry.stamp, entry.status) if entry else None
        entry = ledger.images.setdefault(uri, Entry(source.name, utc_now()))
        entry.stamp, entry.gone = stamp(uri), None
        kind = _kind(before, entry, source)
        if kind is None:
            unchanged += 1
        else:
            entry.status = kind if kind in ("new", "changed") else entry.status
            found[kind].append(source.name)
            todo.append(source)
    gone = [entry for uri, entry in ledger.images.items() if uri not in seen and entry.gone is None] if complete else []
    for entry in gone:
        entry.status, entry.gone = "removed", utc_now()
    names = {kind: tuple(values) for kind, values in found.items()}
    return Sync(**names, removed=tuple(entry.name for entry in gone), unchanged=unchanged, todo=tuple(todo))


def _kind(before: tuple[str | None, str] | None, entry: Entry, source: Source) -> str | None:
    """Return why an image is to be segmented, None where it is finished as it is."""
    if before is None or before[1] in ("new", "removed"):
        return "new"
    if before[0] != entry.stamp or before[1] == "changed":
        return "changed"
    try:
        record = ImageRecord.read(source.folder)
    except StoreError:
        return "again"  # and then it is said what is wrong with it
    # With a warning it is segmented but not recorded: that is made up for.
    finished = record is not None and record.status in _FINISHED and record.warning is None
    return None if finished and before[1] in _FINISHED else "again"


def stamp(uri: str) -> str | None:
    """Return what tells that an image's files changed, None where it cannot be read.

    Of a remote image, a mosaic or a band list it is the fingerprint, else sizes and times. Of a folder, a Zarr image,
    the newest time, the sum of the sizes and the number of the files. A frame of a video has its video's.
    """
    from unetpp.io.bands import split_item
    from unetpp.io.base import fingerprint, other_files
    from unetpp.io.video import split_frame

    held = split_item(uri) or split_frame(uri)
    path = held[0] if held else Path(uri)
    try:
        if "://" in uri or path.name.lower().endswith(LISTS):
            return fingerprint(uri)
        if path.is_dir():
            facts = [file.stat() for file in path.rglob("*") if file.is_file()]
            return f"{len(facts)}-{sum(f.st_size for f in facts)}-{max((f.st_mtime_ns for f in facts), default=0)}"
        found, others = path.stat(), [(file.name, file.stat()) for file in other_files(path)]
    except (OSError, UnetppError):
        return None
    own = f"{found.st_size}-{found.st_mtime_ns}"
    if not others:
        return own
    beside = [(name, facts.st_size, facts.st_mtime_ns) for name, facts in others]
    return f"{own}-{hashlib.sha256(repr(beside).encode()).hexdigest()[:16]}"
