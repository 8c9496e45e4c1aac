"""Writes what a run does as lines of JSON, for machines that watch; knows names and numbers, shows nothing.

OUTPUT/logs/<time>-<id>.jsonl: one line per event, each with time (UTC), run and event.
"""

from __future__ import annotations

import json
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unetpp.durable import output_errors
from unetpp.errors import OutputError

LOGS = "logs"


class EventLog:
    """One run's log; may be written from several threads. Raises `OutputError` where it cannot be begun.

    Attributes:
        fault: why an event is missing, the first one's reason; a log that cannot be written must not end a run.
    """

    def __init__(self, output: Path) -> None:
        self.run = uuid.uuid4().hex[:12]
        self.fault: OutputError | None = None
        self._lock = threading.Lock()
        self._torn = False
        self.path = output / LOGS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{self.run}.jsonl"
        with output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)  # opened once: a driver writes thousands of lines a second

    def write(self, event: str, **facts: Any) -> None:
        """Append one event; facts are JSON values. Where that fails, `fault` says why."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "run": self.run, "event": event, **facts}, ensure_ascii=False)
        with self._lock:
            try:
                with output_errors(self.path):
                    self._append((line + "\n").encode())
            except OutputError as error:
                self.fault = self.fault or error

    def _append(self, line: bytes) -> None:
        """Write a whole line: the last room of a disk takes a part of one, which then is a line of its own."""
        left = b"\n" + line if self._torn else line
        while left:
            self._torn = True
            left = left[self._file.write(left) :]
        self._torn = False

    def close(self) -> None:
        self._file.close()
