"""Runs the kernels in Triton's interpreter: only in a process that was started with TRITON_INTERPRET=1.

The variable acts when kernels are decorated, so that it cannot be set for some tests of a process. `make test` starts a
process of its own for this folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


@pytest.fixture(autouse=True)
def right_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mend the interpreter's bf16, but for tests marked as looking at its faults."""
    if request.node.get_closest_marker("faulty") is None:
        from tests.kernels.interpreted import mend

        mend.install(monkeypatch)
    yield
