"""Keeps the arrays of one traced block in one file, each with a checksum; knows their names and types, not their use.

    header    the mark, then how many values each array has and their CRC-32
    arrays    one behind the other, in the order of the layout

A block has seventeen small arrays. As an .npz they took longer to read than to join: a member of a zip archive, and a
header in Python's syntax, for each of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_MARK = b"pieces01"
_COUNTS = np.dtype("<i8")


class ArraysFile:
    """The layout of such files.

    Args:
        layout: NumPy type and number of columns by name; an array with one column is (n,), with c columns (n, c).
    """

    def __init__(self, layout: Mapping[str, tuple[str, int]]) -> None:
        self._types = {name: np.dtype(kind) for name, (kind, _) in layout.items()}
        self._columns = {name: columns for name, (_, columns) in layout.items()}
        self._header = len(_MARK) + 2 * _COUNTS.itemsize * len(layout)

    def write(self, path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the file in one step. It is not synced: of a file that a power cut emptied, `whole` is False."""
        content = {name: np.ascontiguousarray(arrays[name], kind) for name, kind in self._types.items()}
        table = np.array([[array.size, zlib.crc32(array.data)] for array in content.values()], _COUNTS)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(_MARK + table.tobytes())
            for array in content.values():
                file.write(array.data)
        temporary.replace(path)

    def whole(self, path: Path) -> bool:
        """Return whether a file is there that ends where it says."""
        try:
            with path.open("rb") as file:
                self._sizes(file)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def read(self, path: Path, *names: str) -> list[npt.NDArray[Any]]:
        """Return some of the arrays. Raises `ValueError` for a damaged file and `OSError` for one that is not there."""
        found = {}
        with path.open("rb") as file:
            sizes, at = self._sizes(file), self._header
            for name, (size, checksum) in sizes.items():
                if name in names:
                    file.seek(at)
                    # np.fromfile would open the file once more for each.
                    array = np.empty(size // self._types[name].itemsize, self._types[name])
                    file.readinto(array.view(np.uint8).data)
                    if zlib.crc32(array.data) != checksum:
                        raise ValueError(f"{path.name}: {name} is damaged")
                    columns = self._columns[name]
                    found[name] = array if columns == 1 else array.reshape(-1, columns)
                at += size
        return [found[name] for name in names]

    def _sizes(self, file: BufferedReader) -> dict[str, tuple[int, int]]:
        """Return bytes and CRC-32 of every array; raises `ValueError` where the file does not end as that says."""
        header = file.read(self._header)
        if len(header) != self._header or not header.startswith(_MARK):
            raise ValueError("no file of arrays")
        table = np.frombuffer(header, _COUNTS, offset=len(_MARK)).reshape(-1, 2).tolist()
        sizes = {
            name: (count * kind.itemsize, checksum)
            for (name, kind), (count, checksum) in zip(self._types.items(), table, strict=True)
        }
        if min(table)[0] < 0 or file.seek(0, 2) != self._header + sum(size for size, _ in sizes.values()):
            raise ValueError("a file of arrays that is cut off")
        return sizes
