"""Judges a data set as a whole, from the surveys of its images; opens nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from unetpp.io.resample import SPACING_TOLERANCE
from unetpp_workflows.prepare.dataset import SPLITS, Dataset
from unetpp_workflows.prepare.duplicates import duplicates
from unetpp_workflows.prepare.faults import Fault, error, some, warning
from unetpp_workflows.prepare.rows import Row
from unetpp_workflows.prepare.survey import Survey

_UNNAMED = re.compile(r"gray|band\d+")
"""What readers call a band that its file does not name. (The bands of a PNG are red, green and blue.)"""


def set_faults(dataset: Dataset, rows: Sequence[Row], surveys: Sequence[Survey]) -> list[Fault]:
    """Return what is wrong with the set as a whole."""
    usable = [(row, found) for row, found in zip(rows, surveys, strict=True) if not found.failed]
    faults = duplicates(rows, surveys)
    if not usable:
        return faults
    kinds = Counter((found.dtype, len(found.bands)) for _, found in usable)
    if len(kinds) > 1:
        (dtype, bands), _ = kinds.most_common(1)[0]
        others = [row.name for row, found in usable if (found.dtype, len(found.bands)) != (dtype, bands)]
        faults.append(
            error(f"most images have {bands} band(s) of {dtype}, others do not: {some(others)}; convert them")
        )
    faults += _mixed_bands(usable)
    names = [c.name for c in dataset.classes]
    counts = {split: np.zeros(len(names), np.int64) for split in SPLITS}
    for row, found in usable:
        counts[row.split] += found.labelled(len(names))
    for split in SPLITS:
        present = any(row.split == split for row in rows)
        if split == "train" and not counts[split].any():
            faults.append(error("no training image has a labelled pixel; check classes, legend and splits"))
        elif present and not counts[split].any():
            faults.append(error(f"no image of the split {split} has a labelled pixel; check legend and splits"))
        elif present:
            empty = [name for name, count in zip(names, counts[split], strict=True) if not count]
            if empty:
                faults.append(warning(f"class without a pixel in {split}: {', '.join(empty)}"))
    if "val" not in {row.split for row in rows}:
        faults.append(warning("no image is in val: training cannot be validated"))
    sizes = [found for _, found in usable]
    if dataset.data.spacing is None and common_spacing(sizes) is None and any(found.spacing for found in sizes):
        faults.append(warning("images have different pixel sizes or state none; set spacing to train at one"))
    return faults


def _mixed_bands(usable: Sequence[tuple[Row, Survey]]) -> list[Fault]:
    """Return an error for the first two images with bands of different names in one place.

    Case makes no difference, and a band without a name fits every other.
    """
    first: dict[tuple[str, ...], str] = {}
    for row, found in usable:
        first.setdefault(found.bands, row.name)
    for (ours, one), (theirs, other) in combinations(first.items(), 2):
        if len(ours) == len(theirs) and any(map(_differ, ours, theirs)):
            what = f"{one} has the bands {', '.join(ours)}, {other} has {', '.join(theirs)}"
            return [error(f"{what}; bring them into one order, or where only names differ, rename in a .bands.toml")]
    return []


def _differ(one: str, other: str) -> bool:
    unnamed = _UNNAMED.fullmatch(one) or _UNNAMED.fullmatch(other)
    return not unnamed and one.casefold() != other.casefold()


def common_spacing(surveys: Sequence[Survey]) -> dict[str, Any] | None:
    """Return the pixel size that all images share, within 1%; None where they do not or one states none."""
    found = [dict(survey.spacing) if survey.spacing else None for survey in surveys]
    first = found[0] if found else None
    if first is None:
        return None
    for other in found[1:]:
        if other is None or other["unit"] != first["unit"]:
            return None
        if any(abs(other[axis] / first[axis] - 1) > SPACING_TOLERANCE for axis in ("y", "x")):
            return None
    return first
