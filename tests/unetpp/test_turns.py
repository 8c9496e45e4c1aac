"""Tiles are lent to as many threads as there are tiles for, and to none for ever."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any, cast

import pytest

from unetpp.tiling import make_plan
from unetpp.turns import Turns


@pytest.mark.timeout(60)
def test_no_more_threads_help_than_there_are_tiles() -> None:
    """Each opens the image, and the shard waits for all of them: of a hundred idle threads most would do just that."""
    plan = make_plan(64, 192, halo=0, multiple=16, core=64, shard=192)
    turns: Turns[Any] = Turns(1)
    lent: list[Any] = []

    def one_more() -> None:
        with turns.helping() as shard:
            lent.append(shard)

    with turns.opened(cast("Any", None), plan.tiles(plan.shards()[0])) as opened:
        with ExitStack() as stack:
            assert [stack.enter_context(turns.helping()) for _ in range(3)] == [opened] * 3
            thread = threading.Thread(target=one_more)
            thread.start()
            thread.join(0.2)
            assert lent == []
        thread.join()  # the others have left, and their tiles are there still
        assert lent == [opened]
    thread = threading.Thread(target=one_more)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    turns.send_helpers_home()
    thread.join()
    assert lent == [opened, None]
