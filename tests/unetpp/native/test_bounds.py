"""No instruction reads or writes outside of the memory that it is given: there, the process would end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unetpp.native.machine import TARGETS

pytestmark = pytest.mark.skipif(not TARGETS, reason="no machine code for this CPU")
ROOT = Path(__file__).parents[3]


def walk(target: str, less: str = "") -> subprocess.CompletedProcess[str]:
    """Run networks between forbidden pages in a process of its own; `less` makes some memory smaller than needed."""
    command = [sys.executable, "-m", "tests.unetpp.native.walk", target, less]
    path = os.pathsep.join(str(ROOT / part) for part in (".", "workflows", "kernels"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_networks_stay_inside_their_memory(target: str) -> None:
    """All of it: maps, scratches, weights, image and result."""
    done = walk(target)
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    assert int(done.stdout.split()[-1]) >= 120


@pytest.mark.parametrize("less", ["maps", "heads", "scratch", "mean", "image"])
def test_memory_that_is_too_small_is_noticed(less: str) -> None:
    """The walk can fail: it ends where a buffer has less than it needs."""
    done = walk(next(iter(TARGETS)), less)
    assert done.returncode < 0, (done.stdout[-500:], done.stderr[-2000:])
