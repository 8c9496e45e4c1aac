"""Splits a mask into single objects; knows masks and probabilities, not what the objects are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import ShapeError


def split_objects(
    foreground: NDArray[np.bool_],
    probability: NDArray[Any] | None = None,
    *,
    min_area: int = 16,
    depth: float = 0.75,
    smooth: float = 1.0,
) -> NDArray[np.int32]:
    """Number the objects of a mask, touching ones apart: a watershed of the distance to the background.

    Each pixel's height is its distance to the background (the image's edge is none: cut objects are not smaller), times
    its probability if there is one, so that a pale seam between two objects is a valley too; smoothed by a Gaussian. A
    peak is an object's centre where every way from it to a higher one falls by more than `depth` (h-maxima, Soille
    2003, section 6.3.4), which does not depend on the objects' size; every piece of the mask has one. Pixels go to the
    centre that floods them. The same arrays give the same numbers.

    Args:
        foreground: (H, W) bool.
        probability: (H, W) float in 0..1 of the foreground, or None.
        min_area: objects of fewer pixels are dropped.
        depth: in pixels; more splits fewer.
        smooth: standard deviation of the Gaussian in pixels.

    Returns:
        (H, W) int32: 0 for none, then 1, 2, ... in the order of the objects' first pixels, row by row.

    Raises:
        ShapeError: the shapes differ.
    """
    from scipy import ndimage
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    if probability is not None and probability.shape != foreground.shape:
        raise ShapeError(f"foreground has shape {foreground.shape}, probability {probability.shape}; give equal ones")
    if not foreground.any():
        return np.zeros(foreground.shape, np.int32)
    # Without any background the distance would be to nothing.
    height = np.ones(foreground.shape) if foreground.all() else ndimage.distance_transform_edt(foreground)
    if probability is not None:
        height = height * probability
    height = ndimage.gaussian_filter(height, smooth) * foreground
    flooded = reconstruction(height - depth, height, footprint=_NEIGHBOURS)
    peaks = local_maxima(flooded, connectivity=2) & foreground
    # A piece lower than the depth has no peak: all of it is the centre.
    pieces, count = ndimage.label(foreground, _NEIGHBOURS)
    lacking = np.ones(count + 1, bool)
    lacking[pieces[peaks]] = False
    centres, _ = ndimage.label(peaks | (lacking[pieces] & foreground), _NEIGHBOURS)
    return _number(watershed(-height, centres, mask=foreground, connectivity=2), min_area)


_NEIGHBOURS = np.ones((3, 3), bool)


def _number(labels: NDArray[Any], min_area: int) -> NDArray[np.int32]:
    """Drop small objects and number the others by their first pixels."""
    names, first, inverse, areas = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    kept = np.flatnonzero((names > 0) & (areas >= min_area))
    numbers = np.zeros(len(names), np.int32)
    numbers[kept[np.argsort(first[kept])]] = np.arange(1, len(kept) + 1, dtype=np.int32)
    return numbers[inverse].reshape(labels.shape)
