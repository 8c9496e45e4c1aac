"""The bytes of one shard of a Zarr array of bytes; knows Zarr's sharding codec, not arrays, files or what values mean.

    chunk | chunk | ... | index | CRC-32C of the index
                          offset and length of every chunk, little-endian uint64, chunks in C order

A chunk is a Zstandard frame with a checksum, and chunks lie in Morton order: equal values give the very bytes that Zarr
writes, and Zarr reads them. But Zarr wants the whole array of a shard at once, and its tasks cost as much as the
compressing. Here a chunk is compressed as soon as its pixels are known: an open shard keeps no more of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import google_crc32c
import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

Place = tuple[int, ...]
"""Of a chunk among those of a shard: ([plane,] row, column)."""
Chunks = Mapping[Place, bytes]
LEVEL = 3
"""Of Zstandard; decides the bytes, as everything here does."""
_ENTRY = np.dtype("<u8")
_NOWHERE = np.iinfo(_ENTRY).max
_CHECKSUM_BYTES = 4


def encode(values: NDArray[np.uint8], side: int, fill: int) -> Iterator[tuple[Place, bytes]]:
    """Yield the chunks of an array and their places in it.

    Args:
        values: ([planes,] h, w); its first pixel is that of a chunk.
        side: of a chunk (1, side, side), px.
        fill: value behind the array's last row and column, where a chunk reaches further.
    """
    height, width = values.shape[-2:]
    for plane in np.ndindex(values.shape[:-2]):
        for y in range(0, height, side):
            for x in range(0, width, side):
                part = values[(*plane, slice(y, y + side), slice(x, x + side))]
                if part.shape != (side, side):
                    part = np.pad(part, [(0, side - size) for size in part.shape], constant_values=fill)
                content = zstd.compress(np.ascontiguousarray(part), LEVEL, checksum=True)
                yield (*plane, y // side, x // side), content


def join(chunks: Chunks, counts: Sequence[int]) -> bytes:
    """Return the object; chunks that are not given read as the fill value.

    Args:
        counts: chunks of a whole shard along each axis.
    """
    index = np.full((*counts, 2), _NOWHERE, _ENTRY)
    content, used = [], 0
    for place in sorted(chunks, key=lambda place: _morton(place, counts)):
        content.append(chunks[place])
        index[place] = used, len(content[-1])
        used += len(content[-1])
    table = index.tobytes()
    return b"".join([*content, table, google_crc32c.value(table).to_bytes(_CHECKSUM_BYTES, "little")])


def read_index(file: BinaryIO, counts: Sequence[int]) -> NDArray[np.uint64]:
    """Return (*counts, 2) offset and length of each chunk. Raises `ValueError` where the object is damaged."""
    table_bytes = math.prod(counts) * 2 * _ENTRY.itemsize
    size = file.seek(0, 2)
    if size < table_bytes + _CHECKSUM_BYTES:
        raise ValueError(f"an object of {size} bytes has no index")
    file.seek(size - table_bytes - _CHECKSUM_BYTES)
    table, checksum = file.read(table_bytes), file.read(_CHECKSUM_BYTES)
    if google_crc32c.value(table) != int.from_bytes(checksum, "little"):
        raise ValueError("the index does not have its checksum")
    return np.frombuffer(table, _ENTRY).reshape(*counts, 2).astype(np.uint64)


def read_chunk(file: BinaryIO, index: NDArray[np.uint64], place: Place, side: int) -> NDArray[np.uint8] | None:
    """Return a chunk (side, side), None where the shard has none. Raises `ValueError` where it is damaged."""
    offset, length = (int(value) for value in index[place])
    if offset == length == _NOWHERE:
        return None
    file.seek(offset)
    try:
        return np.frombuffer(zstd.decompress(file.read(length)), np.uint8).reshape(side, side)
    except RuntimeError as error:
        raise ValueError(f"chunk {place}: {error}") from error


def _morton(place: Place, counts: Sequence[int]) -> int:
    """Return where a chunk comes in Morton order: the bits of its place by turns, of each axis as many as it has."""
    code = used = 0
    for bit in range(max(counts).bit_length()):
        for at, count in zip(place, counts, strict=True):
            if bit < (count - 1).bit_length():
                code |= (at >> bit & 1) << used
                used += 1
    return code
