"""Seeded random fields as float32 arrays, smooth at a stated scale; knows nothing of tissue or land."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float | tuple[float, float]) -> Field:
    """Return Gaussian noise blurred by `sigma` pixels (y, x), zero mean, unit variance, periodic in both axes."""
    sigma_y, sigma_x = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    spectrum = np.fft.rfft2(rng.standard_normal(shape, np.float32))
    spectrum *= np.exp(-2 * (np.pi * sigma_y * np.fft.fftfreq(shape[0])) ** 2).astype(np.float32)[:, None]
    spectrum *= np.exp(-2 * (np.pi * sigma_x * np.fft.rfftfreq(shape[1])) ** 2).astype(np.float32)
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, shape)
    return np.asarray(noise / noise.std(), np.float32)


def fibres(rng: np.random.Generator, side: int) -> Field:
    """Return a periodic texture of wavy strands, zero mean, unit variance."""
    straight = smooth_noise(rng, (side, side), (1.3, 14.0))
    bend = smooth_noise(rng, (side, side), 60.0) * 26
    rows = (np.arange(side)[:, None] + bend).astype(np.intp) % side
    bent: Field = straight[rows, np.arange(side)[None, :]]
    return bent


def step(field: npt.NDArray[np.floating], threshold: float, width: float) -> Field:
    """Return a smooth 0..1 step where the field passes the threshold, rising over about `width`."""
    return np.asarray(np.clip((field - threshold) / width + 0.5, 0, 1), np.float32)


def window(field: Field, y0: int, x0: int, shape: tuple[int, int]) -> Field:
    """Return a window of a periodic field."""
    rows = np.arange(y0, y0 + shape[0]) % field.shape[0]
    cols = np.arange(x0, x0 + shape[1]) % field.shape[1]
    picked: Field = field[rows[:, None], cols[None, :]]
    return picked


def enlarged(field: Field, y0: int, x0: int, shape: tuple[int, int], factor: int) -> Field:
    """Return a window, in fine pixels, of a coarse field seen `factor` times enlarged with linear interpolation.

    Coarse sample (i, j) lies at the centre of its factor x factor block; the field's edge is continued outside.
    """
    row, wy = _places(y0, shape[0], field.shape[0], factor)
    col, wx = _places(x0, shape[1], field.shape[1], factor)
    tall = field[row] * (1 - wy)[:, None] + field[row + 1] * wy[:, None]
    return np.asarray(tall[:, col] * (1 - wx) + tall[:, col + 1] * wx, np.float32)


def _places(start: int, size: int, coarse: int, factor: int) -> tuple[npt.NDArray[np.intp], Field]:
    """Return the coarse sample before each fine pixel and the weight of the one after it."""
    place = np.clip((np.arange(start, start + size) + 0.5) / factor - 0.5, 0, coarse - 1)
    low = np.minimum(place.astype(np.intp), coarse - 2)
    return low, (place - low).astype(np.float32)
