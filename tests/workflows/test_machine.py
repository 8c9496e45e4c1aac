"""Cores and memory of a machine, read from files written here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from unetpp_workflows.machine import cpu_count, free_memory


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


@pytest.mark.parametrize(
    ("limit", "used", "left"), [("900", "300", 640), ("2000", "0", 1000), ("max", "300", 1000), ("900", "980", 0)]
)
def test_a_container_limit_leaves_less_memory(tmp_path: Path, limit: str, used: str, left: int) -> None:
    own, meminfo = tmp_path / "own", tmp_path / "meminfo"
    own.write_text("0::/pods/job\n")
    meminfo.write_text("MemTotal:  4096 kB\nMemAvailable:  1000 kB\nHugePages_Total:  0\n")
    assert free_memory(tmp_path, own, meminfo) == 1000 * 1024
    for place in ("", "pods", "pods/job"):
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(limit if limit == "max" else str(int(limit) * 1024))
        (folder / "memory.current").write_text(str(int(used) * 1024))
        (folder / "memory.stat").write_text(f"anon 5\nactive_file {30 * 1024}\ninactive_file {10 * 1024}\n")
        assert free_memory(tmp_path, own, meminfo) == left * 1024
        (folder / "memory.max").write_text("max")
    assert free_memory(tmp_path, own, tmp_path / "absent") is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="not Linux")
def test_this_machine_has_memory_left() -> None:
    found = free_memory()
    assert found is not None and 0 < found <= psutil.virtual_memory().total


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


FAULTS = """
import resource, numpy as np
from unetpp_workflows.machine import freed_memory_kept, return_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(4 * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
return_freed_memory()
before = faults()
with freed_memory_kept():
    inside = faults()
print(before, inside, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_arrays_are_kept_for_the_next_while_that_is_asked_for() -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, inside, after = map(int, run.stdout.split())
    assert min(before, after) > 10 * inside, (before, inside, after)


PINNED = """
import numpy as np, psutil
from unetpp_workflows.machine import freed_memory_kept
with freed_memory_kept():
    arrays = [(np.ones(4 * 2**20, np.uint8), np.ones(50_000, np.uint8)) for _ in range(30)]
    small = [pair[1] for pair in arrays]
    full = psutil.Process().memory_info().rss
    del arrays
print((full - psutil.Process().memory_info().rss) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_behind_that_freed_arrays_below_small_ones_go_back_too() -> None:
    run = subprocess.run([sys.executable, "-c", PINNED], capture_output=True, text=True, check=True)
    assert int(run.stdout) >= 100
