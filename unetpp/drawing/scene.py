"""Draws a synthetic aerial scene: coast, streets, roofs, trees and bare land with known labels; a place nowhere.

The land is laid out on two slightly bent axes (u along the streets, v across), so every class is a formula of (u, v)
and of numbers looked up per block or per house. The whole scene is held in memory.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unetpp.drawing.noise import Field, enlarged, smooth_noise
from unetpp.durable import output_errors
from unetpp.errors import ShapeError

VERSION = 1
NO_DATA, NO_LABEL = 0, 255
BUILDING, LAND, ROAD, VEGETATION, WATER = 1, 2, 3, 4, 5
SCENE_CLASSES = {
    "building": BUILDING,
    "land": LAND,
    "road": ROAD,
    "vegetation": VEGETATION,
    "water": WATER,
}
_BLOCK_U, _BLOCK_V = 460.0, 380.0  # pixels between main roads
_LANE_U, _LANE_V = _BLOCK_U / 3, _BLOCK_V / 2  # between lanes where people live
_LOT_U, _LOT_V = _LANE_U / 2, _LANE_V / 3  # pixels per building lot
_COARSE = 8
_ORIGIN = (330_000.0, 3_330_000.0)

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DrawnScene:
    """What was drawn: the files, the size, the pixel size in metres and the coordinate system."""

    path: Path
    truth: Path
    side: int
    spacing: float
    crs: str


def draw_scene(
    path: Path,
    truth: Path,
    *,
    side: int = 2048,
    seed: int = 0,
    spacing: float = 0.5,
    crs: str = "EPSG:32636",
) -> DrawnScene:
    """Draw a tiled RGB GeoTIFF with nodata 0 around a rotated footprint, and its labels (255 outside).

    Args:
        path: the scene; its tags say that it is synthetic.
        truth: labels of the same size and georeference, values as in `SCENE_CLASSES`.
        side: pixels per side, 256 to 8192.
        seed: same seed, same bytes.
        spacing: metres per pixel.
        crs: a projected system in metres, like EPSG:32636 or EPSG:3857.

    Raises:
        ShapeError: the side is out of range.
        OutputError: the files cannot be written.
    """
    if not 256 <= side <= 8192:
        raise ShapeError(f"side={side}: the scene is drawn in memory; give 256..8192")
    pixels, labels = _Land(side, seed).draw()
    outside = ~_footprint(side)
    pixels = np.maximum(pixels, 1)  # 0 is nodata
    pixels[outside], labels[outside] = NO_DATA, NO_LABEL
    note = description(side, seed)
    with output_errors(path), tempfile.TemporaryDirectory(prefix=".drawing-", dir=path.parent) as scratch:
        folder = Path(scratch)
        _write(folder / "truth.tif", labels[None], NO_LABEL, spacing, crs, f"{note}; labels: {SCENE_CLASSES}")
        _write(folder / "scene.tif", pixels.transpose(2, 0, 1), NO_DATA, spacing, crs, note)
        (folder / "truth.tif").replace(truth)
        (folder / "scene.tif").replace(path)  # last: where the scene is, its truth is
    return DrawnScene(path, truth, side, spacing, crs)


def description(side: int, seed: int) -> str:
    """Return the text that marks such a file."""
    return f"SYNTHETIC scene drawn by unetpp.drawing version {VERSION}, side {side}, seed {seed}; no real place"


class _Land:
    """One seed's land: where what is (`labels`) and what it looks like (`draw`)."""

    def __init__(self, side: int, seed: int) -> None:
        self.rng = np.random.default_rng((seed, 3))
        self.shape = (side, side)
        y, x = np.mgrid[0:side, 0:side].astype(np.float32)
        bend = min(1.0, side / 1024)
        turn = np.deg2rad(24)
        self.u = x * np.cos(turn) + y * np.sin(turn) + 26 * bend * self.noise(side / 7)
        self.v = y * np.cos(turn) - x * np.sin(turn) + 26 * bend * self.noise(side / 7)
        self.fine, self.middle, self.broad = self.noise(0.9), self.noise(5), self.noise(40)
        # A coast across the lower left corner, a few ponds, and parks where a broad field is high.
        inland = (x - y) / side + 0.5 + 0.05 * self.noise(side / 12) + 0.008 * self.noise(9)
        self.sea = inland < 0
        self.shore = (inland < 0.05) & ~self.sea
        self.pond = (self.noise(48) > 2.0) & ~self.shore & ~self.sea
        self.grove = self.noise(52) + 0.25 * self.noise(7)

    def noise(self, sigma: float) -> Field:
        if sigma < 4 * _COARSE:
            return smooth_noise(self.rng, self.shape, sigma)
        few = -(-self.shape[0] // _COARSE)
        return enlarged(smooth_noise(self.rng, (few, few), sigma / _COARSE), 0, 0, self.shape, _COARSE)

    def looked_up(self, cell_u: npt.NDArray[Any], cell_v: npt.NDArray[Any]) -> Field:
        """Return a uniform number per cell."""
        table = self.rng.random((97, 89), np.float32)
        picked: Field = table[cell_u.astype(np.int32) % 97, cell_v.astype(np.int32) % 89]
        return picked

    def draw(self) -> tuple[Labels, Labels]:
        """Return pixels (H, W, 3) and labels (H, W)."""
        across_u, across_v = _from_line(self.u, _BLOCK_U), _from_line(self.v, _BLOCK_V)
        main = np.minimum(np.abs(across_u), np.abs(across_v))
        use = self.looked_up(self.u // _BLOCK_U, self.v // _BLOCK_V)
        pond = self.pond & (main > 17)
        wet, dry = self.sea | pond, ~(self.sea | pond | self.shore)
        park = dry & ((use < 0.22) & (self.grove > -0.7) | (self.grove > 1.25))
        built = dry & ~park & (use > 0.52)
        lane = np.minimum(np.abs(_from_line(self.u, _LANE_U)), np.abs(_from_line(self.v, _LANE_V)))
        road = dry & (main < 12) | built & (lane < 6)
        roof, roof_light = self._roofs(built & (main > 14) & (lane > 8))
        park &= ~road
        labels = np.full(self.shape, LAND, np.uint8)
        for value, mask in ((VEGETATION, park), (WATER, wet), (ROAD, road), (BUILDING, roof)):
            labels[mask] = value
        pixels = self._ground(use, built)
        self._paint(pixels, park, self._trees())
        self._paint(pixels, road, self._asphalt(main, lane))
        shade = np.roll(roof, (-5, -4), (0, 1)) & ~roof
        self._paint(pixels, shade & ~wet, np.full((*self.shape, 3), 34, np.float32) + 7 * self.fine[..., None])
        self._paint(pixels, roof, roof_light)
        self._paint(pixels, wet, self._water())
        return _sharpened(pixels, self.noise(0.6)), labels

    @staticmethod
    def _paint(pixels: Field, mask: Mask, colors: Field) -> None:
        pixels[mask] = colors[mask]

    def _ground(self, use: Field, built: Mask) -> Field:
        """Bare land: bright sand in blocks of different brightness, darker yards, shrubs."""
        light = 178 + 52 * (use - 0.3) + 9 * self.broad + 9 * self.middle + 7 * self.fine
        light += 7 * np.sin(self.u / 5 + 3 * self.broad) * (self.broad > 0.9)
        light = np.where(self.shore, 214 + 5 * self.fine + 5 * self.middle, light)
        light = np.where(built, 116 + 20 * self.middle + 16 * self.fine, light)
        shrubs = (self.noise(1.6) > 2.35) & ~self.shore
        light = np.where(shrubs, 82 + 10 * self.fine, light)
        tint = np.stack([light * 1.02, light * 0.995, light * (0.985 + 0.012 * self.broad)], -1)
        return np.asarray(tint, np.float32)

    def _trees(self) -> Field:
        """Canopy: round crowns lit from one side."""
        crowns = self.noise(2.6)
        lit = crowns - np.roll(crowns, (2, 2), (0, 1))
        light = 62 + 15 * lit + 9 * crowns + 6 * self.fine + 7 * self.broad
        return np.asarray(np.stack([light * 0.93, light * 1.05, light * 0.96], -1), np.float32)

    def _asphalt(self, main: Field, lane: Field) -> Field:
        light = 84 + 5 * self.fine + 5 * self.broad
        light = np.where(np.abs(main - 6.5) < 0.6, 118, light)
        light = np.where(main < 2, 128 + 14 * self.middle, light)  # median strip
        cars = self.looked_up(self.u // 7, self.v // 4) > 0.975
        light = np.where(cars & (np.minimum(main, lane) > 2.5), 205, light)
        return np.asarray(np.stack([light * 1.04, light * 0.98, light * 0.97], -1), np.float32)

    def _water(self) -> Field:
        light = 11 + 2.2 * self.fine + 2.5 * self.broad + 2 * self.middle
        pond = np.where(self.pond, 1.0, 0.0)
        return np.asarray(np.stack([light + 3 * pond, light + 1 + 14 * pond, light - 0.5 + 9 * pond], -1), np.float32)

    def _roofs(self, allowed: Mask) -> tuple[Mask, Field]:
        """Return where roofs are and their colours; a lot that is not wholly allowed stays empty."""
        lot_u, lot_v = self.u // _LOT_U, self.v // _LOT_V
        at_u, at_v = self.u - (lot_u + 0.5) * _LOT_U, self.v - (lot_v + 0.5) * _LOT_V
        half_u = _LOT_U * (0.2 + 0.11 * self.looked_up(lot_u, lot_v))
        half_v = _LOT_V * (0.2 + 0.09 * self.looked_up(lot_u, lot_v))
        roof = (np.abs(at_u) < half_u) & (np.abs(at_v) < half_v)
        notch = self.looked_up(lot_u, lot_v) > 0.5  # half of the houses are L-shaped
        roof &= ~(notch & (at_u > 0.25 * half_u) & (at_v > 0.1 * half_v))
        across = int(lot_v.max() - lot_v.min()) + 1
        lots = ((lot_u - lot_u.min()) * across + lot_v - lot_v.min()).astype(np.int32)
        blocked = np.bincount(lots[roof & ~allowed], minlength=int(lots.max()) + 1) > 0
        empty = self.looked_up(lot_u, lot_v) < 0.12
        roof &= ~blocked[lots] & ~empty
        base = 118 + 110 * self.looked_up(lot_u, lot_v)
        side_light = np.where(at_v > 0, 12, -16)
        rim = np.minimum(half_u - np.abs(at_u), half_v - np.abs(at_v)) < 2.2
        boxes = self.looked_up(self.u // 8, self.v // 7)
        light = base + side_light + np.where(boxes > 0.86, -62, 0) + np.where(boxes < 0.1, 36, 0)
        light = np.where(rim, base + 34, light) + 5 * self.fine
        warm = self.looked_up(lot_u, lot_v)
        colors = np.stack([light * (0.97 + 0.12 * warm), light * 0.98, light * (1.03 - 0.13 * warm)], -1)
        return roof, np.asarray(colors, np.float32)


def _from_line(place: Field, period: float) -> Field:
    """Return the signed distance to the nearest multiple of the period."""
    return np.asarray(place - np.round(place / period) * period, np.float32)


def _sharpened(pixels: Field, noise: Field) -> Labels:
    """Blur a little and overshoot at edges, as such products are delivered, and add sensor noise."""
    from scipy.ndimage import gaussian_filter

    soft = gaussian_filter(pixels, (0.6, 0.6, 0))
    wide = gaussian_filter(pixels, (1.8, 1.8, 0))
    sharp = soft + 0.7 * (soft - wide) + 3 * noise[..., None]
    return np.asarray(np.clip(sharp + 0.5, 0, 255), np.uint8)


def _footprint(side: int) -> Mask:
    """Return the rectangle that was imaged, turned against the raster."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    angle = np.deg2rad(9)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.asarray((np.abs(along) < 0.44) & (np.abs(across) < 0.43))


def _write(path: Path, bands: Labels, nodata: int, spacing: float, crs: str, note: str) -> None:
    import rasterio

    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=bands.shape[1],
        width=bands.shape[2],
        count=bands.shape[0],
        dtype="uint8",
        crs=crs,
        transform=rasterio.Affine(spacing, 0, _ORIGIN[0], 0, -spacing, _ORIGIN[1]),
        nodata=nodata,
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress="deflate",
        predictor=2,
        interleave="pixel",
    ) as file:
        file.write(bands)
        file.update_tags(TIFFTAG_IMAGEDESCRIPTION=note, TIFFTAG_SOFTWARE="unetpp.drawing")
