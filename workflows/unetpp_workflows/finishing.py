"""Finishes images while the shards of others are still computed; knows threads, not what finishing is.

Here few images are finished at once, for each holds blocks of labels and uses several threads itself; where it is more
than one, each has a process. On a cluster its CPUs make the products, those that no worker has taken. One thread here
works or waits for each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from unetpp_workflows.machine import cpu_count

_CORES_PER_IMAGE = 4
_ON_CLUSTER_AT_ONCE = 64


def images_at_once(*, remote: bool) -> int:
    """Return how many images are finished at once, by a cluster or here."""
    return _ON_CLUSTER_AT_ONCE if remote else max(1, cpu_count() // _CORES_PER_IMAGE)


class Finishing:
    """Calls functions in the background, `most` at once; leaving the block by an error ends them soon."""

    def __init__(self, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="finish")
        self._begun: set[Future[None]] = set()
        self._error: BaseException | None = None
        self.stop = threading.Event()
        """Set when the call is given up."""

    def begin(self, work: Callable[[], None]) -> None:
        """Call `work` when there is room."""
        future = self._pool.submit(work)
        self._begun.add(future)
        future.add_done_callback(self._ended)

    @property
    def left(self) -> int:
        """Return how many are not finished."""
        return len(self._begun)

    def wait(self) -> None:
        """Return when all have ended, after which none is begun; raises what the first that failed raised."""
        self._pool.shutdown()  # its threads also count what they ended: the futures alone would be done before that
        if self._error is not None:
            raise self._error

    def check(self, *_: object) -> None:
        """Raise `CancelledError` where the call is given up; can be given to steps as their progress callback."""
        if self.stop.is_set():
            raise CancelledError

    def _ended(self, future: Future[None]) -> None:
        if not future.cancelled():
            self._error = self._error or future.exception()
        self._begun.discard(future)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.stop.set()
        self._pool.shutdown(cancel_futures=kind is not None)
