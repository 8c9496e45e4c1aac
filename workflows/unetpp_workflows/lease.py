"""Keeps two runs from writing one output folder, on any number of machines; knows a file and a clock.

A run holds the folder by a small file that it renews. A run that is gone does not renew: on its own machine, or in its
own container, that is seen at once, elsewhere when the lease has expired. A run that cannot renew stops before that.
(`unetpp.lock` guards single images between processes of one machine; not every shared file system has such locks, and
none tells who holds them.)
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from unetpp.durable import output_errors, write_file
from unetpp.errors import StoreError
from unetpp.lock import FolderLock

LEASE = ".lease.json"
LEASES = ".lease*.json"
SECONDS = 60.0
_SURE = 0.75
"""Share of a lease for which its holder counts on it; the rest is for clocks that differ and for what is in work."""


class Lease:
    """Holds an output folder while the block runs.

    Args:
        output: the folder, which exists.
        part: "K-of-N": hold only the K-th of N parts; other parts of N may then be held by others, the whole not.
        seconds: how long other machines wait for a sign of life before they take the folder over.

    Raises:
        StoreError: another run holds it; the message says who, where and since when.
        OutputError: the folder cannot be written.
    """

    def __init__(self, output: Path, *, part: str | None = None, seconds: float = SECONDS) -> None:
        self._file = output / (f".lease-{part}.json" if part else LEASE)
        self._part = part
        self._seconds = seconds
        self._facts = {
            "id": uuid.uuid4().hex,
            **_place(),
            "pid": os.getpid(),
            "process_began": _began(os.getpid()),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._renewed = time.monotonic()
        self._fault: OSError | None = None
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        with FolderLock(self._file.parent, exclusive=True):
            for file in self._rivals():
                holder = _read(file)
                if holder is None or _is_gone(holder):
                    continue
                left = max(0.0, holder["expires"] - time.time())
                raise StoreError(
                    f"{self._file.parent} is being written by process {holder['pid']} on {holder['host']} since "
                    f"{holder['since']}; wait for it, stop it, or if it is gone wait {left:.0f} s"
                )
            self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with output_errors(self._file):
            if self._is_mine():
                self._file.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `StoreError` where another run has taken the folder over, or soon may as this one could not renew."""
        if self._lost.is_set():
            raise StoreError(
                f"{self._file.parent} was taken over by another run while this one gave no sign for "
                f"{self._seconds:.0f} s; what is finished is kept: look at `unetpp status`"
            )
        silent = time.monotonic() - self._renewed
        if silent > _SURE * self._seconds:
            why = self._fault or "the disk or this process stood still; run the same command again to continue"
            raise StoreError(
                f"{self._file.parent} may be taken over by another run: no sign of this one for {silent:.0f} s: {why}"
            )

    @staticmethod
    def expired(output: Path) -> list[Path]:
        """Return the lease files of a folder that hold nothing any more."""
        holders = {file: _read(file) for file in sorted(output.glob(LEASES))}
        return [file for file, holder in holders.items() if holder is None or _is_gone(holder)]

    def _rivals(self) -> list[Path]:
        """Return the files that must not be alive while this one is."""
        files = sorted(self._file.parent.glob(LEASES))
        if self._part is None:
            return files
        count = self._part.partition("-of-")[2]
        return [file for file in files if file == self._file or not file.stem.endswith(f"-of-{count}")]

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / 4):
            try:
                if not self._is_mine():
                    self._lost.set()
                    return
                self._write()
            except OSError as error:
                # A full disk or a share that is away may be back before the lease ends; `check` knows when it is not.
                self._fault = error

    def _write(self) -> None:
        begun = time.monotonic()
        facts = {**self._facts, "expires": time.time() + self._seconds}
        write_file(self._file, (json.dumps(facts, indent=1) + "\n").encode())
        self._renewed, self._fault = begun, None

    def _is_mine(self) -> bool:
        holder = _read(self._file)
        return holder is not None and holder["id"] == self._facts["id"]


def _read(file: Path) -> dict[str, Any] | None:
    """Return who holds the folder; None where nobody does, or where the file is torn."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return facts if isinstance(facts, dict) and {"id", "host", "pid", "since", "expires"} <= facts.keys() else None


def _place() -> dict[str, str]:
    """Return where this process runs; without boot and namespace (macOS) nothing says what a process number means."""
    place = {"host": socket.gethostname()}
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return {**place, "boot": boot, "pid_namespace": str(Path("/proc/self/ns/pid").readlink())}
    except OSError:
        return place


def _is_gone(holder: dict[str, Any]) -> bool:
    """Say whether a holder has ended, or has given no sign for so long that it counts as that."""
    here = _place()
    # Containers may share the name of their host, and their process numbers still are others than the host's.
    if "boot" not in here or any(holder.get(name) != value for name, value in here.items()):
        return bool(time.time() > holder["expires"])
    try:
        # A later process may have got the same number. Older versions did not say.
        other = holder.get("process_began") not in (None, _began(holder["pid"]))
        return bool(other or psutil.Process(holder["pid"]).status() == psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return True
    except (psutil.AccessDenied, PermissionError):
        return False  # it is there, though another user's and hidden


def _began(pid: int) -> int | None:
    """Return when a process began in ticks since the machine's boot, None on other systems than Linux.

    psutil says it in the time of a clock, which is set now and then: a run that lives would count as another one.

    Raises:
        OSError: there is no such process.
    """
    if not Path("/proc/self/stat").exists():
        return None
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[19])  # the 22nd of all, see proc(5)
