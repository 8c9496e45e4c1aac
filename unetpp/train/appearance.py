"""What training images look like, so that later images can be told apart from them; knows a source, no files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unetpp.geometry import Box
from unetpp.losses import IGNORE
from unetpp.profile import Profile, centred, profile_of, spread, window_statistics
from unetpp.span import Span
from unetpp.train.source import Source

_IMAGES = 256


def source_profiles(source: Source, bands: Sequence[str], span: Span) -> list[Profile]:
    """Return the profiles of up to 256 images, from windows where they are labelled."""
    found = [_profile(source, image, bands, span) for image in spread(len(source.images), _IMAGES)]
    return [profile for profile in found if profile]


def _profile(source: Source, image: int, bands: Sequence[str], span: Span) -> Profile:
    boxes = source.blocks.box[source.blocks.image == image]
    whole = Box(0, 0, source.images[image].height, source.images[image].width)
    windows = [centred(Box(*map(int, boxes[number])).intersect(whole)) for number in spread(len(boxes))]
    crops = [source.read(image, window) for window in windows]
    return profile_of(window_statistics(crop.pixels, np.asarray(crop.labels != IGNORE), bands, span) for crop in crops)
