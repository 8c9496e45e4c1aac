"""What kernels compute: on a CUDA device, or in Triton's interpreter in a process started with TRITON_INTERPRET=1.

The variable acts when kernels are decorated, so that it cannot be set for some tests of a process. `make test` starts a
process of its own for this folder.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernels.computed.cases import INTERPRETED

collect_ignore = [] if INTERPRETED else ["test_interpreter.py"]


@pytest.fixture(autouse=True)
def right_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mend the interpreter's bf16, but for tests marked as looking at its faults."""
    if INTERPRETED and request.node.get_closest_marker("faulty") is None:
        from tests.kernels.computed import mend

        mend.install(monkeypatch)
    yield
