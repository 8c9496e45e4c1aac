"""Images in memory: what they are known again by, and arrays that do not fit together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unetpp.errors import DataError
from unetpp.train import ArraySource

PIXELS, LABELS = np.zeros((6, 8, 3), np.uint8), np.zeros((6, 8), np.uint8)
OBJECTS = np.zeros((6, 8), np.int32)


def source(pixels: Any = PIXELS, labels: Any = LABELS, objects: Any = None) -> ArraySource:
    return ArraySource([("a", "g", pixels, labels, objects)], 2)


def test_the_fingerprint_is_of_all_that_is_read() -> None:
    """A checkpoint is continued where fingerprints are equal, and numbers of objects weigh the pixels between them."""
    found = [
        source().fingerprint,
        source(objects=OBJECTS).fingerprint,
        source(objects=OBJECTS + 1).fingerprint,
        source(labels=LABELS + 1).fingerprint,
        source(pixels=PIXELS + 1).fingerprint,
    ]
    assert len(set(found)) == len(found) and source().fingerprint == found[0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((PIXELS[:5], LABELS), r"of \(5, 8, 3\), \(6, 8\), None; give \(H, W, C\)"),
        ((PIXELS[..., 0], LABELS), r"of \(6, 8\), \(6, 8\), None; give \(H, W, C\)"),
        ((PIXELS, LABELS, OBJECTS[:5]), r"of \(6, 8, 3\), \(6, 8\), \(5, 8\); give"),
        (
            (np.full((6, 8, 3), np.nan, np.float32), LABELS),
            "pixels that are no finite numbers; replace them, and label them 255",
        ),
        ((PIXELS + np.float32(np.inf), LABELS), "pixels that are no finite numbers"),
        ((PIXELS, LABELS + 2), "labels that are no classes; give 0 to 1, or 255 for no label"),
        ((PIXELS, LABELS.astype(np.int64) - 1), "labels that are no classes; give 0 to 1"),
        ((PIXELS, LABELS.astype(np.float32)), "labels that are no classes; give 0 to 1"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(arrays: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"image 'a' has .*{message}"):
        source(*arrays)


@pytest.mark.parametrize("other", [(PIXELS.astype(np.uint16), None), (PIXELS[..., :2], None), (PIXELS, OBJECTS)])
def test_images_that_make_no_batch_together_are_refused(other: tuple[Any, Any]) -> None:
    pixels, objects = other
    with pytest.raises(DataError, match="image 'b' has another type, other bands or objects than the first one"):
        ArraySource([("a", "g", PIXELS, LABELS, None), ("b", "g", pixels, LABELS, objects)], 2)
