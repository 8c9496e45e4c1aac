"""File systems so small that a test can fill them; knows nothing of what is written there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def mount(folder: Path, kib: int) -> None:
    """Make a folder an empty file system of so many KiB; skips the test where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small tmpfs needs root")


def fill(disk: Path, left: int = 0) -> Path:
    """Fill a file system up to so many KiB and return the file that does it."""
    ballast = disk / "ballast"
    with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - 1024 * left)
    return ballast
