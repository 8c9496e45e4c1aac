"""What the shard workers of one process share: turns, and tiles for threads with nothing to do; knows no pixels."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from unetpp.job import SegmentJob
    from unetpp.tiling import Tile

R = TypeVar("R")


class Turns(Generic[R]):
    """How many shards may compute, and how many may be written, at once; and which have tiles that others may take.

    Near the end of a run fewer shards are left than workers. Shards are files and stay whole; their tiles need not be
    computed by one thread.

    Args:
        compute, write: at once.
    """

    def __init__(self, compute: int, write: int = 1) -> None:
        self.compute = threading.BoundedSemaphore(compute)
        self.write = threading.BoundedSemaphore(write)
        self._changed = threading.Condition()
        self._open: list[OpenShard[R]] = []
        self._over = False

    @contextmanager
    def opened(self, job: SegmentJob, tiles: Sequence[Tile]) -> Iterator[OpenShard[R]]:
        """Lend a shard of these tiles, which others see meanwhile; the block ends when none of them is at it any more.

        Raises:
            BaseException: what a thread that helped has raised.
        """
        shard: OpenShard[R] = OpenShard(job, tiles)
        with self._changed:
            self._open.append(shard)
            self._changed.notify_all()
        try:
            yield shard
        finally:
            with self._changed:
                self._open.remove(shard)
                shard.clear()  # more than none where this thread has failed
                self._changed.wait_for(lambda: not shard.helpers)
        if shard.error is not None:
            raise shard.error

    @contextmanager
    def helping(self) -> Iterator[OpenShard[R] | None]:
        """Wait for a shard with tiles to take and lend it to one more thread; None when helpers have been sent home."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or any(shard.spare > 0 for shard in self._open))
            shard = None if self._over else max(self._open, key=lambda shard: shard.spare)
            if shard is not None:
                shard.helpers += 1
        if shard is None:
            yield None
            return
        try:
            yield shard
        except BaseException as error:  # noqa: BLE001 (it is raised where the shard was opened, whose tile is lost)
            shard.error = error
            shard.clear()  # nobody begins more of it
        finally:
            with self._changed:
                shard.helpers -= 1
                self._changed.notify_all()

    def send_helpers_home(self) -> None:
        """Let every `helping` return None, now and later."""
        with self._changed:
            self._over = True
            self._changed.notify_all()


class OpenShard(Generic[R]):
    """The tiles of one shard that nobody has begun: its own thread takes them from the front, others from the back.

    Attributes:
        helpers: other threads that are at it.
        error: what one of them has raised.
        made: what they have made of their tiles.
    """

    def __init__(self, job: SegmentJob, tiles: Sequence[Tile]) -> None:
        self.job = job
        self.helpers = 0
        self.error: BaseException | None = None
        self.made: list[R] = []
        self._tiles = deque(tiles)

    def clear(self) -> None:
        self._tiles.clear()

    @property
    def spare(self) -> int:
        """Return how many tiles are left beyond one for each helper, all of which may still be opening the image."""
        return len(self._tiles) - self.helpers

    def first(self) -> Tile | None:
        """Take the next tile of the shard's own thread; None when none is left or a helper has failed."""
        try:
            return self._tiles.popleft()
        except IndexError:
            return None

    def last(self) -> Tile | None:
        """Take a tile for another thread; None when none is left."""
        try:
            return self._tiles.pop()
        except IndexError:
            return None
