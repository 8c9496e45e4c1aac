"""Divides groups, and the parts of a single one, into training, validation and test; knows names and boxes only."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from unetpp.errors import DataError
from unetpp.geometry import Box
from unetpp_workflows.prepare.dataset import SPLITS, DataSection


def split_groups(pairs: Sequence[tuple[str, str]], data: DataSection) -> dict[str, str]:
    """Return the split of each group from (group, value of the split column) per image.

    Raises:
        DataError: a value that means no split, or a group with images in two splits.
    """
    meaning = {"train": "train"} | dict.fromkeys(data.validation, "val") | dict.fromkeys(data.test, "test")
    found: dict[str, str] = {}
    for group, value in pairs:
        if value not in meaning:
            raise DataError(
                f"column {data.split!r} says {value!r} for group {group!r}; write one of {', '.join(sorted(meaning))}, "
                "or name the value in validation or test"
            )
        if found.setdefault(group, meaning[value]) != meaning[value]:
            raise DataError(
                f"group {group!r} is in two splits, {found[group]} and {meaning[value]}; figures on it would be too "
                "good: move it into one"
            )
    return found


def split_by_share(groups: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Fill splits with whole groups until each has about its share of the images.

    Args:
        groups: of every image.

    Groups come in an order drawn from the seed and their names, so that one more group moves few others. Each split
    first gets one; every other group goes where most images are missing. Raises `DataError` for fewer groups than
    splits.
    """
    sizes = Counter(groups)
    if len(sizes) < len(shares):
        raise DataError(f"{len(sizes)} groups cannot fill {len(shares)} splits; label more, or give fewer shares")
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
    missing = {split: shares[split] * len(groups) for split in SPLITS if split in shares}
    first = dict(zip(order, missing, strict=False))
    found = {}
    for group in order:
        split = first.get(group) or max(missing, key=lambda name: missing[name])
        missing[split] -= sizes[group]
        found[group] = split
    return found


def part_box(part: tuple[float, float], guard: int, height: int, width: int) -> Box:
    """Return the pixels of a part (from 0 to 1) of the longer side, narrowed where it is cut.

    Each side of a cut gives up half the guard (rounded up), so that at least `guard` pixels lie between two parts.
    Raises `DataError` where nothing is left.
    """
    (start, stop), length, half = part, max(height, width), -(-guard // 2)
    first = round(start * length) + (half if start > 0 else 0)
    last = round(stop * length) - (half if stop < 1 else 0)
    if last <= first:
        raise DataError(f"a part of {round((stop - start) * length)} px leaves nothing beside a guard of {guard} px")
    return Box(0, first, height, last) if width >= height else Box(first, 0, last, width)
