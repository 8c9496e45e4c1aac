"""Makes graphs in a process of its own, which takes torch with it when it ends; knows no tile and no engine.

python -m unetpp.engine.exporting_process FOLDER DIGEST PARENT    says that the weights are sound, then keeps each graph
                                                                  that a line of its input asks for, and says so

torch, once imported, would stay in the segmenting process for the rest of its life, with more than 200 MB.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from unetpp import child
from unetpp.engine.exporter import Exporter, GraphKey
from unetpp.engine.graphs import KeptGraphs
from unetpp.package import Package, load_package

_PATIENCE_S = 10.0
"""How long a process with sound weights waits for the first graph: images are opened first, or nothing follows."""
_LIMIT_S = 60.0
"""After which a process without an answer is given up; torch takes seconds to import, from a network's disk more."""
_DONE = b"done\n"


class ExportingProcess:
    """Makes graphs of one package, in one process for those that are asked for at once.

    Nothing here raises: where it returns False, do the same in this process, which tells what is wrong with a package
    as it always did. That is also where torch is here already, so that another process would save nothing, and where
    graphs cannot be kept, which is how they come back.

    Args:
        kept: the package's graphs.
    """

    def __init__(self, package: Package, kept: KeptGraphs) -> None:
        self._package = package
        self._kept = kept
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None  # the process's, once there is one
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._wanted = 0
        self._counting = threading.Lock()

    def load(self) -> bool:
        """Say whether the weights were found sound; the process then waits a while for the first graph."""
        with self._lock:
            if not self._started():
                return False
            self._timer = threading.Timer(_PATIENCE_S, self.end)
            self._timer.daemon = True
            self._timer.start()
            return True

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Let the process end with the last of the blocks that run at once: it would hold memory beside the tiles."""
        with self._counting:
            self._wanted += 1
        try:
            yield
        finally:
            with self._counting:
                self._wanted -= 1
                last = not self._wanted
            if last:
                self.end()

    def keep(self, key: GraphKey) -> bool:
        """Say whether the graph was made and kept."""
        with self._lock:
            self._wait_no_more()
            return self._started() and self._said(json.dumps(key).encode() + b"\n")

    def end(self) -> None:
        with self._lock:
            self._wait_no_more()
            self._forget()

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget(self) -> None:
        self._end()
        self._process = None

    def _started(self) -> bool:
        """Say whether there is a process, with sound weights; starts it."""
        if self._process is not None and self._process.poll() is None:
            return True
        self._forget()
        if "torch" in sys.modules or not sys.executable or getattr(sys, "frozen", False) or not self._kept.writable():
            return False  # a frozen program would begin itself once more
        try:
            self._process = child.start(
                __name__,
                str(self._package.folder),
                self._package.digest,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, ValueError, subprocess.SubprocessError):  # no memory or number for a process, or no folder
            return False
        self._end = weakref.finalize(self, _end, self._process)
        return self._said(b"")

    def _said(self, request: bytes) -> bool:
        """Say whether the process did what it was asked for; it has ended otherwise."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        done = False
        limit = threading.Timer(_LIMIT_S, _kill, (self._process,))
        limit.daemon = True
        limit.start()
        try:
            with suppress(OSError):  # it is gone
                self._process.stdin.write(request)
                self._process.stdin.flush()
                done = _DONE in iter(self._process.stdout.readline, b"")  # before it, what Python's start may print
        finally:
            limit.cancel()
            if not done:
                self._forget()
        return done


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it has started, which would hold its answers open."""
    if process.returncode is None and hasattr(os, "killpg"):  # its number is not another's until it is waited for
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and leave nothing of it; in a fork of who started it this finds no child and does nothing."""
    _kill(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):  # the rest of a request that nobody reads
            pipe.close()


def _serve(package: Package, requests: Iterator[str]) -> Iterator[None]:
    """Yield when the weights are found sound, and whenever a graph is kept."""
    from unetpp.engine.openvino import import_openvino

    import_openvino()
    exporter, kept = Exporter(package), KeptGraphs(package.digest)
    exporter.load()
    yield
    for request in requests:
        output, margins, strips = json.loads(request)
        key = GraphKey(output, tuple(margins), strips)
        kept.keep(key.name, exporter.graph(key))
        yield


def _main(folder: str, digest: str, parent: str) -> None:
    child.end_with(parent)
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    package = load_package(folder)
    if package.digest != digest:
        return  # who asked finds that out
    for _ in _serve(package, iter(sys.stdin)):
        os.write(answers, _DONE)


if __name__ == "__main__":
    _main(*sys.argv[1:])
