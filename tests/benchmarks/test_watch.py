"""What watch.py says of commands whose memory and time are known."""

from __future__ import annotations

import sys

from tests.benchmarks.watch import watch

PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; held = b'x' * 300_000_000; time.sleep(1.5)"], check=True)
print("done")
"""


def test_memory_of_children_counts() -> None:
    watched = watch([sys.executable, "-c", PARENT])
    assert watched.ended == "done" and watched.text == "done\n" and watched.seconds > 1.5
    assert 300 < watched.peak_pss_mb < 400


def test_what_takes_too_much_ends_with_all_below_it() -> None:
    watched = watch([sys.executable, "-c", PARENT.replace("1.5", "600")], most_mb=200)
    assert watched.ended == "stopped at 200 MB" and watched.peak_pss_mb > 200 and watched.seconds < 300
    watched = watch([sys.executable, "-c", PARENT.replace("1.5", "600")], most_seconds=0.5)
    assert watched.ended == "stopped after 0.5 s" and watched.seconds < 300


def test_a_failure_is_told_from_an_end() -> None:
    assert watch([sys.executable, "-c", "raise SystemExit(3)"]).ended == "exit code 3"
