"""What an image looks like in numbers: values worked out by hand, and what blur, noise and darkness do to them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from unetpp.geometry import Box
from unetpp.profile import (
    LEAST_IMAGES,
    WINDOW,
    centred,
    profile_of,
    quantiles,
    spread,
    unusual,
    window_statistics,
)
from unetpp.span import Span

RGB = ("red", "green", "blue")
BYTES = Span.of("uint8", (0, 0, 0), (1, 1, 1))


def everywhere(shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape[:2], bool)


def textured(seed: int = 0, side: int = 128) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(side, side, 3)), (1.5, 1.5, 0))
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("uint8", 0, 255), ("uint16", 0, 1600), ("int16", 700, 1300), ("float32", 700, 1300)]
)
def test_brightness_and_contrast_are_parts_of_the_span(dtype: str, low: int, high: int) -> None:
    pixels = np.full((4, 4, 1), low, dtype)
    pixels[:2] = high
    found = window_statistics(pixels, everywhere((4, 4)), ["pan"], Span.of(dtype, (1000,), (200 if low == 0 else 100,)))
    assert found is not None and set(found) == {"mean_pan", "std_pan", "focus"}
    assert found["mean_pan"] == pytest.approx(0.5) and found["std_pan"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("dtype", "factor", "shift"), [("uint8", 1, 0), ("uint16", 16, 0), ("float32", 1e-4, 0), ("float32", 0.1, -30)]
)
def test_the_same_pictures_are_unusual_in_any_unit(dtype: str, factor: float, shift: float) -> None:
    """Scenes of 12 bits, or of reflectance times a factor, fill little of their type."""
    random = np.random.default_rng(0)

    def picture(light: float) -> np.ndarray:
        return ((random.normal(70, 22, (64, 64, 3)).clip(0, 255) * light) * factor + shift).astype(dtype)

    usual = [picture(light) for light in random.uniform(0.95, 1.05, LEAST_IMAGES)]
    span = Span.of(dtype, np.mean(usual, (0, 1, 2)).tolist(), np.std(usual, (0, 1, 2)).tolist())
    found = [window_statistics(p, everywhere(p.shape), RGB, span) or {} for p in [*usual, picture(1.5), picture(0.2)]]
    ranges = quantiles(found[:LEAST_IMAGES])
    assert unusual(found[0], ranges, "training") == []
    for strange in found[LEAST_IMAGES:]:
        assert {"mean_red", "mean_green", "mean_blue"} <= {u.statistic for u in unusual(strange, ranges, "training")}


def test_focus_of_a_checkerboard_is_known() -> None:
    """Its Laplacian is 8 times the distance from the mean, everywhere: the quotient of variances is 64."""
    board = (np.indices((16, 16)).sum(0) % 2 * 200).astype(np.uint8)[..., None]
    found = window_statistics(board, everywhere((16, 16)), ["grey"], Span.of("uint8", (0,), (1,)))
    assert found is not None and found["focus"] == pytest.approx(np.log10(64), abs=1e-3)


def test_blur_lowers_focus_and_noise_raises_it() -> None:
    sharp = textured()
    blurred = ndimage.gaussian_filter(sharp.astype(float), (3, 3, 0)).astype(np.uint8)
    noisy = np.clip(sharp + np.random.default_rng(1).normal(0, 30, sharp.shape), 0, 255).astype(np.uint8)
    focus = [(window_statistics(p, everywhere(p.shape), RGB, BYTES) or {})["focus"] for p in (blurred, sharp, noisy)]
    assert focus[0] < focus[1] - 0.3 and focus[1] < focus[2] - 0.3


def test_only_valid_pixels_count() -> None:
    pixels = textured()
    valid = everywhere(pixels.shape)
    valid[:, 64:] = False
    hidden = pixels.copy()
    hidden[:, 64:] = np.random.default_rng(3).integers(0, 255, hidden[:, 64:].shape)
    assert window_statistics(pixels, valid, RGB, BYTES) == window_statistics(hidden, valid, RGB, BYTES)
    valid[:, 10:] = False
    assert window_statistics(pixels, valid, RGB, BYTES) is None
    assert window_statistics(pixels[:2], everywhere((2, 128)), RGB, BYTES) is None


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_pixels_that_are_no_numbers_are_left_out(value: float) -> None:
    """A ratio of bands is infinite where the other is 0; one such pixel would make every number of the image so."""
    pixels, span = textured().astype(np.float32), Span.of("float32", (128,) * 3, (60,) * 3)
    valid = everywhere(pixels.shape)
    pixels[5, 7, 1], valid[5, 7] = value, False
    found = window_statistics(pixels, everywhere(pixels.shape), RGB, span)
    assert found is not None and all(np.isfinite(list(found.values())))
    assert found == window_statistics(np.nan_to_num(pixels), valid, RGB, span)


def test_a_flat_window_has_finite_numbers() -> None:
    found = window_statistics(np.full((8, 8, 3), 7, np.uint8), everywhere((8, 8)), RGB, BYTES)
    assert found is not None and np.isfinite(list(found.values())).all() and found["focus"] == pytest.approx(0)


def test_a_profile_is_the_median_of_its_windows() -> None:
    assert profile_of([{"a": 1.0}, None, {"a": 5.0}, {"a": 2.0}]) == {"a": 2.0}
    assert profile_of([None]) == {} == profile_of([])


def test_windows_are_spread_and_fit() -> None:
    assert spread(5) == [0, 1, 2, 3, 4] and spread(0) == []
    assert spread(160) == [5 + 10 * k for k in range(16)]
    assert centred(Box(0, 0, 1000, 100)) == Box(372, 0, 372 + WINDOW, 100)


def test_what_is_unusual() -> None:
    profiles = [{"mean_red": 0.4 + 0.01 * k, "focus": -1.0} for k in range(21)]
    ranges = quantiles(profiles)
    assert ranges["mean_red"] == pytest.approx([0.41, 0.59])
    assert unusual({"mean_red": 0.33, "focus": -1.02}, ranges, "training") == []
    dark, soft = unusual({"mean_red": 0.1, "focus": -1.2}, ranges, "training")
    assert (soft.statistic, dark.statistic) == ("mean_red", "focus")  # furthest from usual first
    assert (soft.low, soft.high) == pytest.approx((0.32, 0.68)) and soft.among == "training"
    assert quantiles(profiles[: LEAST_IMAGES - 1]) == {}
    tiny: list[dict[str, float]] = [{}, {"share of water in m2": 0.5}]
    assert quantiles([*tiny, *profiles]) == ranges, "one image without a number leaves the others theirs"
    assert unusual({"other": 1.0}, ranges, "training") == [] == unusual({"mean_red": 9.0}, {}, "training")
