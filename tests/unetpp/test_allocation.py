"""Freed memory serves the next tensor: counted by the pages that the kernel has to give."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
