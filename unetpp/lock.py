"""Keeps two runs out of one output folder; knows nothing about what they write.

Workers hold the folder together (shared); a run that prepares the folder holds it alone. So a run that was killed and
started again waits for the last workers of its predecessor, and two runs with different settings cannot mix.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from unetpp.durable import output_errors
from unetpp.errors import StoreError

LOCK = ".lock"
WAIT_S = 30.0
_BUSY = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class FolderLock:
    """Holds a folder until closed or until the process ends, however it ends.

    Args:
        exclusive: alone, or together with others that are not exclusive.
        wait_s: how long to wait for others; half a minute when None.

    Raises:
        StoreError: others still hold the folder after that time.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, exclusive: bool, wait_s: float | None = None) -> None:
        path = Path(folder) / LOCK
        wait = WAIT_S if wait_s is None else wait_s
        with output_errors(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._acquire(fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, time.monotonic() + wait, folder)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _acquire(self, mode: int, deadline: float, folder: Path) -> None:
        while True:
            try:
                fcntl.flock(self._handle, mode | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    # Some network file systems cannot lock; there the user must not start two runs at once.
                    return
                if error.errno not in _BUSY:
                    raise
            if time.monotonic() > deadline:
                raise StoreError(f"{folder} is in use by another run of unetpp; wait for it, or stop it and try again")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
