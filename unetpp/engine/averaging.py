"""Means over orientations of a tile (test-time augmentation) around an engine that spares margins; knows no engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.engine.base import without_margins
from unetpp.model.margins import NO_MARGINS, Margins
from unetpp.model.orientations import Tta


def averaged_tile(
    run: Callable[[NDArray[Any], Margins], NDArray[np.float32]], pixels: NDArray[Any], margins: Margins, tta: Tta
) -> NDArray[np.float32]:
    """Return (..., K, h, w) log mean probabilities of a tile (H, W, C) without its margins; see `unetpp.model.turned`.

    Args:
        run: pixels and what to leave out of them -> logits (..., K, h, w).
        tta: more than "none".
    """
    import torch

    from unetpp.model.turned import averaged

    # Margins that are not alike lie elsewhere in every orientation, and could each be one more kind of tile.
    inner = margins if len(set(margins)) == 1 else NO_MARGINS
    # Torch takes no negative strides, and warns of arrays that it could write to and must not.
    image = torch.from_numpy(np.require(pixels, requirements=("C", "W")))
    found = averaged(lambda turned: torch.from_numpy(run(turned.numpy(), inner)), image, tta, (0, 1)).numpy()
    return np.ascontiguousarray(found if inner == margins else without_margins(found, margins))
