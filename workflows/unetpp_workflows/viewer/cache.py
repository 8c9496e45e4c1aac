"""Keeps recent values within a budget of bytes or of number; knows nothing about what they are."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """The most recently used values, at most `limit` in sum of `size(value)`; safe from several threads.

    Two threads that miss the same key at once both make its value; the second one wins.
    """

    def __init__(self, limit: int, size: Callable[[T], int] = lambda _: 1) -> None:
        self._limit, self._size = limit, size
        self._used = 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        return self._used

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of `key`, made now where it is not kept; errors of `make` are raised and not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key in self._values:
                self._used -= self._size(self._values.pop(key))
            self._values[key] = value
            self._used += self._size(value)
            while self._used > self._limit and len(self._values) > 1:
                self._used -= self._size(self._values.popitem(last=False)[1])
        return value
