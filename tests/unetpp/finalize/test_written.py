"""A file written behind its maker: all bytes, their hash, and the disk's errors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from unetpp.finalize import written
from unetpp.finalize.written import WrittenFile


def test_bytes_and_hash_are_those_of_all_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "_STARTED", 1000)
    parts = [bytes([k % 251]) * (k * 37 % 900) for k in range(100)]
    with WrittenFile(tmp_path / "a") as file:
        for part in parts:
            assert file.write(memoryview(part)) == len(part)
    assert (tmp_path / "a").read_bytes() == b"".join(parts)
    assert file.sha256 == hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_full_disk_is_an_error_of_a_later_call_or_of_the_end() -> None:
    with pytest.raises(OSError, match="No space left"), WrittenFile(Path("/dev/full")) as file:
        file.write(b"x" * 2**20)
    reached = 0
    with pytest.raises(OSError, match="No space left"), WrittenFile(Path("/dev/full")) as file:
        for _ in range(100):
            file.write(b"x" * 2**20)
            reached += 1
    assert reached < 4
