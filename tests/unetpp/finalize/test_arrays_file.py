"""Arrays come back as they were written, and a damaged file is told from a whole one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unetpp.finalize.arrays_file import ArraysFile

FILE = ArraysFile({"points": ("<i4", 2), "none": ("<i8", 1), "flags": ("?", 1)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    points = np.arange(12, dtype=np.int64).reshape(6, 2)[:, ::-1]  # other type, other order in memory
    FILE.write(
        tmp_path / "a.arrays", {"points": points, "none": np.zeros(0, np.int64), "flags": np.array([True, False])}
    )
    return tmp_path / "a.arrays"


def test_arrays_come_back(path: Path) -> None:
    flags, points, none = FILE.read(path, "flags", "points", "none")
    assert flags.tolist() == [True, False] and flags.dtype == bool
    assert points.tolist() == [[1, 0], [3, 2], [5, 4], [7, 6], [9, 8], [11, 10]] and points.dtype == np.int32
    assert none.shape == (0,) and points.flags.writeable
    assert FILE.whole(path) and [file.name for file in path.parent.iterdir()] == ["a.arrays"]


def test_what_ends_early_or_late_is_not_whole(path: Path) -> None:
    content = path.read_bytes()
    for wrong in (b"", content[:20], content[:-1], content + b"x", b"y" + content[1:]):
        path.write_bytes(wrong)
        assert not FILE.whole(path)
        with pytest.raises(ValueError, match="file of arrays"):
            FILE.read(path, "points")
    assert not FILE.whole(path.with_name("none.arrays"))


def test_every_changed_byte_is_found(path: Path) -> None:
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with pytest.raises(ValueError, match=r"."):
            FILE.read(path, "points", "none", "flags")
