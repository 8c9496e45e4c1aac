"""Ranges of bytes from a real S3 server: whole in spite of every fault, pinned to one version, secrets kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.object_store import BUCKET, FAULTS, ObjectStore
from unetpp.errors import CorruptImageError, ImageFormatError, ImageNotFoundError, RemoteError
from unetpp.io import remote
from unetpp.io.remote import RemoteFile, check_uri, list_prefix, open_object, shown


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).bytes(3 * remote.BLOCK_BYTES + 777)


@pytest.fixture
def uri(object_store: ObjectStore, content: bytes, tmp_path: Path) -> str:
    (tmp_path / "data").write_bytes(content)
    return object_store.put(tmp_path / "data", "some folder/data+1.bin")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_met_and_no_byte_is_lost(
    object_store: ObjectStore, uri: str, content: bytes, fault: str
) -> None:
    object_store.proxy.misbehave(fault)
    source = open_object(uri)
    parts = [(0, 4), (5, 5), (100, remote.BLOCK_BYTES + 1), (len(content) - 9, len(content) + 50)]
    for start, stop in parts:
        assert source.read(start, stop) == content[start:stop]
    assert source.fetch(0, len(content)) == content
    assert object_store.proxy.seen[fault] >= 3


def test_threads_share_what_was_read(object_store: ObjectStore, uri: str, content: bytes) -> None:
    source = open_object(uri)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: source.read(i * 1000, i * 1000 + 5000), range(700)))
    assert all(part == content[i * 1000 : i * 1000 + 5000] for i, part in enumerate(found))
    assert len(object_store.proxy.requests) < 40, "blocks are kept"


def test_what_fails_every_time_is_an_error(object_store: ObjectStore, uri: str) -> None:
    source = open_object(uri)
    object_store.proxy.misbehave("error", "cut", "short", times=99)
    with pytest.raises(RemoteError, match=r"data\+1.bin: no complete answer after 8 attempts"):
        source.read(0, 10)
    assert len(object_store.proxy.requests) == remote.ATTEMPTS


def test_a_replaced_object_is_noticed(object_store: ObjectStore, uri: str, content: bytes, tmp_path: Path) -> None:
    source = open_object(uri)
    assert source.read(0, 9) == content[:9]
    (tmp_path / "data").write_bytes(content[::-1])
    object_store.put(tmp_path / "data", "some folder/data+1.bin")
    with pytest.raises(CorruptImageError, match="was replaced while it was read"):
        source.read(2 * remote.BLOCK_BYTES, 2 * remote.BLOCK_BYTES + 9)


def test_missing_refused_and_foreign(object_store: ObjectStore, uri: str, tmp_path: Path) -> None:
    object_store.put(tmp_path / "data", "private.tif", public=False)
    with pytest.raises(ImageNotFoundError, match="no such object"):
        open_object(f"s3://{BUCKET}/nothing.tif")
    assert len(object_store.proxy.requests) == 1, "a missing object is not asked for again"
    with pytest.raises(RemoteError, match="access is refused; set the credentials"):
        open_object(f"{object_store.proxy.url}/{BUCKET}/private.tif")  # without a signature
    for bad in ("ftp://host/x", "s3://", "C://x"):
        with pytest.raises(ImageFormatError, match="cannot be read"):
            check_uri(bad)
    assert shown("https://me:word@host/a/b.tif?sig=1") == "https://host/a/b.tif"


def test_listing(object_store: ObjectStore, uri: str, content: bytes) -> None:
    object_store.proxy.misbehave("error", "cut", "reset")
    found = list_prefix(f"s3://{BUCKET}/some folder")
    assert uri in found.objects and found.folders == ()
    assert f"s3://{BUCKET}/some folder" in list_prefix(f"s3://{BUCKET}/").folders
    assert list_prefix(f"s3://{BUCKET}/nowhere") == remote.Listing((), ())
    with pytest.raises(ImageFormatError, match="plain HTTP cannot list"):
        list_prefix(f"{object_store.proxy.url}/{BUCKET}")


def test_file_over_an_object(object_store: ObjectStore, uri: str, content: bytes) -> None:
    file = RemoteFile(open_object(uri))
    assert file.seek(-5, 2) == len(content) - 5 and file.read() == content[-5:] and file.read(3) == b""
    file.seek(10)
    buffer = bytearray(20)
    assert file.readinto(buffer) == 20 and bytes(buffer) == content[10:30] and file.tell() == 30
