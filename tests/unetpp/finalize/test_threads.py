"""Parts of a finishing step on threads: in order, and none begins behind an error."""

from __future__ import annotations

import threading
import time

import pytest

from unetpp.finalize.threads import in_order


def test_results_come_in_the_order_of_the_items() -> None:
    def work(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return -item

    assert list(in_order(work, range(20))) == [-item for item in range(20)]


def test_behind_an_error_nothing_more_begins() -> None:
    begun: list[int] = []
    failed = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            failed.set()
            raise OSError("disk full")
        assert failed.wait(60)
        time.sleep(0.05)

    with pytest.raises(OSError, match="disk full"):
        list(in_order(work, range(1000)))
    assert len(begun) < 100
