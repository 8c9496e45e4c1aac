"""Finds images that are in two splits: equal ones by hash, re-encoded ones by a small print; knows no pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unetpp_workflows.prepare.faults import Fault, error, warning
from unetpp_workflows.prepare.rows import Row
from unetpp_workflows.prepare.survey import Survey

_MOST_BITS = 8
_MOST_DIFFERENCE = 4.0


def duplicates(rows: Sequence[Row], surveys: Sequence[Survey]) -> list[Fault]:
    """Return an error per equal pair and a warning per similar pair of images in different splits.

    Similar: the 256 bits of a 16 x 16 picture, above its median or not, differ in 8 at most, and its grey values
    (stretched to 0..255) by 4 on average at most. Parts of one cut image and images of one plain colour are left out.
    """
    usable = [i for i, found in enumerate(surveys) if not found.failed and not found.plain]
    if not usable:
        return []
    prints = np.stack([np.frombuffer(bytes.fromhex(surveys[i].print), np.uint8) for i in usable]).astype(np.int16)
    bits = prints > np.median(prints, axis=1, keepdims=True)
    packed = np.packbits(bits, axis=1)
    faults: list[Fault] = []
    for n, i in enumerate(usable):
        close = np.flatnonzero(np.bitwise_count(packed[n + 1 :] ^ packed[n]).sum(1) <= _MOST_BITS) + n + 1
        for m in close:
            j = usable[int(m)]
            one, other = rows[i], rows[j]
            if one.split == other.split or one.image == other.image:
                continue
            pair = f"{one.name} ({one.split}) and {other.name} ({other.split})"
            if surveys[i].sha256 == surveys[j].sha256:
                faults.append(error(f"{pair} are one picture in two splits; remove one, or give both one group"))
            elif np.abs(prints[n] - prints[m]).mean() <= _MOST_DIFFERENCE:
                faults.append(warning(f"{pair} look alike; check that they are not one picture in two splits"))
    return faults
