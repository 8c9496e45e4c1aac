"""What watch.py says of commands whose memory and time are known."""

from __future__ import annotations

import sys
import time

import pytest

import tests.benchmarks.watch
from tests.benchmarks.watch import Pauses, watch

PARENT = """
import subprocess, sys, time
subprocess.run([sys.executable, "-c", ""], check=True)
time.sleep(0.5)  # this process itself grows no more
subprocess.run([sys.executable, "-c", "import time; held = b'x' * 300_000_000; time.sleep(0.6)"], check=True)
print("done")
"""


def test_memory_of_children_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.benchmarks.watch, "PSS_S", 600.0)  # only what grows is looked at
    watched = watch([sys.executable, "-c", PARENT])
    assert watched.ended == "done" and watched.text == "done\n" and watched.seconds > 0.6
    assert 300 < watched.peak_pss_mb < 400


def test_what_takes_too_much_ends_with_all_below_it() -> None:
    watched = watch([sys.executable, "-c", PARENT.replace("sleep(0.6)", "sleep(600)")], most_mb=200)
    assert watched.ended == "stopped at 200 MB" and watched.peak_pss_mb > 200 and watched.seconds < 300
    watched = watch([sys.executable, "-c", PARENT.replace("sleep(0.6)", "sleep(600)")], most_seconds=0.5)
    assert watched.ended == "stopped after 0.5 s" and watched.seconds < 300


def test_a_failure_is_told_from_an_end() -> None:
    assert watch([sys.executable, "-c", "raise SystemExit(3)"]).ended == "exit code 3"


TICKS = """
import time
for tick in range(12):
    print("late" if tick == 8 else "tick", time.monotonic(), flush=True)
    time.sleep(0.25)
"""


def test_a_pause_stops_the_command_and_is_not_its_time() -> None:
    pauses: list[tuple[float, float]] = []

    def measure() -> None:
        began = time.monotonic()
        time.sleep(1.0)
        pauses.append((began, time.monotonic()))

    began = time.monotonic()
    watched = watch([sys.executable, "-c", TICKS], pauses=Pauses(0.5, measure, "late"))
    assert watched.seconds <= time.monotonic() - began - len(pauses)
    ticks = [(name, float(at)) for name, at in (line.split() for line in watched.text.splitlines())]
    assert pauses and not [at for _, at in ticks for began, end in pauses if began + 0.2 < at < end]
    assert max(end for _, end in pauses) < next(at for name, at in ticks if name == "late") + 1.5
    # A sleep that a pause falls into ends with it: a quarter of a second at most is slept away in each.
    assert watched.paused_seconds >= len(pauses) and watched.seconds > 3 - len(pauses) / 4
    assert ticks[-1][1] - ticks[0][1] > 2.75 + 0.75 * len(pauses) - 0.1, "the command's own clock went on"
