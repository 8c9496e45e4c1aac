"""The one clock of cpu.py and peers.py, so that both sides are timed alike; knows calls, not networks."""

from __future__ import annotations

import time
from collections.abc import Callable


def throughput(call: Callable[[], object], pixels: int, seconds: float) -> float:
    """Return million pixels per second of wall time: one call to warm up, then calls for `seconds`, one at least."""
    call()
    calls = 0
    began = time.perf_counter()
    while True:
        call()
        calls += 1
        spent = time.perf_counter() - began
        if spent >= seconds:
            return calls * pixels / spent / 1e6
