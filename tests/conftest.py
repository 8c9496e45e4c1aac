"""Fixtures shared by every test: where the real sample data lies, and what may skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

GPU_REASON = "needs a CUDA device"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real samples named by UNETPP_DATA; tests that need it skip where it is not set."""
    folder = os.environ.get("UNETPP_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("UNETPP_DATA is not set to the folder of real sample images")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason=GPU_REASON))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With UNETPP_NO_SKIP set (as in CI), a test that skips for want of anything but a GPU fails."""
    report = yield  # type: ignore[misc]
    if os.environ.get("UNETPP_NO_SKIP") and report.skipped and not item.get_closest_marker("gpu"):
        if not hasattr(report, "wasxfail"):
            report.outcome = "failed"
            report.longrepr = f"skipped where nothing may skip: {report.longrepr}"
    return report  # type: ignore[return-value]
