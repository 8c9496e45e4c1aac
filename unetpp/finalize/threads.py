"""Runs parts of a finishing step on a few threads, beside, ahead of or behind each other; knows not what."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

_MOST = 4
"""Threads at most: each holds a block and what is made of it, and Python itself runs in one of them at a time."""
_AHEAD = 2
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `work(item)` in the order of the items; an error is raised in its turn, and no other one begins."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(_MOST, cores), thread_name_prefix="finalize") as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            for future in waiting:
                yield future.result()
        finally:
            for future in waiting:
                future.cancel()


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items of an iterator that runs in a thread of its own, two items ahead; its error comes in its turn."""
    iterator = iter(items)

    def advance() -> list[Item]:
        return list(islice(iterator, 1))

    with ThreadPoolExecutor(1, thread_name_prefix="finalize") as pool:
        waiting = deque(pool.submit(advance) for _ in range(_AHEAD))
        try:
            while found := waiting.popleft().result():
                waiting.append(pool.submit(advance))
                yield found[0]
        finally:
            for future in waiting:
                future.cancel()


class Behind(Generic[Item]):
    """Does the same to item after item in a thread of its own, two items behind the one that puts them.

    Behind an error nothing more is done; it is raised by a later `put`, or at the end of the block.
    """

    def __init__(self, work: Callable[[Item], object]) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="finalize")
        self._waiting: deque[Future[object]] = deque()
        self._failed = False

    def __enter__(self) -> Behind[Item]:
        return self

    def __exit__(self, *error: object) -> None:
        with self._pool:
            while self._waiting:
                self._waiting.popleft().result()

    def put(self, item: Item) -> None:
        """Have an item worked on; waits where too many are waiting."""
        self._waiting.append(self._pool.submit(self._unless_failed, item))
        if len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def _unless_failed(self, item: Item) -> None:
        if not self._failed:
            self._failed = True
            self._work(item)
            self._failed = False
