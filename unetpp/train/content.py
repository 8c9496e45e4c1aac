"""Says which images a source holds by their pixels, so that two sources can be compared; knows no names or files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from unetpp.train.source import Source, SourceImage

_CHARS, _PART = 16, "part of "
_NOTHING = {"", _PART}


def image_digests(source: Source) -> tuple[str, ...]:
    """Return 16 hex digits for every image, in order: of a SHA-256 over the pixels of its labelled blocks.

    Labels, names, groups and splits do not count: an image that was moved to another split, or annotated again, keeps
    its digest as long as its blocks and their size are the same. It is "" where all their pixels are alike, as of an
    empty field: that tells no image from another.
    """
    hashes = [hashlib.sha256() for _ in source.images]
    colours: list[set[bytes]] = [set() for _ in source.images]
    blocks = source.blocks
    for number, (index, row) in enumerate(zip(blocks.image, blocks.box, strict=True)):
        # Not `read`: it fills what has no data with the mean of all training images, which differs between splits.
        pixels = source.content(number)
        hashes[int(index)].update(str((pixels.shape, pixels.dtype.str, row.tolist())).encode())
        hashes[int(index)].update(np.ascontiguousarray(pixels).tobytes())
        ends = pixels.min((0, 1)), pixels.max((0, 1))
        colours[int(index)].update(end.tobytes() for end in ends)
    told = [len(found) > 1 for found in colours]
    return tuple(found.hexdigest()[:_CHARS] if tells else "" for found, tells in zip(hashes, told, strict=True))


def source_content(source: Source) -> list[str]:
    """Return all that a source's images can be known again by, sorted: their digests and the hashes of their pictures.

    A digest also knows images of stores that hold no pictures; a picture knows an image that was cut into other blocks,
    labelled elsewhere or resampled. That of a part is marked as such: the rest of that image was not seen.
    """
    pictures = {_PART * image.part + picture for image, picture in _pictures(source)}
    return sorted(set(image_digests(source)).union(pictures) - _NOTHING)


def known_images(source: Source, content: Iterable[str]) -> int:
    """Return how many of a source's images are among those that `source_content` told of, in whole or in part.

    A part of an image is known by itself or by the whole image, not by another part.
    """
    told = set(content)
    known = 0
    for digest, (image, picture) in zip(image_digests(source), _pictures(source), strict=True):
        marks = {digest, picture} if image.part else {digest, picture, _PART + picture}
        known += not told.isdisjoint(marks - _NOTHING)
    return known


def holds_parts(content: Iterable[str]) -> bool:
    """Say whether parts of images are among what `source_content` told of."""
    return any(mark.startswith(_PART) for mark in content)


def _pictures(source: Source) -> list[tuple[SourceImage, str]]:
    return [(image, image.picture[:_CHARS]) for image in source.images]
