"""Draws a synthetic stained slide: tissue on glass, nuclei with known outline; imitates looks, claims no biology.

Everything is a function of the seed and the position, so tiles are drawn one by one in any order and the memory does
not grow with the image: coarse maps at 1/16 scale say where tissue is, and nuclei are listed per block of the plane.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from unetpp.drawing.noise import Field, enlarged, fibres, smooth_noise, step, window
from unetpp.durable import output_errors
from unetpp.errors import ShapeError

TILE = 512
VERSION = 1
_COARSE = 16
_CELL, _BLOCK = 26, 520  # one nucleus at most per cell; a block is 20 x 20 cells
_PATCH = 40
_MARGIN = _PATCH // 2
_GLASS = np.array([243, 243, 245], np.float32)
_HEMATOXYLIN = np.array([0.93, 1.28, 0.46], np.float32)  # optical density per channel at strength 1
_EOSIN = np.array([0.07, 0.60, 0.27], np.float32)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DrawnSlide:
    """What was drawn: the files, the size and how many nuclei have their centre in the image."""

    path: Path
    truth: Path
    side: int
    mpp: float
    nuclei: int


def draw_slide(path: Path, truth: Path, *, side: int = 4096, seed: int = 0, mpp: float = 0.5) -> DrawnSlide:
    """Draw a pyramidal tiled TIFF that OpenSlide opens, and its label TIFF (0 background, 1 nucleus).

    Args:
        path: the slide; its resolution tags hold `mpp`, its description says that it is synthetic.
        truth: the labels, of the same size.
        side: pixels per side, a multiple of 512. 16384 holds more than 100,000 nuclei.
        seed: same seed, same bytes.
        mpp: micrometres per pixel.

    Raises:
        ShapeError: the side does not tile.
        OutputError: the files cannot be written.
    """
    if side < 2 * TILE or side % TILE:
        raise ShapeError(f"side={side}: give a multiple of {TILE} from {2 * TILE} on")
    artist = _Artist(side, seed)
    note = description(side, seed)
    with output_errors(path), tempfile.TemporaryDirectory(prefix=".drawing-", dir=path.parent) as scratch:
        folder = Path(scratch)
        with (folder / "labels").open("wb") as file:
            _write_pyramid(folder / "slide.tif", artist, file, folder, note, mpp)
        _write_truth(folder / "truth.tif", folder / "labels", side, note, mpp)
        (folder / "truth.tif").replace(truth)
        (folder / "slide.tif").replace(path)  # last: where the slide is, its truth is
    return DrawnSlide(path, truth, side, mpp, artist.nuclei)


def description(side: int, seed: int) -> str:
    """Return the text that marks such a file."""
    return f"SYNTHETIC slide drawn by unetpp.drawing version {VERSION}, side {side}, seed {seed}; not a real tissue"


class _Artist:
    """The plane of one seed: maps, textures and nuclei; `nuclei` counts those in the tiles drawn so far."""

    def __init__(self, side: int, seed: int) -> None:
        self.side, self.seed, self.nuclei = side, seed, 0
        rng = np.random.default_rng((seed, 1))
        shape = (side // _COARSE, side // _COARSE)
        away = np.abs((np.arange(shape[0]) + 0.5) / shape[0] * 2 - 1).astype(np.float32)
        edge = np.maximum(away[:, None], away[None, :]) ** 6
        pieces = smooth_noise(rng, shape, 420 / _COARSE) + 0.35 * smooth_noise(rng, shape, 70 / _COARSE)
        holes = smooth_noise(rng, shape, 34 / _COARSE)
        self.tissue = step(pieces + 0.95 - 2.9 * edge, 0.0, 0.12) * (1 - step(holes, 2.1, 0.25))
        self.epithelium = step(smooth_noise(rng, shape, 130 / _COARSE), 0.0, 0.5)
        self.inflamed = step(smooth_noise(rng, shape, 90 / _COARSE), 1.1, 0.6)
        self.turn = smooth_noise(rng, shape, 300 / _COARSE)
        self.stain = smooth_noise(rng, shape, 500 / _COARSE)
        self.strands = fibres(rng, 1024)
        self.grain = smooth_noise(rng, (1000, 1000), 1.1) * 0.8 + smooth_noise(rng, (1000, 1000), 3.0) * 0.6
        self.cloud = smooth_noise(rng, (896, 896), 7.0)
        self.sensor = rng.standard_normal((3, 640, 640), np.float32) * 1.6
        self.block = functools.lru_cache(maxsize=256)(self._block)  # three rows of blocks of the widest slide

    def _block(self, row: int, col: int) -> npt.NDArray[np.float32]:
        """Return the nuclei of one block as rows (cy, cx, a, b, angle, strength, softness, wave1, wave2, texture)."""
        rng = np.random.default_rng((self.seed, 2, row, col))
        cells = _BLOCK // _CELL
        count = cells * cells
        random = rng.random((12, count), np.float32)
        index = np.arange(count)
        cy = row * _BLOCK + (index // cells + 0.5 + (random[0] - 0.5) * 0.55) * _CELL
        cx = col * _BLOCK + (index % cells + 0.5 + (random[1] - 0.5) * 0.55) * _CELL
        at = (
            np.clip(cy, 0, self.side - 1).astype(int) // _COARSE,
            np.clip(cx, 0, self.side - 1).astype(int) // _COARSE,
        )
        inside = (cy >= 0) & (cx >= 0) & (cy < self.side) & (cx < self.side)
        epithelium, inflamed = self.epithelium[at], self.inflamed[at]
        kept = inside & (self.tissue[at] > 0.85) & (random[2] < 0.24 + 0.56 * np.maximum(epithelium, inflamed))
        long = np.where(random[3] < epithelium, 8.5 + 4 * random[4], 8.0 + 6.5 * random[4])
        flat = np.where(random[3] < epithelium, 0.62 + 0.33 * random[5], 0.28 + 0.3 * random[5])
        small = random[6] < 0.75 * inflamed
        long, flat = np.where(small, 6.2 + 1.8 * random[4], long), np.where(small, 0.85 + 0.15 * random[5], flat)
        angle = self.turn[at] * 2.2 + (random[7] - 0.5) * np.where(random[3] < epithelium, 2.2, 0.7)
        strength = np.where(small, 1.05, 0.72) + 0.28 * random[8]
        soft = 1.5 + 2.2 * random[9] ** 3
        rows = (cy, cx, long, long * flat, angle, strength, soft, random[10] - 0.5, random[11] - 0.5, index * 37.0)
        table: npt.NDArray[np.float32] = np.stack([np.asarray(r, np.float32) for r in rows], 1)[kept]
        return table

    def nuclei_near(self, y0: int, x0: int) -> npt.NDArray[np.float32]:
        """Return the nuclei that can touch the tile at (y0, x0)."""
        first = [max(v - _MARGIN, 0) // _BLOCK for v in (y0, x0)]
        last = [(v + TILE + _MARGIN) // _BLOCK for v in (y0, x0)]
        found = np.concatenate(
            [self.block(r, c) for r in range(first[0], last[0] + 1) for c in range(first[1], last[1] + 1)]
        )
        dy, dx = found[:, 0] - y0, found[:, 1] - x0
        near = (dy > -_MARGIN) & (dy < TILE + _MARGIN) & (dx > -_MARGIN) & (dx < TILE + _MARGIN)
        self.nuclei += int(((dy >= 0) & (dy < TILE) & (dx >= 0) & (dx < TILE)).sum())
        return found[near]

    def tile(self, y0: int, x0: int) -> tuple[Bytes, Bytes]:
        """Return pixels (512, 512, 3) and labels (512, 512) of the tile at (y0, x0)."""
        size = (TILE, TILE)
        tissue, epithelium, stain = (
            enlarged(field, y0, x0, size, _COARSE) for field in (self.tissue, self.epithelium, self.stain)
        )
        hematoxylin, labels = self._draw_nuclei(y0, x0)
        strands, cloud, grain = (window(field, y0, x0, size) for field in (self.strands, self.cloud, self.grain))
        ragged = step(tissue + tissue * (1 - tissue) * strands, 0.5, 0.4)
        stroma = 1 - epithelium
        eosin = 0.36 + 0.05 * stain + 0.05 * cloud + stroma * 0.13 * strands + 0.02 * grain
        eosin *= 1 - 0.8 * stroma * step(strands, 1.7, 0.5)  # clefts between the strands
        eosin = np.maximum(eosin, 0.02) * ragged * (1 - 0.5 * labels)
        pale = 0.035 + 0.1 * epithelium + 0.012 * grain + 0.02 * cloud * epithelium
        hematoxylin = np.maximum(hematoxylin, np.maximum(pale, 0) * ragged)
        pixels = np.empty((TILE, TILE, 3), np.uint8)
        for band in range(3):
            light = np.exp(-(hematoxylin * _HEMATOXYLIN[band] + eosin * _EOSIN[band])) * _GLASS[band]
            light += window(self.sensor[band], y0, x0, size)
            pixels[..., band] = np.clip(light + 0.5, 0, 255)
        return pixels, labels

    def _draw_nuclei(self, y0: int, x0: int) -> tuple[Field, Bytes]:
        """Return the hematoxylin strength and the labels of the nuclei in a tile."""
        found = self.nuclei_near(y0, x0)
        pad = _PATCH
        strength = np.zeros((TILE + 2 * pad, TILE + 2 * pad), np.float32)
        labels = np.zeros(strength.shape, np.uint8)
        corners = np.floor(found[:, :2] - _MARGIN).astype(int)
        shades, masks = self._patches(found, corners)
        for (top, left), shade, mask in zip(corners - (y0 - pad, x0 - pad), shades, masks, strict=True):
            place = np.s_[top : top + _PATCH, left : left + _PATCH]
            np.maximum(strength[place], shade, out=strength[place])
            labels[place] |= mask
        inner = np.s_[pad : pad + TILE, pad : pad + TILE]
        return strength[inner], labels[inner]

    def _patches(self, nuclei: npt.NDArray[np.float32], corners: npt.NDArray[np.int_]) -> tuple[Field, Bytes]:
        """Return the strength and mask of each nucleus on its own (N, 40, 40) patch."""
        cy, cx, a, b, angle, dark, soft, wave1, wave2, _ = (column[:, None, None] for column in nuclei.T)
        grid = np.arange(_PATCH, dtype=np.float32) + 0.5
        dy = grid[None, :, None] + corners[:, 0, None, None].astype(np.float32) - cy
        dx = grid[None, None, :] + corners[:, 1, None, None].astype(np.float32) - cx
        cos, sin = np.cos(angle), np.sin(angle)
        u, v = (dx * cos + dy * sin) / a, (dy * cos - dx * sin) / b
        radius = np.sqrt(u * u + v * v) + 1e-6
        c, s = u / radius, v / radius
        bumps = 1 + 0.16 * wave1 * (4 * c * c - 3) * c + 0.2 * wave2 * s * c
        outside = (radius / bumps - 1) * b  # about the distance from the outline in pixels
        texture = self._texture(nuclei[:, 9])
        shade = dark * (0.86 + 0.16 * texture) + 0.16 * np.exp(-((outside + 1.5) ** 2) / 2.5)
        return np.maximum(shade, 0.3) * np.clip(0.5 - outside / soft, 0, 1), (outside < 0).astype(np.uint8)

    def _texture(self, offsets: npt.NDArray[np.float32]) -> Field:
        """Return one (40, 40) piece of the grain per offset."""
        top, left = ((offsets * stride).astype(int) % (self.grain.shape[0] - _PATCH) for stride in (13, 7))
        grid = np.arange(_PATCH)
        pieces: Field = self.grain[(top[:, None] + grid)[:, :, None], (left[:, None] + grid)[:, None, :]]
        return pieces


def _write_pyramid(path: Path, artist: _Artist, labels: IO[bytes], scratch: Path, note: str, mpp: float) -> None:
    """Write level 0 from drawn tiles and every further level from the strips that the level before left on disk."""
    import tifffile

    side, number = artist.side, 0
    with tifffile.TiffWriter(path, bigtiff=side > 16384) as writer:
        strips: Iterator[Bytes] = _drawn_strips(artist, labels)
        while True:
            halved = scratch / f"level{number + 1}"
            with halved.open("wb") as file:
                writer.write(
                    _tiles_and_half(strips, file),
                    shape=(side, side, 3),
                    dtype=np.uint8,
                    subfiletype=int(number > 0),
                    compression="jpeg",
                    compressionargs={"level": 90},
                    photometric="rgb",
                    description=note if number == 0 else None,
                    **_tags(mpp * 2**number),
                )
            if side <= TILE:
                return
            side, number = side // 2, number + 1
            strips = _stored_strips(halved, side, 3)


def _write_truth(path: Path, labels: Path, side: int, note: str, mpp: float) -> None:
    import tifffile

    strips = (strip[..., 0] for strip in _stored_strips(labels, side, 1))
    tifffile.imwrite(
        path,
        (strip[:, x : x + TILE] for strip in strips for x in range(0, side, TILE)),
        shape=(side, side),
        dtype=np.uint8,
        compression="deflate",
        photometric="minisblack",
        description=f"{note}; labels: 0 background, 1 nucleus",
        **_tags(mpp),
    )


def _tags(mpp: float) -> dict[str, Any]:
    return {
        "tile": (TILE, TILE),
        "resolution": (1e4 / mpp, 1e4 / mpp),
        "resolutionunit": "CENTIMETER",
        "software": "unetpp.drawing",
        "metadata": None,
    }


def _drawn_strips(artist: _Artist, labels: IO[bytes]) -> Iterator[Bytes]:
    """Draw rows of tiles, sending their labels to a file."""
    for y in range(0, artist.side, TILE):
        drawn = [artist.tile(y, x) for x in range(0, artist.side, TILE)]
        labels.write(np.concatenate([mask for _, mask in drawn], 1).tobytes())
        yield np.concatenate([pixels for pixels, _ in drawn], 1)


def _stored_strips(path: Path, side: int, bands: int) -> Iterator[Bytes]:
    with path.open("rb") as file:
        while data := file.read(TILE * side * bands):
            yield np.frombuffer(data, np.uint8).reshape(-1, side, bands)


def _tiles_and_half(strips: Iterator[Bytes], half: IO[bytes]) -> Iterator[Bytes]:
    """Cut strips into tiles, sending the same strips at half size to a file."""
    for strip in strips:
        tiles = [strip[:, x : x + TILE] for x in range(0, strip.shape[1], TILE)]
        half.write(np.concatenate([_halved(tile) for tile in tiles], 1).tobytes())
        yield from tiles


def _halved(tile: Bytes) -> Bytes:
    wide = tile.astype(np.uint16)
    return ((wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2] + 2) // 4).astype(np.uint8)
