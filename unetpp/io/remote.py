"""Reads byte ranges of objects at s3://, gs:// and http(s)://, tried again until whole; knows no image format.

Every answer is checked: it must have the length that was asked for, and the size and version (ETag) that the object had
when it was opened. Anything else, and time-outs, lost connections and server errors, is asked again after a growing
pause; what still fails then is an error, never zeros. Credentials and endpoints come from the environment alone
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_SKIP_SIGNATURE, GOOGLE_APPLICATION_CREDENTIALS ...), never from a URI.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import posixpath
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from unetpp.errors import CorruptImageError, ImageFormatError, ImageNotFoundError, RemoteError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "http", "https")
ATTEMPTS = 8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
TIMEOUT_S = 60.0
BLOCK_BYTES = 2**18
CACHED_BYTES = 2**24
_LISTED = 4096

T = TypeVar("T")


def is_remote(uri: str | Path) -> bool:
    """Say whether a URI names an object of a network and not a file of this machine."""
    return isinstance(uri, str) and "://" in uri and not uri.startswith("file://")


def local_name(uri: str) -> str:
    """Return the path that a file:// URI names, in which %20 stands for a blank; a path as it is."""
    return unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri


def local_path(uri: str | Path) -> Path:
    """Return the path of a file:// URI or a path, where ~ is a home folder unless there is no such user."""
    return Path(os.path.expanduser(local_name(str(uri))))  # noqa: PTH111 (`Path.expanduser` fails on a file ~scan.tif)


def shown(uri: str) -> str:
    """Return a URI without what could be a secret: user, password and query."""
    if not is_remote(uri):
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def placed(folder: str, uri: str) -> str:
    """Return a path or URI that a document names, from the folder (path or URI) that the document lies in."""
    if "://" in uri:
        return uri
    if local_path(uri).is_absolute():
        return str(local_path(uri))
    if not is_remote(folder):
        return str(Path(folder) / uri)
    scheme, _, path = folder.partition("://")
    bucket, _, key = path.partition("/")
    return f"{scheme}://{bucket}{posixpath.normpath(posixpath.join('/', key, uri))}"


def folder_of(uri: str) -> str:
    """Return the folder, path or URI, that a document lies in."""
    return uri.rpartition("/")[0] if is_remote(uri) else str(Path(uri).parent)


def check_uri(uri: str) -> None:
    """Raise `ImageFormatError` for a URI that we cannot read or that carries credentials."""
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise ImageFormatError(f"{shown(uri)}: cannot be read; give a path, or a URI of {', '.join(SCHEMES)}")
    if "@" in parts.netloc or (parts.query and parts.scheme.startswith("http")):
        raise ImageFormatError(
            f"{shown(uri)}: given with a password or a query, which would end up in records; "
            "give the plain URI, and credentials in the environment"
        )


class RemoteObject:
    """One object as it was when opened: its size, its version, and its bytes in ranges. Safe for several threads.

    `version` is the ETag, or the time of the last change where the server sends none.
    """

    def __init__(self, uri: str, size: int, version: str) -> None:
        self.uri, self.size, self.version = uri, size, version
        self._store, self._key = _locate(uri)
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes start..stop, cut at the object's end; blocks read lately are kept.

        Raises:
            RemoteError: the server does not answer, or not completely, however often it is asked.
            CorruptImageError: the object was replaced since it was opened.
        """
        start, stop = max(0, start), min(stop, self.size)
        if start >= stop:
            return b""
        numbers = range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        blocks = self._blocks_of(numbers)
        offset = numbers[0] * BLOCK_BYTES
        return b"".join(blocks)[start - offset : stop - offset]

    def fetch(self, start: int, stop: int) -> bytes:
        """Return bytes start..stop, which must lie inside, in one request; nothing is kept. Errors as `read`'s."""
        return retried(self.uri, lambda: self._request(start, stop))

    def _blocks_of(self, numbers: range) -> list[bytes]:
        with self._lock:
            found = {number: self._blocks[number] for number in numbers if number in self._blocks}
            for number in found:
                self._blocks.move_to_end(number)
        missing = [number for number in numbers if number not in found]
        while missing:
            count = next((i for i, number in enumerate(missing) if number != missing[0] + i), len(missing))
            first, missing = missing[0], missing[count:]
            data = self.fetch(first * BLOCK_BYTES, min((first + count) * BLOCK_BYTES, self.size))
            found |= {first + i: data[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] for i in range(count)}
        with self._lock:
            self._blocks |= found
            while len(self._blocks) * BLOCK_BYTES > CACHED_BYTES:
                self._blocks.popitem(last=False)
        return [found[number] for number in numbers]

    def _request(self, start: int, stop: int) -> bytes:
        import obstore

        answer = obstore.get(self._store, self._key, options={"range": (start, stop)})
        if (answer.meta["size"], _version(answer.meta)) != (self.size, self.version):
            raise CorruptImageError(f"{self.uri}: was replaced while it was read; run again")
        data = bytes(answer.bytes())
        if len(data) != stop - start:
            raise ShortAnswerError(f"{len(data)} of {stop - start} bytes came")
        return data


