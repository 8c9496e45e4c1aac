"""Colours vary as much for any type and unit: what holds for a picture holds for the same picture in other units."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.unetpp.train.shapes import squares
from unetpp.geometry import Box
from unetpp.span import Span
from unetpp.train import ArraySource, AugmentConfig, TrainConfig
from unetpp.train.augment import patches
from unetpp.train.sampling import Sampler

AUGMENT = AugmentConfig(blur=0.5, noise=0.5, elastic=1.0)
PHOTO = squares(4, 0)


def in_units(factor: float, shift: float, dtype: str) -> ArraySource:
    """The photographs as samples of another type: factor * value + shift."""

    def image(index: int) -> tuple[str, str, NDArray[Any], NDArray[np.uint8], None]:
        name = PHOTO.images[index]
        crop = PHOTO.read(index, Box(0, 0, name.height, name.width))
        return name.name, name.group, (crop.pixels.astype(np.float64) * factor + shift).astype(dtype), crop.labels, None

    return ArraySource([image(index) for index in range(4)], 2)


def drawn(source: ArraySource) -> torch.Tensor:
    sampler = Sampler(source, TrainConfig(batch=8, patch=40, augment=AUGMENT))
    return patches(sampler.frames(0, range(8)), 40, AUGMENT, "cpu")[0]


@pytest.mark.parametrize(
    ("one", "other", "factor", "shift"),
    [
        pytest.param((1, 0, "float32"), (0.02, -12, "float32"), 0.02, -12, id="decibels"),
        pytest.param((1, 0, "float32"), (1e4, 0, "float32"), 1e4, 0, id="reflectance"),
        pytest.param((1, 0, "uint16"), (16, 0, "uint16"), 16, 0, id="12 of 16 bits"),
        pytest.param((1, -100, "int16"), (50, -5000, "int16"), 50, 0, id="heights"),
    ],
)
def test_patches_are_the_same_in_any_unit(one: Any, other: Any, factor: float, shift: float) -> None:
    expected = drawn(in_units(*one)) * factor + shift
    found = drawn(in_units(*other))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3 * float(expected.std()))
    # ... and they do differ from patches whose colours stay.
    still = replace(AUGMENT, gamma=0, gain=0, offset=0, tint=0, saturation=(1, 1), blur=0, noise=0)
    sampler = Sampler(in_units(*other), TrainConfig(batch=8, patch=40, augment=AUGMENT))
    assert (patches(sampler.frames(0, range(8)), 40, still, "cpu")[0] - found).abs().mean() > 0.1 * expected.std()


@pytest.mark.parametrize(("factor", "shift", "dtype"), [(0.02, -12, "float32"), (16, 0, "uint16"), (1, -100, "int16")])
def test_little_is_cut_off(factor: float, shift: float, dtype: str) -> None:
    """No change piles samples up at an end of the type, and their spread stays that of the images."""
    source = in_units(factor, shift, dtype)
    found = drawn(source)
    raw = np.concatenate([source.content(index).ravel() for index in range(4)]).astype(np.float64)
    assert 0.5 < float(found.std()) / raw.std() < 1.6
    assert max(float((found == end).float().mean()) for end in (found.min(), found.max())) < 0.2
    assert found.min() >= (0 if dtype == "uint16" else -np.inf) and (found.min() < 0) == (dtype != "uint16")


def test_spans_of_types() -> None:
    assert Span.of("uint8", (9.0, 9.0), (1.0, 1.0)) == Span((0.0, 0.0), (255.0, 255.0), 0.0, 255.0)
    assert Span.of("uint16", (1000.0,), (200.0,)) == Span((0.0,), (1600.0,), 0.0, 65535.0)
    assert Span.of("uint16", (60000.0,), (9000.0,)).high == (65535.0,)
    assert Span.of("int16", (-500.0,), (100.0,)) == Span((-800.0,), (-200.0,), -32768.0, 32767.0)
    assert Span.of("float32", (5.0,), (0.0,)) == Span((4.0,), (6.0,), -np.inf, np.inf)
