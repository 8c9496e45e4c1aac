"""Starting Ray on a busy machine: late processes are waited for by starting again, and then it says what to do.

A late process cannot be caused at will, so `ray.init` is replaced here and only here; every other test starts Ray.
"""

from __future__ import annotations

import pytest
import ray

from unetpp.errors import EngineError
from unetpp_workflows.executors.ray import ray_session


@pytest.mark.parametrize("late", [0, 2, 99])
def test_a_late_start_is_tried_again_and_given_up_in_one_line(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"init": 0, "shutdown": 0}

    def init(**_: object) -> None:
        calls["init"] += 1
        if calls["init"] <= late:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may keep a session in this process
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.update(shutdown=calls["shutdown"] + 1))
    if late < 99:
        with ray_session(None, cpus=1):
            assert calls == {"init": late + 1, "shutdown": late}
        assert calls["shutdown"] == late + 1
    else:
        with pytest.raises(EngineError, match="use --executor local"), ray_session(None, cpus=1):
            pass
        assert calls["init"] == calls["shutdown"] == 4
