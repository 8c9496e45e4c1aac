"""Writes a file in a thread of its own, which also hashes it and has it on its way to the disk; knows no formats."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from unetpp.finalize.threads import Behind

_STARTED = 2**26
"""So many bytes are handed to the disk at once."""


class WrittenFile:
    """A new file that grows behind the thread that makes its bytes. It is not synced.

    Attributes:
        sha256: of the file (hex), once its block has ended.
    """

    def __init__(self, path: Path) -> None:
        self.sha256 = ""
        self._path = path
        self._open = ExitStack()
        self._digest = hashlib.sha256()
        self._file: IO[bytes]
        self._behind: Behind[bytes | memoryview]
        self._size = self._started = 0

    def __enter__(self) -> WrittenFile:
        self._file = self._open.enter_context(self._path.open("wb"))
        self._behind = self._open.enter_context(Behind(self._append))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()
        self.sha256 = self._digest.hexdigest()

    def write(self, content: bytes | memoryview) -> int:
        """Append what nobody changes any more; raises an `OSError` of this or of an earlier call."""
        self._behind.put(content)
        return len(content)

    def _append(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._size += len(content)
        if self._size - self._started >= _STARTED:
            self._start()

    def _start(self) -> None:
        """Have the disk begin, so that the last sync waits for little: Linux takes this advice as a call to write."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), self._started, self._size - self._started, os.POSIX_FADV_DONTNEED)
        self._started = self._size
