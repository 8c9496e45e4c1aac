"""Measures predictions of labelled images in every way a report needs; knows sources, no networks, draws nothing.

Images are predicted as whole images would be. Counts are kept per group of images, because figures vary from group to
group, not from pixel to pixel: intervals come from drawing groups again (`unetpp.metrics.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from heapq import merge
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetpp.metrics import BoundaryF1, CalibrationError, Confusion, ObjectQuality, PrecisionRecall, Temperature
from unetpp.objects import split_objects
from unetpp.train.source import Source, SourceImage
from unetpp.train.validate import Prediction, decide

WHOLE = 2**26
"""Pixels up to which an image's labels are assembled; of larger ones boundaries and objects are not measured."""


@dataclass
class Counts:
    """Summable counts over some images; each metric says what its figures mean."""

    confusion: Confusion
    boundary: BoundaryF1
    calibration: CalibrationError
    temperature: Temperature
    curves: PrecisionRecall
    objects: ObjectQuality | None

    @classmethod
    def of(cls, classes: int, objects: bool) -> Counts:
        quality = ObjectQuality() if objects else None
        sums = Confusion(classes), BoundaryF1(classes), CalibrationError(), Temperature(), PrecisionRecall(classes)
        return cls(*sums, quality)

    def state(self) -> dict[str, list[Any] | None]:
        """Return the counts as whole numbers by metric; None for objects that are not measured."""
        metrics = {info.name: getattr(self, info.name) for info in fields(self)}
        return {name: None if metric is None else metric.state().tolist() for name, metric in metrics.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Counts:
        """Return the counts that have this state; raises `KeyError` or `ValueError` where it is none."""
        made = cls.of(len(state["confusion"]), state["objects"] is not None)
        for info in fields(cls):
            if (metric := getattr(made, info.name)) is not None:
                setattr(made, info.name, type(metric).from_state(np.array(state[info.name], np.int64)))
        return made

    def merge(self, other: Counts) -> None:
        for name in ("confusion", "boundary", "calibration", "temperature", "curves"):
            getattr(self, name).merge(getattr(other, name))
        if other.objects is not None:
            # An image too large for objects may come first.
            self.objects = self.objects or ObjectQuality()
            self.objects.merge(other.objects)


@dataclass
class Measurement:
    """What a network did on a source.

    Attributes:
        images: confusion of every image by its index.
        groups, strata: counts by name.
        skipped: names of images too large for boundaries and objects.
    """

    images: dict[int, Confusion] = field(default_factory=dict)
    groups: dict[str, Counts] = field(default_factory=dict)
    strata: dict[str, Counts] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def total(self) -> Counts:
        """Return the counts of all images."""
        first = next(iter(self.groups.values()))
        total = Counts.of(len(first.confusion.matrix), objects=False)
        for counts in self.groups.values():
            total.merge(counts)
        return total


def measure(
    predictions: Iterator[Prediction],
    source: Source,
    classes: int,
    *,
    known: Mapping[int, Counts] | None = None,
    on_image: Callable[[int, Counts], None] | None = None,
) -> Measurement:
    """Count over every labelled image.

    Objects are measured where the source numbers them and there are two classes: the foreground is split by a watershed
    (`unetpp.objects`).

    Args:
        predictions: of the source, see `unetpp.train.validate`; without the known images.
        classes: at least two.
        known: counts of images by their index that need not be predicted again.
        on_image: called with index and counts after each image that was predicted.
    """
    found = Measurement()
    known = known or {}
    for index, counts in merge(sorted(known.items()), _counts(predictions, source, classes, on_image), key=_index):
        image = source.images[index]
        if not _whole(image):
            found.skipped.append(image.name)
        found.images[index] = counts.confusion
        for by, name in ((found.groups, image.group), (found.strata, image.stratum)):
            by.setdefault(name, Counts.of(classes, objects=False)).merge(counts)
    return found


def _index(pair: tuple[int, Counts]) -> int:
    return pair[0]


def _whole(image: SourceImage) -> bool:
    return image.height * image.width <= WHOLE


def _counts(
    predictions: Iterator[Prediction], source: Source, classes: int, on_image: Callable[[int, Counts], None] | None
) -> Iterator[tuple[int, Counts]]:
    for index, tiles in groupby(predictions, lambda tile: tile.image):
        image = source.images[index]
        counts = _count(tiles, (image.height, image.width), classes, whole=_whole(image))
        if on_image is not None:
            on_image(index, counts)
        yield index, counts


def _count(tiles: Iterator[Prediction], shape: tuple[int, int], classes: int, *, whole: bool) -> Counts:
    first = next(tiles)
    objects = whole and classes == 2 and first.truth.objects is not None
    counts = Counts.of(classes, objects)
    truth: NDArray[np.uint8] = np.full(shape if whole else (0, 0), 255, np.uint8)
    labels, numbers = truth.copy(), np.zeros(truth.shape, np.int32)
    probability = np.zeros(truth.shape if objects else (0, 0), np.float32)
    for tile in chain([first], tiles):
        logits, known = tile.logits[-1], tile.truth.labels
        decided = decide(logits).cpu().numpy()
        counts.confusion.update(known, decided)
        counts.calibration.update(logits, known)
        counts.temperature.update(logits, known)
        counts.curves.update(logits, known)
        if whole:
            part = tile.box.slices()
            truth[part], labels[part] = known, decided
            if objects and tile.truth.objects is not None:
                numbers[part], probability[part] = tile.truth.objects, _foreground(logits)
    if whole:
        counts.boundary.update(truth, labels)
    if counts.objects is not None:
        counts.objects.update(numbers, split_objects(labels == 1, probability), truth != 255)
    return counts


def _foreground(logits: torch.Tensor) -> NDArray[np.float32]:
    """Return the probability of class 1 (h, w) of logits (1 or 2, h, w)."""
    score = logits[0] if len(logits) == 1 else logits[1] - logits[0]
    result: NDArray[np.float32] = score.sigmoid().cpu().numpy()
    return result
