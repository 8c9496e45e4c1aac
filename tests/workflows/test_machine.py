"""Cores and instructions of a machine, read from files written here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from unetpp_workflows.machine import cpu_count


@pytest.mark.parametrize(
    ("quota", "cores"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_container_quota_limits_the_cores(tmp_path: Path, quota: str, cores: int | None) -> None:
    free = cpu_count(tmp_path / "absent")
    assert free == len(os.sched_getaffinity(0))
    own = tmp_path / "own"
    own.write_text("4:memory:/elsewhere\n0::/system.slice/unetpp nightly.service\n")
    assert cpu_count(tmp_path, own) == cpu_count(tmp_path, tmp_path / "absent") == free
    for place in ("", "system.slice", "system.slice/unetpp nightly.service"):
        file = tmp_path / place / "cpu.max"
        file.parent.mkdir(exist_ok=True)
        file.write_text(quota)
        assert cpu_count(tmp_path, own) == (cores or free)
        file.write_text("max 100000")


HEAP = """
import sys, numpy as np, psutil
from unetpp_workflows.machine import return_freed_memory
if sys.argv[1] == "returned":
    return_freed_memory()
np.ones(24 * 2**20, np.uint8)  # freed at once: from now on glibc would take 8 MiB from its heap
arrays = [np.ones(8 * 2**20, np.uint8) for _ in range(20)]
full = psutil.Process().memory_info().rss
del arrays[:-1]  # the last one pins the heap's end
print((full - psutil.Process().memory_info().rss) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_arrays_go_back_to_the_system() -> None:
    freed = {
        mode: int(subprocess.run([sys.executable, "-c", HEAP, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("kept", "returned")
    }
    assert freed["kept"] < 100 and freed["returned"] >= 19 * 8
