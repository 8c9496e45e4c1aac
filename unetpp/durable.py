"""Writes files so that a crash or a power cut leaves the old content or the new, never a mix; knows no formats."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unetpp.errors import OutputError, UnetppError

_ADVICE = {
    errno.ENOSPC: "free disk space and run the same command again, finished parts are kept",
    errno.EDQUOT: "your quota is used up: free space and run the same command again, finished parts are kept",
    errno.EFBIG: "raise the file size limit and run the same command again, finished parts are kept",
    errno.EACCES: "choose an output folder that you may write to",
    errno.EPERM: "choose an output folder that you may write to",
    errno.EROFS: "choose an output folder that you may write to",
}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn any `OSError` met while writing `path` into an `OutputError` of one line."""
    try:
        yield
    except UnetppError:
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the disk and run the same command again")
        raise OutputError(f"cannot write {path}: {error.strerror or error}; {advice}") from error


def write_file(path: Path, content: bytes, temporary: Path | None = None) -> None:
    """Replace `path` by `content` in one step; on the disk when this returns. Raises `OutputError`.

    Args:
        temporary: file beside it that a kill leaves behind, `.<name>.tmp` by default.
    """
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    with output_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            # On a full disk it would take the room of smaller files, such as the one that says what failed.
            with suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and user-space file systems have no fsync for folders.
        if not (path.is_dir() and error.errno == errno.EINVAL):
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Force a small folder onto the disk: every file, every folder, and its own name."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))
    sync(folder.parent)


def discard_folder(folder: Path) -> None:
    """Delete a folder so that a crash half-way never leaves half of it under its own name. Raises `OutputError`."""
    doomed = folder.with_name(f".{folder.name}.discarded")
    with output_errors(folder):
        # The name is ours: only an earlier, interrupted discard leaves it behind.
        shutil.rmtree(doomed, ignore_errors=True)
        if folder.exists():
            folder.replace(doomed)
            sync(folder.parent)
            shutil.rmtree(doomed)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
