"""What the values, colours and names in labels mean, as class indices; knows arrays, not files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import DataError
from unetpp.levels import NO_DATA
from unetpp_workflows.prepare.dataset import Color, Dataset, Mark

Indices = NDArray[np.uint8]
_TABLE = 2**16


@dataclass(frozen=True)
class Legend:
    """Class index per mark; 255 for marks that do not count.

    Attributes:
        no_data: values that the data set says do not count.
        by_default: that 255 does not count is nobody's word.
    """

    values: Mapping[int, int]
    colors: Mapping[Color, int]
    names: Mapping[str, int]
    only: int | None
    background: int | None
    instances: bool
    explicit_values: bool
    no_data: frozenset[int] = frozenset()
    by_default: bool = False

    @classmethod
    def of(cls, dataset: Dataset) -> Legend:
        """Read the classes' marks; raises `DataError` where one mark means two things."""
        data, infos = dataset.data, dataset.infos()
        marks: dict[type, dict[Any, int]] = {int: {}, str: {}, tuple: {}}
        for mark in data.no_data:
            marks[type(mark)][mark] = NO_DATA
        for index, section in enumerate(dataset.classes):
            for mark in section.labels:
                _put(marks[type(mark)], mark, index)
        explicit = {type(mark) for section in dataset.classes for mark in section.labels}
        for index, section in enumerate(dataset.classes):
            if not section.labels:
                defaults: dict[type, Mark] = {int: infos[index].value, str: section.name, tuple: section.color}
                for kind, mark in defaults.items():
                    if mark not in marks[kind] and not (kind is int and data.label_map):
                        marks[kind][mark] = index
        for value, index in data.label_map.items():
            _put(marks[int], value, index)
        by_default = NO_DATA not in marks[int]
        marks[int].setdefault(NO_DATA, NO_DATA)
        return cls(
            values=marks[int],
            colors=marks[tuple],
            names=marks[str],
            only=dataset.only_foreground,
            background=dataset.background,
            instances=data.instances,
            explicit_values=bool(data.label_map) or data.instances or explicit == {int},
            no_data=frozenset(mark for mark in data.no_data if isinstance(mark, int)),
            by_default=by_default,
        )


@dataclass
class Unlisted:
    """Pixels by mark that the legend does not know."""

    pixels: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        most = ", ".join(f"{mark} ({count:,} px)" for mark, count in self.pixels.most_common(5))
        return most + (f" and {len(self.pixels) - 5} more" if len(self.pixels) > 5 else "")


def index_values(raw: NDArray[Any], legend: Legend, unlisted: Unlisted) -> Indices:
    """Return class indices (h, w) of a mask's values (h, w); what the legend does not list is 255 and counted."""
    return _look_up(raw, legend.values, unlisted, str)


def index_colors(raw: NDArray[np.uint8], legend: Legend, unlisted: Unlisted) -> Indices:
    """Return class indices (h, w) of an RGB mask (h, w, 3)."""
    packed = raw.astype(np.int64) @ np.array([65536, 256, 1])
    known = {(r * 256 + g) * 256 + b: index for (r, g, b), index in legend.colors.items()}
    return _look_up(packed, known, unlisted, lambda v: f"colour {v >> 16}, {v >> 8 & 255}, {v & 255}")


def index_instances(raw: NDArray[Any], legend: Legend) -> tuple[Indices, NDArray[np.int32]]:
    """Return class indices and object numbers (h, w) of a mask that numbers objects from 1.

    Raises:
        DataError: several foreground classes, or a number past 2^31 - 1.
    """
    if legend.only is None:
        raise DataError("instances number objects of one class, but several are not background; keep one")
    if raw.size and (raw.max() > np.iinfo(np.int32).max or raw.min() < 0):
        raise DataError(f"object numbers {raw.min()} to {raw.max()} do not fit; number objects from 1")
    rest = NO_DATA if legend.background is None else legend.background
    return np.where(raw > 0, np.uint8(legend.only), np.uint8(rest)), raw.astype(np.int32)


def _look_up(raw: NDArray[Any], known: Mapping[int, int], unlisted: Unlisted, name: Any) -> Indices:
    if raw.dtype.kind not in "uib":
        raise DataError(f"labels are {raw.dtype}, not whole numbers; convert them")
    if not raw.size:
        return np.zeros(raw.shape, np.uint8)
    if raw.dtype.kind != "b" and raw.min() >= 0 and raw.max() < _TABLE:
        found = np.flatnonzero(counts := np.bincount(raw.ravel()))
        amounts, inverse = counts[found], None
    else:
        found, inverse, amounts = np.unique(raw, return_inverse=True, return_counts=True)
    indices = np.array([known.get(int(value), NO_DATA) for value in found], np.uint8)
    for value, amount in zip(found, amounts, strict=True):
        if int(value) not in known:
            unlisted.pixels[name(int(value))] += int(amount)
    if inverse is not None:
        return np.asarray(indices[inverse].reshape(raw.shape))
    table = np.full(int(found[-1]) + 1, NO_DATA, np.uint8)
    table[found] = indices
    return np.asarray(table[raw])


def _put(known: dict[Any, int], mark: Mark, index: int) -> None:
    if known.setdefault(mark, index) != index:
        raise DataError(f"the mark {mark!r} in labels means two things; list it once in classes and no_data")
