"""Keeps copies of remote files that cannot be read in ranges, in a folder of bounded size; knows no image format.

UNETPP_STAGING is the folder (~/.cache/unetpp otherwise) and UNETPP_STAGING_GB its size (20; 0 forbids copies). A copy
is named by the hash of URI, size and version, so a changed object is another copy. It appears whole or not at all, one
process fetches it for all, and the longest unused ones make room; a copy that is open anywhere is never deleted, nor is
a file that others put there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from unetpp.durable import output_errors
from unetpp.errors import ConfigError, ImageTooLargeError
from unetpp.io.remote import RemoteObject

PART_BYTES = 2**23
_COPY = re.compile(r"[0-9a-f]{32}(\.[^.]*)?(\.part)?")


class StagedFile:
    """A local copy, kept from deletion until this object is closed or garbage."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self.close()


def stage(source: RemoteObject) -> StagedFile:
    """Return a local copy of an object, fetched now where there is none.

    Raises:
        ImageTooLargeError: it does not fit into the folder's bound.
        RemoteError, CorruptImageError: as `RemoteObject.read`.
        OutputError: the folder cannot be written.
    """
    folder, bound = _settings()
    if source.size > bound:
        raise ImageTooLargeError(
            f"{source.uri}: cannot be read in ranges, and its {source.size / 1e9:.3g} GB exceed the "
            f"{bound / 1e9:g} GB of {folder}; raise UNETPP_STAGING_GB or copy the image here first"
        )
    identity = f"{source.uri}\0{source.size}\0{source.version}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:32] + PurePosixPath(urlsplit(source.uri).path).suffix.lower()
    path = folder / name
    with output_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        copy = StagedFile(path, _locked(_lock_file(path), fcntl.LOCK_SH))
        # One lock keeps the copy and its part from deletion; another lets one process fetch while the others wait.
        fetching = _locked(folder / f"{name}.fetch.lock", fcntl.LOCK_EX)
        try:
            if not path.exists():
                _make_room(folder, bound - source.size)
                _fetch(source, path)
        finally:
            os.close(fetching)
        os.utime(path)
    return copy


def _lock_file(copy: Path) -> Path:
    """Return the lock that keeps a copy, or the part of one, from deletion."""
    return copy.with_name(copy.name.removesuffix(".part") + ".lock")


def _locked(path: Path, mode: int) -> int:
    """Return a handle that holds a lock until it is closed; raises `BlockingIOError` where asked not to wait."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, mode)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _settings() -> tuple[Path, int]:
    text = os.environ.get("UNETPP_STAGING_GB") or "20"
    try:
        bound = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        raise ConfigError(f"UNETPP_STAGING_GB={text!r} is no number of gigabytes; correct or unset it") from None
    return Path(os.environ.get("UNETPP_STAGING") or "~/.cache/unetpp").expanduser().absolute(), bound


def _fetch(source: RemoteObject, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        for start in range(0, source.size, PART_BYTES):
            file.write(source.fetch(start, min(start + PART_BYTES, source.size)))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _make_room(folder: Path, allowed: int) -> None:
    """Delete copies that nobody has open, the longest unused first, until at most `allowed` bytes are left."""
    copies = []
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process makes room, too
            # Nothing is fetched without a lock beside it, which stays: other files are not ours, whatever their names.
            if _COPY.fullmatch(file.name) and _lock_file(file).is_file() and file.is_file():
                copies.append((file.stat().st_mtime_ns, file.stat().st_size, file))
    total = sum(size for _, size, _ in copies)
    for _, size, file in sorted(copies):
        if total <= allowed:
            return
        try:
            handle = _locked(_lock_file(file), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        file.unlink(missing_ok=True)
        os.close(handle)
        total -= size
