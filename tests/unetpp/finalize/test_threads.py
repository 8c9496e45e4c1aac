"""Parts of a finishing step on threads: in order, none behind an error, and never many ahead of who takes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from unetpp.finalize.threads import Behind, ahead, in_order


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


def test_items_are_made_ahead_in_another_thread_but_never_many() -> None:
    made: list[int] = []
    makers = set()

    def numbers() -> Iterator[int]:
        for number in range(50):
            makers.add(threading.get_ident())
            made.append(number)
            yield number

    taken = []
    for number in ahead(numbers()):
        time.sleep(0.002)
        assert len(made) <= len(taken) + 4
        taken.append(number)
    assert taken == list(range(50))
    assert threading.get_ident() not in makers


def test_an_error_of_the_iterator_comes_behind_the_items_before_it() -> None:
    def numbers() -> Iterator[int]:
        yield from range(3)
        raise OSError("disk full")

    taken: list[int] = []
    with pytest.raises(OSError, match="disk full"):
        taken.extend(ahead(numbers()))
    assert taken == [0, 1, 2]


def test_an_iterator_that_nobody_goes_on_with_ends() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    items = ahead(numbers())
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count <= 4


def test_items_are_worked_on_behind_in_their_order_but_never_many() -> None:
    done: list[int] = []
    workers = set()

    def work(item: int) -> None:
        time.sleep(0.002)
        workers.add(threading.get_ident())
        done.append(item)

    with Behind(work) as behind:
        for item in range(50):
            behind.put(item)
            assert len(done) >= item - 2
    assert done == list(range(50))
    assert threading.get_ident() not in workers


@pytest.mark.parametrize("items", [1, 1000])
def test_behind_a_failed_item_nothing_more_is_done(items: int) -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        raise OSError("disk full")

    put = 0
    with pytest.raises(OSError, match="disk full"), Behind(work) as behind:
        for item in range(items):
            behind.put(item)
            put += 1
    assert begun == [0] and put < 4
