"""Calls one function in processes of this machine; knows no image and no shard.

Threads share Python's lock: two of them finished eight images of 0.1 gigapixel in 16.1 s, one in 16.2, and two
processes in 12.4 (two cores). multiprocessing would import the caller's script again in every process, which a script
without a guard does not survive, so they are started as commands of their own.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from unetpp import child
from unetpp.errors import EngineError, UnetppError, one_line
from unetpp_workflows.machine import return_freed_memory

_LOOKS_EVERY_S = 0.5


class Processes:
    """Calls `work`, as often at once as it is asked to; processes start when needed and end with the block.

    Args:
        work: can be pickled, like its values and results; it travels once to each process.
    """

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = pickle.dumps(work)
        self._idle: list[_Process] = []
        self._lock = threading.Lock()

    def call(self, *values: Any, stop: threading.Event) -> Any:
        """Return `work(*values)` of a process that makes no other call meanwhile.

        Args:
            stop: set by another thread, ends the process and this call.

        Raises:
            CancelledError: stopped.
            EngineError: the process died, or `work` raised something that is not ours.
            UnetppError: that `work` raised.
        """
        with self._lock:
            process = self._idle.pop() if self._idle else None
        process = process or _Process(self._work)
        try:
            found, error = process.call(values, stop)
        except BaseException:
            process.end()
            raise
        with self._lock:
            self._idle.append(process)
        if error is not None:
            raise error
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._idle:
            self._idle.pop().end()


class _Process:
    def __init__(self, work: bytes) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._process = child.start(
                __name__,
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._first: bytes | None = work

    def call(self, values: tuple[Any, ...], stop: threading.Event) -> tuple[Any, UnetppError | None]:
        try:
            if self._first is not None:
                self._connection.send_bytes(self._first)
                self._first = None
            self._connection.send(values)
            while not self._connection.poll(_LOOKS_EVERY_S):
                if stop.is_set():
                    raise CancelledError
            answer: tuple[Any, UnetppError | None] = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            code = self._process.wait()
            raise EngineError(f"a process of this machine ended with {code}; is its memory too small?") from error
        return answer

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _serve(connection: Connection, parent: str) -> None:
    """Answer the calls of another process until it closes the connection or is gone."""
    child.end_with(parent)
    return_freed_memory()
    try:
        work = pickle.loads(connection.recv_bytes())  # noqa: S301 (the process that started this one wrote it)
        while True:
            connection.send(_answer(work, connection.recv()))
    except (EOFError, ConnectionError):
        return


def _answer(work: Callable[..., Any], values: tuple[Any, ...]) -> tuple[Any, UnetppError | None]:
    try:
        return work(*values), None
    except UnetppError as error:
        return None, error
    except Exception as error:  # noqa: BLE001 (it is raised where the call was made)
        return None, EngineError(f"in a process of this machine: {one_line(error)}")


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), sys.argv[2])
