"""Freed memory serves the next tensor, and large blocks lie in huge pages: both read from what the kernel counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unetpp.allocation import huge_pages

PAGES = """
import ctypes, resource, sys
import torch
from unetpp.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(16):  # until small blocks that lie between are settled
    torch.ones(2**24)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how: str) -> int:
    found = subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are left as they are")
def test_large_tensors_reuse_what_was_freed() -> None:
    usual, kept = pages("usual"), pages("keep")
    assert kept < 100
    assert usual > 1000, "the C library has learnt it: keep_freed_memory can go"


HUGE = """
import os, sys
from unetpp.allocation import huge_pages, restart_with_huge_pages
print(os.getpid(), flush=True)
if sys.argv[1] == "restart":
    restart_with_huge_pages()
block = b"x" * 2**26  # not an array: numpy asks for huge pages by itself
with open("/proc/self/smaps_rollup") as file:
    huge = next(int(line.split()[1]) for line in file if line.startswith("AnonHugePages"))
print(huge_pages(), huge, " ".join(sys.argv[2:]))
"""


def began(how: str, **environment: str) -> list[str]:
    """Return what the program says line by line; its process number comes once more if it begins again."""
    outside = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", HUGE, how, "two words", "-c"]
    return subprocess.run(
        command, env=outside | environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


offered = pytest.mark.skipif(huge_pages({}) != "possible", reason="huge pages are not to be asked for here")


@offered
def test_a_restarted_program_has_its_large_blocks_in_huge_pages() -> None:
    first, second, found = began("restart")
    assert first == second, "another process"
    state, kilobytes, *arguments = found.split()
    assert (state, arguments) == ("set", ["two", "words", "-c"])
    # Of 32 pages of 2 MB the kernel gives those that it finds at once: on a busy machine only some.
    assert int(kilobytes) >= 10_000
    assert int(began("stay")[-1].split()[1]) == 0, "the C library does it by itself: the restart can go"


@offered
@pytest.mark.parametrize(
    ("tunables", "times", "state"),
    [("glibc.malloc.hugetlb=0", 1, "set"), ("glibc.malloc.arena_max=2", 2, "set"), ("", 2, "set")],
)
def test_what_the_user_has_tuned_stays(tunables: str, times: int, state: str) -> None:
    *begun, found = began("restart", GLIBC_TUNABLES=tunables)
    assert (len(begun), found.split()[0]) == (times, state)


@pytest.mark.parametrize(
    ("offer", "state"),
    [
        ("always madvise [never]", "never"),
        ("[always] madvise never", "always"),
        ("nonsense", "never"),
        (None, "never"),
    ],
)
def test_what_the_kernel_offers_is_read(tmp_path: Path, offer: str | None, state: str) -> None:
    if offer is not None:
        (tmp_path / "enabled").write_text(offer)
    assert huge_pages({}, tmp_path / "enabled") == state


@offered
def test_the_command_asks_for_huge_pages() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-m", "unetpp_workflows", "doctor"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
    assert "huge pages: as GLIBC_TUNABLES says" in " ".join(found.split())