class RemoteFile(io.RawIOBase):
    """A remote object as a file for libraries that want one; `read` raises as `RemoteObject.read` does."""

    def __init__(self, source: RemoteObject) -> None:
        self.source = source
        self.name = source.uri
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.source.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        stop = self.source.size if size is None or size < 0 else self._at + size
        data = self.source.read(self._at, stop)
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class ShortAnswerError(Exception):
    """An answer with fewer bytes than were asked for."""


class RefusedError(RemoteError):
    """The server answers that we may not; S3 does so for missing objects, too, where listing is not allowed."""


def open_object(uri: str) -> RemoteObject:
    """Return an object with the size and version it has now.

    Raises:
        ImageNotFoundError: there is none.
        RemoteError: the server does not answer, or refuses.
        ImageFormatError: the URI is none of ours.
    """
    import obstore

    store, key = _locate(uri)
    meta = retried(uri, lambda: obstore.head(store, key))
    return RemoteObject(uri, int(meta["size"]), _version(meta))


def find_object(uri: str) -> RemoteObject | None:
    """Return an object that need not exist, or None: also where access is refused. Else raises as `open_object`."""
    try:
        return open_object(uri)
    except (ImageNotFoundError, RefusedError):
        return None


@dataclass(frozen=True)
class Listing:
    """What lies directly below a prefix: URIs of the prefixes below it, without a slash at the end, and of objects."""

    folders: tuple[str, ...]
    objects: tuple[str, ...]


def list_prefix(uri: str) -> Listing:
    """List a prefix of a bucket, sorted; both empty where nothing lies below it.

    Raises:
        ImageFormatError: the server is plain HTTP, which cannot list.
        RemoteError: as `open_object`.
    """
    import obstore

    store, key = _locate(uri)
    if urlsplit(uri).scheme.startswith("http"):
        raise ImageFormatError(f"{uri}: plain HTTP cannot list a folder; name the images, or list them in a manifest")
    found = retried(uri, lambda: obstore.list_with_delimiter(store, key or None))
    root = uri[: len(uri) - len(urlsplit(uri).path)]
    folders = sorted(f"{root}/{str(prefix).rstrip('/')}" for prefix in found["common_prefixes"])
    # A key that ends in a slash is the mark that consoles leave for an empty folder.
    objects = sorted(f"{root}/{meta['path']}" for meta in found["objects"] if not meta["path"].endswith("/"))
    return Listing(tuple(folders), tuple(objects))


def list_versions(uri: str) -> list[tuple[str, int, str]]:
    """Return (key, size, version) of the first objects below a prefix, as the store orders them; errors as above.

    Where there are more than 4096, the rest is one last entry, its number and hash: a million would take memory.
    """
    import obstore

    store, key = _locate(uri)

    def listed() -> list[tuple[str, int, str]]:
        found: list[tuple[str, int, str]] = []
        others, digest = 0, hashlib.sha256()
        for chunk in obstore.list(store, key or None, chunk_size=1000):
            for meta in chunk:
                entry = (meta["path"], int(meta["size"]), _version(meta))
                if len(found) < _LISTED:
                    found.append(entry)
                else:
                    others += 1
                    digest.update(f"{entry}\n".encode())
        return [*found, ("and more", others, digest.hexdigest())] if others else found

    return retried(uri, listed)


def zarr_store(uri: str) -> Any:
    """Return a read-only Zarr store of the objects below a URI; its reads are tried again like all others here."""
    import obstore
    from obstore.exceptions import NotSupportedError
    from zarr.storage import ObjectStore, WrapperStore

    class Retrying(WrapperStore[Any]):
        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            return await _retried_async(f"{uri}/{key}", lambda: self._get(key, prototype, byte_range))

        async def _get(self, key: str, prototype: Any, byte_range: Any) -> Any:
            if byte_range is None:
                return await self._whole(key, prototype)
            found = await self._store.get(key, prototype, byte_range)
            wanted = getattr(byte_range, "suffix", getattr(byte_range, "end", 0) - getattr(byte_range, "start", 0))
            if found is not None and len(found) < wanted:
                raise ShortAnswerError(f"{len(found)} of {wanted} bytes came")
            return found

        async def _whole(self, key: str, prototype: Any) -> Any:
            """Ask for the range from 0: only then does the answer say how large the object is."""
            try:
                answer = await obstore.get_async(self._store.store, key, options={"range": {"offset": 0}})
                data = await answer.bytes_async()
            except FileNotFoundError:
                return None
            except NotSupportedError:
                return await self._store.get(key, prototype)
            if len(data) != answer.meta["size"]:
                raise ShortAnswerError(f"{len(data)} of {answer.meta['size']} bytes came")
            return prototype.buffer.from_bytes(data)

        async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
            return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

        async def exists(self, key: str) -> bool:
            return bool(await _retried_async(f"{uri}/{key}", lambda: self._store.exists(key)))

        async def list_dir(self, prefix: str) -> Any:
            async def names() -> list[str]:
                return [name async for name in self._store.list_dir(prefix)]

            for name in await _retried_async(f"{uri}/{prefix}", names):
                yield name

    check_uri(uri)
    root, key = _split(uri)
    return Retrying(ObjectStore(_make_store(root, key), read_only=True))


