"""Opens GDAL datasets of files and of remote objects; knows GDAL's threads and errors, and no format's meaning.

GDAL reads a remote object through Python: its own network code would keep a body that broke off in its cache, and take
a sidecar whose request failed for one that does not exist.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import rasterio
from rasterio.abc import FileContainer
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from unetpp.io.remote import RemoteFile, RemoteObject

GDAL_CACHE_BYTES = 2**26
"""GDAL's block cache, one for the process; its default is a share of the machine's memory."""

_cache_lock = threading.Lock()
_LOG = logging.getLogger("rasterio._err")

T = TypeVar("T")


class Dataset:
    """One open GDAL handle. GDAL's handles are not thread-safe: every thread opens its own; any may close it.

    Args:
        source: a file, or remote objects by name, the image itself first and then its sidecars.
        options: of the driver; `driver` names it.

    Raises:
        RasterioError: GDAL cannot read the file.
        UnetppError: a remote object could not be read.
    """

    def __init__(self, source: Path | Mapping[str, RemoteObject], **options: Any) -> None:
        # rasterio keeps open Python files in context variables: all calls on a handle must see the same ones.
        self._context = contextvars.copy_context()
        self._files: _RemoteFolder | None = None
        path: str | Path
        if isinstance(source, Path):
            path = source
        else:
            options["opener"] = self._files = _RemoteFolder(source)
            # rasterio knows an opener by the folder of its files; a scheme of our own keeps handles apart.
            path = f"unetpp-{uuid4().hex}://objects/{next(iter(source))}"
        self._path, self._options = path, options
        self._dataset = self._guarded(self._open)

    def _open(self) -> Any:
        with warnings.catch_warnings():
            # That an image lies nowhere is for its reader to say.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(self._path, sharing=False, **self._options)

    def run(self, use: Callable[[Any], T]) -> T:
        """Return what `use` returns for the rasterio dataset; errors as the constructor's."""
        with _jpeg_damage() as damage:
            try:
                result = self._guarded(lambda: use(self._dataset))
            finally:
                if damage:
                    # GDAL keeps the pixels that it made up, and would hand them out without a word the next time.
                    self.close()
                    self._dataset = self._guarded(self._open)
        if damage:
            raise RasterioIOError(damage[0])
        return result

    def close(self) -> None:
        self._context.run(self._dataset.close)

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return self._context.run(call)
        finally:
            if self._files is not None and self._files.failure is not None:
                # GDAL only saw a short file, and may even have gone on without it.
                failure, self._files.failure = self._files.failure, None
                raise failure


class _Listener(logging.Filter):
    """Takes libjpeg's warnings out of rasterio's log, which has what GDAL says at once and in the thread that reads."""

    def __init__(self) -> None:
        super().__init__()
        self.local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        heard: list[str] | None = getattr(self.local, "heard", None)
        _, about_jpeg, what = record.getMessage().partition("JPEGLib:")
        if heard is None or not about_jpeg:
            return True
        heard.append(what)
        return False


_listener = _Listener()


@contextmanager
def _jpeg_damage() -> Iterator[list[str]]:
    """Yield a list that gets what libjpeg says of damaged JPEG blocks: to GDAL they are only worth a warning."""
    _LOG.addFilter(_listener)
    if not _LOG.isEnabledFor(logging.WARNING):
        # Whoever silenced this log does not want damaged pixels for it.
        _LOG.disabled = False
        _LOG.setLevel(logging.WARNING)
    heard: list[str] = []
    _listener.local.heard = heard
    try:
        yield heard
    finally:
        _listener.local.heard = None


class _RemoteFolder(FileContainer):  # type: ignore[misc]
    """The folder that GDAL sees: exactly these objects. `failure` is what went wrong since it was last cleared."""

    def __init__(self, objects: Mapping[str, RemoteObject]) -> None:
        self._objects = objects
        self.failure: Exception | None = None

    def open(self, path: str, mode: str = "r", **options: Any) -> _LatchedFile:
        return _LatchedFile(self._find(path), self)

    def isfile(self, path: str) -> bool:
        return _name(path) in self._objects

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return list(self._objects)

    def mtime(self, path: str) -> int:
        return 0

    def rm(self, path: str) -> None:
        raise PermissionError(path)

    def size(self, path: str) -> int:
        return self._find(path).size

    def _find(self, path: str) -> RemoteObject:
        try:
            return self._objects[_name(path)]
        except KeyError:
            raise FileNotFoundError(path) from None


class _LatchedFile(RemoteFile):
    """A remote file whose reads never raise: an exception in GDAL's callback would count as bytes that were read."""

    def __init__(self, source: RemoteObject, folder: _RemoteFolder) -> None:
        super().__init__(source)
        self._folder = folder

    def read(self, size: int = -1, /) -> bytes:
        try:
            return super().read(size)
        except Exception as error:  # noqa: BLE001 (raised by `Dataset` as soon as GDAL returns)
            self._folder.failure = self._folder.failure or error
            return b""


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def bound_cache() -> None:
    """Bound the memory of GDAL's block cache."""
    with _cache_lock:
        if int(get_gdal_config("GDAL_CACHEMAX")) > GDAL_CACHE_BYTES:
            set_gdal_config("GDAL_CACHEMAX", GDAL_CACHE_BYTES)
