"""Says which images a source holds by their pixels, so that two sources can be compared; knows no names or files."""

from __future__ import annotations

import hashlib

import numpy as np

from unetpp.train.source import Source

_CHARS = 16


def image_digests(source: Source) -> tuple[str, ...]:
    """Return 16 hex digits for every image, in order: of a SHA-256 over the pixels of its labelled blocks.

    Labels, names, groups and splits do not count: an image that was moved to another split, or annotated again, keeps
    its digest as long as its blocks and their size are the same.
    """
    hashes = [hashlib.sha256() for _ in source.images]
    blocks = source.blocks
    for number, (index, row) in enumerate(zip(blocks.image, blocks.box, strict=True)):
        # Not `read`: it fills what has no data with the mean of all training images, which differs between splits.
        pixels = source.content(number)
        hashes[int(index)].update(str((pixels.shape, pixels.dtype.str, row.tolist())).encode())
        hashes[int(index)].update(np.ascontiguousarray(pixels).tobytes())
    return tuple(found.hexdigest()[:_CHARS] for found in hashes)
