"""A signal that comes where Python can raise nothing ends the program all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import os, signal, sys, time
from unetpp_workflows.interruption import raise_at_signals

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        time.sleep(0.01)
        if {fault}:
            raise ValueError("not of a signal")

raise_at_signals()
try:
    Late()
    print("went on", flush=True)
    time.sleep({seconds})
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


def child(name: str, fault: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD.format(name=name, fault=fault, seconds=1 if fault else 20)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_interruption_that_python_drops_comes_again(name: str) -> None:
    ended = child(name)
    assert ended.stdout.split("\n")[:2] == ["went on", "interrupted"], ended.stderr
    assert ended.returncode == 130 and not ended.stderr


def test_other_exceptions_that_nobody_can_catch_are_told() -> None:
    ended = child("SIGCONT", fault=True)
    assert "ValueError: not of a signal" in ended.stderr and "interrupted" not in ended.stdout
    assert ended.returncode == 0
