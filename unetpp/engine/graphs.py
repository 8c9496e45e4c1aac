"""Keeps OpenVINO graphs in the user's folder, to be had without torch, which makes them; knows files, no network.

UNETPP_HOME/graphs/HASH/NAME/    graph.xml, graph.bin and sum, which is the SHA-256 of both

HASH is of all that a package's graphs depend on: the package, our code, and the libraries that made them. A graph
appears whole or not at all, one that is damaged is made again, and hashes that were not used for the longest time go.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unetpp.errors import OutputError
from unetpp.home import home

_XML, _BIN, _SUM = "graph.xml", "graph.bin", "sum"
_PART, _TORN_S = ".part-", 3600.0
"""Beginning of the name of what is being written, and age at which nobody does any more."""
_KEPT = 32
"""Packages, each in one version of everything, whose graphs are kept: 1 MB each, 40 with standard convolutions."""


class KeptGraphs:
    """The graphs of the package with this digest."""

    def __init__(self, digest: str) -> None:
        facts = (digest, _code(), _version("openvino"), _version("torch"))
        try:
            self._folder: Path | None = home() / "graphs" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
        except OutputError:
            self._folder = None

    def known(self) -> bool:
        """Say whether a graph of this package was made before: its weights then fit their network."""
        return self._folder is not None and self._folder.is_dir()

    def writable(self) -> bool:
        """Say whether a graph could be kept; tried, as what the system says of folders is not always so."""
        if self._folder is None:
            return False
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_PART, dir=self._folder.parent):
                return True
        except OSError:
            return False

    def get(
        self, name: str, read: Callable[[bytes, bytes], Any], make: Callable[[], Any], kept: Callable[[], bool]
    ) -> Any:
        """Return a graph, made if it is not there.

        One that was made is read from a file, too: OpenVINO may add in another order in a graph that it has read, and
        no result may depend on who was first.

        Args:
            read: makes a graph of its two files.
            make: makes it in this process.
            kept: may have another process make it and call `keep`, and says whether that was done; asked first.
        """
        # Whatever is wrong with a kept graph, it can be made again.
        if self._folder is not None:
            with suppress(OSError, RuntimeError):
                return self._read(self._folder / name, read)
            if kept():
                with suppress(OSError, RuntimeError):
                    return self._read(self._folder / name, read)
        graph = make()
        if self._folder is not None:
            with suppress(OSError, RuntimeError):  # a folder that cannot be written keeps nothing
                self.keep(name, graph)
                return self._read(self._folder / name, read)
        with tempfile.TemporaryDirectory(prefix="unetpp-graph-") as scratch:
            self._write(graph, Path(scratch) / name)
            return self._read(Path(scratch) / name, read)

    def keep(self, name: str, graph: Any) -> None:
        """Keep a graph, in place of a damaged one; raises `OSError` or `RuntimeError` where that cannot be done."""
        assert self._folder is not None, "a home folder"
        place = self._folder / name
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_PART, dir=self._folder.parent) as scratch:
            self._write(graph, Path(scratch) / name)
            shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # another process was first
                (Path(scratch) / name).rename(place)
        _forget(self._folder.parent)

    @staticmethod
    def _read(folder: Path, read: Callable[[bytes, bytes], Any]) -> Any:
        xml, weights = ((folder / name).read_bytes() for name in (_XML, _BIN))
        if (folder / _SUM).read_text(encoding="ascii") != _sum(xml, weights):
            raise OSError(f"{folder} is damaged")
        with suppress(OSError):
            os.utime(folder.parent)
        return read(xml, weights)

    @staticmethod
    def _write(graph: Any, folder: Path) -> None:
        import openvino

        folder.mkdir()
        openvino.save_model(graph, str(folder / _XML), compress_to_fp16=False)
        (folder / _SUM).write_text(_sum(*((folder / name).read_bytes() for name in (_XML, _BIN))), encoding="ascii")


def _sum(xml: bytes, weights: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(xml).digest() + hashlib.sha256(weights).digest()).hexdigest()


def _forget(folder: Path) -> None:
    """Remove the packages that were not used for the longest time, and what was being written by who was killed."""
    used = {path: path.stat().st_mtime for path in folder.iterdir()}
    packages = sorted((path for path in used if path.name[0] != "."), key=lambda path: -used[path])
    torn = [path for path in used if path.name.startswith(_PART) and used[path] < time.time() - _TORN_S]
    for path in (*packages[_KEPT:], *torn):
        shutil.rmtree(path, ignore_errors=True)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # built in place
        return ""


@cache
def _code() -> str:
    """Return the SHA-256 (hex) of the code that makes graphs; another version may make others."""
    ours = Path(__file__).parents[1]
    spec = importlib.util.find_spec("unetpp_kernels")
    assert spec is not None and spec.submodule_search_locations
    folders = (ours / "model", ours / "engine", Path(spec.submodule_search_locations[0]))
    digest = hashlib.sha256()
    for file in sorted(file for folder in folders for file in folder.glob("*.py")):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
