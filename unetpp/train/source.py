"""What training reads patches from: images with labels, read box by box; knows arrays, not files or networks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import DataError
from unetpp.geometry import Box
from unetpp.losses import IGNORE
from unetpp.span import Span


@dataclass(frozen=True)
class SourceImage:
    """One labelled image.

    Attributes:
        name: for reports.
        group: what must not be split: slide, scene, patient. Figures vary from group to group, not from pixel to pixel.
        stratum: what figures are given by and batches are balanced over: the kind of image; or the group.
        height, width: pixels on the grid it is trained on.
        picture: hash of the whole image, however it was cut and labelled; "" where it is not known.
        part: labels count in a part of that image only; other splits may have the rest.
    """

    name: str
    group: str
    stratum: str
    height: int
    width: int
    picture: str = ""
    part: bool = False


@dataclass(frozen=True)
class Crop:
    """One box of one image.

    Attributes:
        pixels: (h, w, C) in the source's dtype; the source's mean where there is no data.
        labels: (h, w) uint8 class indices 0..K-1, 255 where a pixel does not count.
        objects: (h, w) int32 numbers of objects, unique within the image, 0 where there is none; None when the labels
            do not tell objects apart.
    """

    pixels: NDArray[Any]
    labels: NDArray[np.uint8]
    objects: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Blocks:
    """Where labels are: boxes that tile the labelled parts of the images.

    Attributes:
        image: (B,) int64 index of each block's image.
        box: (B, 4) int64 y0, x0, y1, x1.
        counts: (B, K) int64 labelled pixels per class.
    """

    image: NDArray[np.int64]
    box: NDArray[np.int64]
    counts: NDArray[np.int64]


class Source(Protocol):
    """Labelled images of one split. `read` may be called from several threads at once."""

    @property
    def images(self) -> Sequence[SourceImage]: ...

    @property
    def blocks(self) -> Blocks: ...

    @property
    def span(self) -> Span:
        """Where samples lie: colours are varied in parts of it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what `read` returns."""

    def read(self, image: int, box: Box) -> Crop:
        """Return a box that lies inside the image; unlabelled parts have labels 255."""

    def content(self, block: int) -> NDArray[Any]:
        """Return a block's pixels (h, w, C), 0 where there is no data: the same whatever else the source holds."""


class ArraySource:
    """A `Source` over arrays in memory.

    Args:
        images: (name, group, pixels (H, W, C), labels (H, W) uint8, objects (H, W) or None) per image.
        classes: number of class indices.

    Raises:
        DataError: arrays of an image that do not fit together or to those of the first image, a pixel that is no
            finite number, or a label that is no class.
    """

    def __init__(
        self,
        images: Sequence[tuple[str, str, NDArray[Any], NDArray[np.uint8], NDArray[np.int32] | None]],
        classes: int,
    ) -> None:
        self._crops = [Crop(pixels, labels, objects) for _, _, pixels, labels, objects in images]
        for (name, *_), crop in zip(images, self._crops, strict=True):
            _check(name, crop, self._crops[0], classes)
        self.images = tuple(SourceImage(name, group, group, *labels.shape) for name, group, _, labels, _ in images)
        counts = [np.bincount(c.labels[c.labels != IGNORE], minlength=classes) for c in self._crops]
        self.blocks = Blocks(
            image=np.arange(len(images)),
            box=np.array([[0, 0, i.height, i.width] for i in self.images], np.int64).reshape(-1, 4),
            counts=np.array(counts, np.int64).reshape(-1, classes),
        )
        self.span = _span([crop.pixels for crop in self._crops])
        digest = hashlib.sha256()
        for image, crop in zip(self.images, self._crops, strict=True):
            digest.update(image.name.encode())
            for array in (crop.pixels, crop.labels, crop.objects):
                if array is not None:
                    digest.update(hashlib.sha256(array.tobytes()).digest())
        self.fingerprint = digest.hexdigest()

    def read(self, image: int, box: Box) -> Crop:
        crop, part = self._crops[image], (slice(box.y0, box.y1), slice(box.x0, box.x1))
        return Crop(crop.pixels[part], crop.labels[part], None if crop.objects is None else crop.objects[part])

    def content(self, block: int) -> NDArray[Any]:
        """See `Source`; a block is a whole image."""
        return self._crops[block].pixels


def _check(name: str, crop: Crop, first: Crop, classes: int) -> None:
    """Raise `DataError` for an image that no patch could be made of, or no batch together with the first image's."""
    pixels, labels, objects = crop.pixels, crop.labels, crop.objects
    shapes = pixels.shape, labels.shape, None if objects is None else objects.shape
    if pixels.ndim != 3 or pixels.shape[:2] != labels.shape or (objects is not None and objects.shape != labels.shape):
        raise DataError(
            f"image {name!r} has pixels, labels and objects of {', '.join(map(str, shapes))}; give (H, W, C), (H, W) "
            "and (H, W) or None"
        )
    kinds = [(c.pixels.dtype, c.pixels.shape[-1], c.objects is None) for c in (crop, first)]
    if kinds[0] != kinds[1]:
        raise DataError(f"image {name!r} has another type, other bands or objects than the first one; give all alike")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise DataError(f"image {name!r} has pixels that are no finite numbers; replace them, and label them 255")
    known = labels[labels != IGNORE]
    if labels.dtype.kind not in "ui" or (known.size and not 0 <= int(known.min()) <= int(known.max()) < classes):
        raise DataError(f"image {name!r} has labels that are no classes; give 0 to {classes - 1}, or 255 for no label")


def _span(images: Sequence[NDArray[Any]]) -> Span:
    """Return the span of all samples; of no images that of 8 bits."""
    if not images:
        return Span.of("uint8", (), ())
    values = [pixels.reshape(-1, pixels.shape[-1]).astype(np.float64) for pixels in images]
    count = sum(map(len, values))
    mean = sum(v.sum(0) for v in values) / count
    variance = sum(((v - mean) ** 2).sum(0) for v in values) / count
    return Span.of(str(images[0].dtype), mean.tolist(), np.sqrt(variance).tolist())