def retried(uri: str, call: Callable[[], T]) -> T:
    """Return what `call` returns, tried again while a fault may pass; raises as `open_object`."""
    for pause in _pauses():
        try:
            return call()
        except Exception as error:  # noqa: BLE001 (judged and raised again where it is no passing fault)
            _judge(uri, error, last=pause is None)
        time.sleep(pause or 0.0)
    raise AssertionError("the last attempt returns or raises")


async def _retried_async(uri: str, call: Callable[[], Awaitable[T]]) -> T:
    for pause in _pauses():
        try:
            return await call()
        except Exception as error:  # noqa: BLE001 (judged and raised again where it is no passing fault)
            _judge(uri, error, last=pause is None)
        await asyncio.sleep(pause or 0.0)
    raise AssertionError("the last attempt returns or raises")


def _pauses() -> list[float | None]:
    """Return the pause after each attempt, None after the last; random, so that many workers do not ask together."""
    pauses = (min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**i) for i in range(ATTEMPTS - 1))
    return [*(pause * random.uniform(0.5, 1.5) for pause in pauses), None]  # noqa: S311 (not a secret)


def _judge(uri: str, error: Exception, *, last: bool) -> None:
    """Return where trying again may help; raise the error that the user is to see where it does not."""
    from obstore import exceptions as store_errors

    if isinstance(error, (FileNotFoundError, store_errors.NotFoundError)):
        raise ImageNotFoundError(f"{uri}: no such object; check bucket and key") from None
    if isinstance(error, (PermissionError, store_errors.PermissionDeniedError, store_errors.UnauthenticatedError)):
        raise RefusedError(f"{uri}: access is refused; set the credentials in the environment") from None
    if isinstance(error, (NotImplementedError, store_errors.NotSupportedError)):
        raise RemoteError(f"{uri}: the server does not serve ranges of bytes; copy the image here first") from None
    fault = isinstance(error, (store_errors.BaseError, ShortAnswerError, OSError)) and not isinstance(
        error, (CorruptImageError, RemoteError)
    )
    if not fault:
        raise error
    if last:
        why = " ".join(str(error).split())[:200]
        raise RemoteError(f"{uri}: no complete answer after {ATTEMPTS} attempts ({why}); run again later") from None


def _version(meta: Any) -> str:
    return str(meta.get("e_tag") or meta["last_modified"])


def _locate(uri: str) -> tuple[ObjectStore, str]:
    """Return the store of a URI's bucket or host, and the key in it."""
    root, key = _split(uri)
    return _bucket_store(root, _environment()), key


def _split(uri: str) -> tuple[str, str]:
    check_uri(uri)
    root, _, path = uri.partition("://")[2].partition("/")
    scheme = urlsplit(uri).scheme
    return f"{scheme}://{root}", (unquote(path) if scheme.startswith("http") else path).strip("/")


def _environment() -> tuple[tuple[str, str], ...]:
    """Return the settings that a store reads when it is made, so that a change of them makes a new one."""
    return tuple(sorted(x for x in os.environ.items() if x[0].startswith(("AWS_", "GOOGLE_"))))


@lru_cache(maxsize=16)
def _bucket_store(root: str, environment: tuple[tuple[str, str], ...]) -> ObjectStore:
    return _make_store(root)


def _make_store(root: str, prefix: str = "") -> ObjectStore:
    """Return a store of all below a prefix; it never tries again by itself, because here is who does."""
    from obstore.store import GCSStore, HTTPStore, S3Store

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT", "")
    plain = root.startswith("http://") or (root.startswith("s3://") and endpoint.startswith("http://"))
    wait = timedelta(seconds=TIMEOUT_S)
    options: dict[str, Any] = {
        "client_options": {"timeout": wait, "connect_timeout": min(wait, timedelta(seconds=10)), "allow_http": plain},
        "retry_config": {"max_retries": 0, "retry_timeout": wait},
    }
    if root.startswith("http"):
        return HTTPStore(f"{root}/{quote(prefix)}", **options)
    kind = S3Store if root.startswith("s3://") else GCSStore
    return kind(root.partition("://")[2], prefix=prefix or None, **options)
