"""Fixtures shared by every test: where the real sample data lies, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real samples named by UNETPP_DATA; tests that need it skip where it is not set."""
    folder = os.environ.get("UNETPP_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("UNETPP_DATA is not set to the folder of real sample images")
    return Path(folder)
