"""Runs the whole suite for `make test` in two lanes, for two cores, about as long: those of `BESIDE` beside all others.

Triton's interpreter acts on all kernels of a process from its start, so its tests have a process of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / ".beside.log"
BESIDE = ("tests/kernels", "tests/unetpp", "tests/workflows/viewer")
PYTEST = [sys.executable, "-m", "pytest", "-m", "not slow", "--durations=12"]


def main() -> int:
    beside = Beside(
        [
            ([*PYTEST, "tests/kernels/computed"], {"TRITON_INTERPRET": "1"}),
            *(([*PYTEST, folder], {}) for folder in BESIDE),
        ]
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    beside.start()
    try:
        code = subprocess.call([*PYTEST, *(f"--ignore={folder}" for folder in BESIDE)], cwd=ROOT)
        print(f"Waiting for the tests beside these: {', '.join(BESIDE)}", flush=True)
        beside.join()
    except (KeyboardInterrupt, SystemExit):
        beside.stop()
        return 130
    for found, text in beside.results:
        print(text[-30000 if found else -5000 :])
    return next((found for found in [code, *(found for found, _ in beside.results)] if found), 0)


class Beside(threading.Thread):
    """Commands with more environment, one after the other, into one log; `results` has exit code and text of each."""

    def __init__(self, commands: list[tuple[list[str], dict[str, str]]]) -> None:
        super().__init__(daemon=True)
        self.results: list[tuple[int, str]] = []
        self._commands = commands
        self._running: subprocess.Popen[Any] | None = None
        self._stopped = False

    def run(self) -> None:
        with LOG.open("wb") as log:
            for command, more in self._commands:
                if self._stopped:
                    return
                environment = os.environ | more
                start = LOG.stat().st_size
                self._running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
                code = self._running.wait()
                self.results.append((code, LOG.read_bytes()[start:].decode(errors="replace")))

    def stop(self) -> None:
        self._stopped = True
        if self._running is not None:
            self._running.terminate()
        self.join()


if __name__ == "__main__":
    sys.exit(main())
