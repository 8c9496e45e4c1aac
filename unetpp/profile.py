"""What an image looks like, in a few numbers, and which of them are unusual; knows arrays, not files or models.

Numbers of a window, over its valid pixels and in parts of the span in which a model's training images lie (255 for
uint8, six standard deviations for most others, see `unetpp.span`):

mean_<band>, std_<band>   brightness and contrast
focus                     log10 of the variance of the Laplacian over that of the grey picture: blur lowers it, noise
                          raises it (Pertuz et al. 2013, Pattern Recognition 46, operator LAPV, divided by the contrast)

An image's profile is the median of each number over up to 16 windows spread over what is valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.geometry import Box
from unetpp.span import Span

WINDOW, WINDOWS = 256, 16
LEAST_VALID = 0.25
"""Windows with fewer valid pixels say little."""
LEAST_IMAGES = 20
"""Fewer images do not tell what is usual."""
_MARGIN = 0.05
"""Differences below this share of the span (and of a factor 10 in focus) are never unusual."""
Profile = dict[str, float]
Ranges = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Unusual:
    """One number of a profile that lies outside what is usual.

    Attributes:
        statistic: its name.
        value: what the image has. low, high: what is usual.
        among: what it was compared with: "training" or "archive".
    """

    statistic: str
    value: float
    low: float
    high: float
    among: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def window_statistics(
    pixels: NDArray[Any], valid: NDArray[np.bool_], bands: Sequence[str], span: Span
) -> Profile | None:
    """Return a window's numbers; None where too little of it is valid, or it is smaller than 3 pixels.

    Args:
        pixels: (h, w, C).
        valid: (h, w).
        span: of the training images' samples.
    """
    if pixels.dtype.kind == "f":
        valid = valid & np.isfinite(pixels).all(-1)  # a ratio of bands may be infinite
        pixels = np.where(valid[..., None], pixels, 0)
    if valid.mean() < LEAST_VALID or min(valid.shape) < 3:
        return None
    low, high = np.array(span.low), np.array(span.high)
    values = (pixels.astype(np.float64) - low) / (high - low)
    inside = values[valid]
    found = {f"mean_{band}": float(mean) for band, mean in zip(bands, inside.mean(0), strict=True)}
    found |= {f"std_{band}": float(std) for band, std in zip(bands, inside.std(0), strict=True)}
    return found | {"focus": _focus(values.mean(-1), valid)}


def _focus(grey: NDArray[np.float64], valid: NDArray[np.bool_]) -> float:
    centre = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * centre
    # A pixel beside an invalid one has no Laplacian.
    whole = valid[1:-1, 1:-1] & valid[:-2, 1:-1] & valid[2:, 1:-1] & valid[1:-1, :-2] & valid[1:-1, 2:]
    sharp = float(laplacian[whole].var()) if whole.any() else 0.0
    # A 255th of the span, one grey level of 8 bits, is the least contrast and the least detail that is told from none.
    least = 1 / 255**2
    return float(np.log10((sharp + least) / (float(grey[valid].var()) + least)))


def profile_of(windows: Iterable[Profile | None]) -> Profile:
    """Return the median of each number over the windows that have any; empty where none has."""
    found = [window for window in windows if window is not None]
    return {name: float(np.median([window[name] for window in found])) for name in (found[0] if found else ())}


def spread(count: int, most: int = WINDOWS) -> list[int]:
    """Return up to `most` positions out of `count`, evenly."""
    return sorted({int((k + 0.5) * count / most) for k in range(most)}) if count > most else list(range(count))


def centred(box: Box) -> Box:
    """Return the window in the middle of a box, at most as large as the box."""
    height, width = (min(size, WINDOW) for size in box.shape)
    y, x = (box.y0 + box.y1 - height) // 2, (box.x0 + box.x1 - width) // 2
    return Box(y, x, y + height, x + width)


def quantiles(profiles: Sequence[Profile]) -> dict[str, list[float]]:
    """Return the 5th and the 95th percentile of every number over the images that have it, if 20 do.

    An image of a few pixels has none, and class shares are by class and unit: that is no reason to compare no other.
    """
    found: dict[str, list[float]] = {}
    for profile in profiles:
        for name, value in profile.items():
            found.setdefault(name, []).append(value)
    return {
        name: [round(float(q), 5) for q in np.quantile(values, (0.05, 0.95))]
        for name, values in found.items()
        if len(values) >= LEAST_IMAGES
    }


def unusual(profile: Mapping[str, float], ranges: Ranges, among: str) -> list[Unusual]:
    """Return the numbers outside the 5% to 95% range widened by half its width on both sides, furthest first.

    For normal distributions that is 3.3 standard deviations: one image of a thousand per number.
    """
    found = []
    for name, (q05, q95) in ranges.items():
        if name not in profile:
            continue
        half = max(q95 - q05, _MARGIN) / 2
        low, high, value = q05 - half, q95 + half, profile[name]
        low = max(0.0, low) if q05 >= 0 else low  # brightness, contrast and shares have no values below 0
        if not low <= value <= high:
            found.append((max(low - value, value - high) / half, Unusual(name, value, low, high, among)))
    return [item for _, item in sorted(found, key=lambda pair: -pair[0])]
