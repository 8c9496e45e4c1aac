"""Finishing in the background: everything is done at the end, and nothing goes on after an error."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from functools import partial

import pytest

from unetpp_workflows.finishing import Finishing


@pytest.mark.parametrize("most", [1, 64])
def test_all_is_done_at_the_end(most: int) -> None:
    done: list[int] = []
    with Finishing(most) as finishing:
        for number in range(100):
            finishing.begin(partial(done.append, number))
        finishing.wait()
        assert sorted(done) == list(range(100)) and finishing.left == 0


def test_an_interrupt_ends_what_runs_and_begins_nothing() -> None:
    begun = threading.Event()
    told: list[str] = []

    def long() -> None:
        begun.set()
        try:
            for _ in range(6000):
                finishing.check("vectors", 0.5)
                time.sleep(0.01)
        except CancelledError:
            told.append("stopped")

    clock = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Finishing(2) as finishing:
        for _ in range(50):
            finishing.begin(long)
        assert begun.wait(30)
        raise KeyboardInterrupt
    # As many as ran, far fewer than waited.
    assert 1 <= len(told) < 50 and finishing.left == 0 and time.monotonic() - clock < 50


def test_what_fails_is_told_and_the_others_are_done() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 3:
            raise OSError("no room for the log")
        done.append(number)

    with pytest.raises(OSError, match="no room"), Finishing(2) as finishing:
        for number in range(9):
            finishing.begin(partial(work, number))
        finishing.wait()
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7, 8]
