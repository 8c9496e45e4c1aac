"""Boxes, spacings and window transforms against hand-computed cases and the affine definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetpp.errors import SpacingError
from unetpp.geometry import Box, Spacing, window_transform

coordinate = st.integers(-50, 50)
boxes = st.builds(
    lambda y, x, h, w: Box(y, x, y + h, x + w), coordinate, coordinate, st.integers(0, 40), st.integers(0, 40)
)


@given(boxes, boxes)
def test_intersection_holds_exactly_the_common_pixels(a: Box, b: Box) -> None:
    common = {(y, x) for y in range(a.y0, a.y1) for x in range(a.x0, a.x1)} & {
        (y, x) for y in range(b.y0, b.y1) for x in range(b.x0, b.x1)
    }
    c = a.intersect(b)
    assert c.area == len(common)
    assert common == {(y, x) for y in range(c.y0, c.y1) for x in range(c.x0, c.x1)}


def test_slices_are_relative_to_the_origin() -> None:
    assert Box(5, 7, 9, 12).slices(Box(4, 4, 20, 20)) == (slice(1, 5), slice(3, 8))


@pytest.mark.parametrize(
    "text,value,unit",
    [
        ("0.25um", 0.25, "um"),
        ("0.25 µm", 0.25, "um"),
        ("0.25 \u03bcm", 0.25, "um"),
        ("30cm", 0.3, "m"),
        ("0.3m", 0.3, "m"),
        ("1e-4deg", 1e-4, "deg"),
    ],
)
def test_spacing_reads_values_with_units(text: str, value: float, unit: str) -> None:
    spacing = Spacing.parse(text)
    assert (spacing.y, spacing.x, spacing.unit) == (pytest.approx(value), pytest.approx(value), unit)


@pytest.mark.parametrize("text", ["0.25", "um", "-1um", "0m", "nanum", "1e999m", "1.2.3um"])
def test_spacing_never_guesses(text: str) -> None:
    with pytest.raises(SpacingError):
        Spacing.parse(text)


def test_degrees_have_no_length() -> None:
    with pytest.raises(SpacingError, match="latitude"):
        Spacing(1e-4, 1e-4, "deg").metres()
    assert Spacing(0.5, 0.25, "um").metres() == (pytest.approx(5e-7), pytest.approx(2.5e-7))


def test_window_transform_keeps_every_pixel_in_place() -> None:
    """A rotated transform: the corner of a window pixel lies where the full image puts it."""
    t = (0.4, 0.1, 1000.0, 0.05, -0.6, 2000.0)
    w = window_transform(t, Box(3, 5, 9, 9), 4.0, 2.0)
    row, col = 2, 1
    full_row, full_col = (3 + row) * 4.0, (5 + col) * 2.0
    assert w[0] * col + w[1] * row + w[2] == pytest.approx(t[0] * full_col + t[1] * full_row + t[2])
    assert w[3] * col + w[4] * row + w[5] == pytest.approx(t[3] * full_col + t[4] * full_row + t[5])
