"""Finds pictures that are in two splits: equal ones by hash, re-encoded ones by a small print; reads no image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unetpp_workflows.prepare.faults import Fault, error, warning
from unetpp_workflows.prepare.rows import Row
from unetpp_workflows.prepare.survey import Survey

ALIKE = 0.98
"""Correlation of 16 x 16 grey prints. Copies saved as JPEG at quality 60, or at half the size, have at least 0.991;
different ones of 242 real nuclei and aerial images have at most 0.902. (A hash of what is above the median flips up to
50 of its 256 bits on dark images.)"""


def duplicates(rows: Sequence[Row], surveys: Sequence[Survey]) -> list[Fault]:
    """Return an error per equal pair and a warning per pair that looks alike, of images in different splits.

    Parts of one cut image and images of one plain colour are left out.
    """
    usable = [i for i, found in enumerate(surveys) if not found.failed and not found.plain]
    if not usable:
        return []
    prints = np.stack([np.frombuffer(bytes.fromhex(surveys[i].print), np.uint8) for i in usable]).astype(np.float32)
    prints -= prints.mean(1, keepdims=True)
    prints /= np.linalg.norm(prints, axis=1, keepdims=True)
    faults: list[Fault] = []
    for n, i in enumerate(usable):
        for m in np.flatnonzero(prints[n + 1 :] @ prints[n] >= ALIKE) + n + 1:
            j = usable[int(m)]
            one, other = rows[i], rows[j]
            if one.split == other.split or (one.image == other.image and one.part != (0.0, 1.0)):
                continue
            pair = f"{one.name} ({one.split}) and {other.name} ({other.split})"
            if surveys[i].sha256 == surveys[j].sha256:
                faults.append(error(f"{pair} are one picture in two splits; remove one, or give both one group"))
            else:
                faults.append(warning(f"{pair} look alike; check that they are not one picture in two splits"))
    return faults
