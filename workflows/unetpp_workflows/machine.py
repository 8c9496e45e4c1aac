"""What this machine offers a run: cores and memory it may use; knows nothing of what runs on them."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from glibc's malloc.h


def cpu_count(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Return the cores this process may use: its affinity, cut to the quota of its cgroup and of those around it.

    A container sees its own cgroup as the outermost one; a service or a job of Slurm is deep below it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for place in _cgroups(cgroups, own):
        try:
            quota, period = (place / "cpu.max").read_text(encoding="ascii").split()
            cores = min(cores, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):  # no quota
            continue
    return max(1, cores)


def free_memory(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes that this process may still take before the system kills something; None where it is not said.

    That is what the machine has left, or less where its cgroup or one of those around it has a limit. Pages of files
    that were read count as free in both, as the system drops them first.
    """
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):  # not Linux
        return None
    for place in _cgroups(cgroups, own):
        try:
            limit, used = (int((place / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
            stat = dict(line.split() for line in (place / "memory.stat").read_text(encoding="ascii").splitlines())
            cached = sum(int(stat.get(kind, 0)) for kind in ("active_file", "inactive_file"))
            free = min(free, limit - used + cached)
        except (OSError, ValueError):  # no limit
            continue
    return max(0, free)


def _cgroups(root: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of those around it; none where there are no cgroups v2."""
    try:
        names = next(line for line in own.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    inner = Path(names.removeprefix("0::").lstrip("/"))
    for place in (inner, *inner.parents):
        yield root / place


def worker_count(threads: int, *, gpus: bool = True) -> int:
    """Return how many workers of so many threads fill the machine: one per GPU, or else its cores."""
    from unetpp.engine import torch_is_for_gpus

    if gpus and torch_is_for_gpus():
        import torch

        if torch.cuda.device_count():
            return torch.cuda.device_count()
    return max(1, cpu_count() // threads)


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name as Linux writes it, else its architecture."""
    try:
        lines = info.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@contextmanager
def rare_collections(objects: int) -> Iterator[None]:
    """Let Python look for garbage in cycles less often where a block keeps many objects, which it would look at again.

    With a hundred thousand images prepared, that took half of the driver's time.
    """
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], objects), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def return_freed_memory() -> None:
    """Let glibc give arrays of 1 MiB and more back to the system when they are freed; other C libraries do as they do.

    By itself it raises that limit to 32 MiB as arrays come and go, and keeps a heap per thread with holes of their
    sizes: 240 MB more at the peak of a 16384 px slide on two threads. Not for training: CPU tensors come and go at
    every operation, and each would be zeroed by the kernel again.
    """
    _set_allocator({_M_MMAP_THRESHOLD: 2**20, _M_TRIM_THRESHOLD: 2**17, _M_ARENA_MAX: 2})


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc keep freed arrays of up to 8 MiB for the next ones; then return them, as `return_freed_memory` says.

    To outline the objects of a gigapixel, ten thousand arrays of 1 to 8 MiB come and go, and the kernel's zeroing of
    their pages took a quarter of the time.
    """
    _set_allocator({_M_MMAP_THRESHOLD: 2**23, _M_TRIM_THRESHOLD: 2**25})
    try:
        yield
    finally:
        return_freed_memory()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
        if trim is not None:
            trim(0)  # else small objects above them would hold freed arrays


def _set_allocator(settings: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for name, value in settings.items():
            mallopt(name, value)
