"""Tests of the tissue search and the user's mask against drawn truth; knows no reader's details."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_bounds
from rasterio.warp import transform_bounds

from unetpp.errors import MaskError
from unetpp.geometry import Box
from unetpp.io import open_raster
from unetpp.io.base import thumbnail
from unetpp.io.resample import OutputGrid
from unetpp.tissue import ValidityMask, _components, load_mask, tissue_mask

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]

GLASS = np.array([238.0, 236.0, 240.0])
PALE_EOSIN = np.array([0.06, 0.14, 0.08])  # natural optical density: a tenth of a well stained section's


def _through_jpeg(image: NDArray[np.float64], seed: int = 3) -> Rgb:
    noisy = image + np.random.default_rng(seed).normal(0, 2, image.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))


def _drawn(height: int = 512, width: int = 640) -> Mask:
    y, x = np.mgrid[:height, :width]
    left = ((y - 200) / 120) ** 2 + ((x - 180) / 90) ** 2 < 1
    right = ((y - 330) / 70) ** 2 + ((x - 450) / 130) ** 2 < 1
    return np.asarray(left | right)


def _light(height: int = 512, width: int = 640) -> NDArray[np.float64]:
    """A lamp that falls off by a third from one corner to the opposite one, curved."""
    y, x = np.mgrid[:height, :width]
    falloff: NDArray[np.float64] = 1 - 0.15 * (y / height) ** 2 - 0.2 * (x / width)
    return GLASS * falloff[..., None]


def _iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("light", ["even", "uneven"])
def test_pale_tissue_is_found(light: str) -> None:
    drawn = _drawn()
    glass = _light() if light == "uneven" else np.broadcast_to(GLASS, (*drawn.shape, 3))
    found = tissue_mask(_through_jpeg(glass * np.exp(np.where(drawn[..., None], -PALE_EOSIN, 0))))
    assert found.dtype == bool
    assert _iou(found, drawn) > 0.9
    assert (found & drawn).sum() > 0.99 * drawn.sum(), "tissue may be widened, never lost"


@pytest.mark.parametrize("seed", range(2))
def test_blank_glass_has_no_tissue(seed: int) -> None:
    assert not tissue_mask(_through_jpeg(np.broadcast_to(GLASS, (320, 400, 3)), seed)).any()


def test_pure_white_has_no_tissue() -> None:
    assert not tissue_mask(np.full((300, 400, 3), 255, np.uint8)).any()


@pytest.mark.parametrize("seed", range(2))
def test_uneven_light_is_no_tissue(seed: int) -> None:
    assert not tissue_mask(_through_jpeg(_light(320, 400), seed)).any()


def test_white_fill_beside_glass_is_no_tissue() -> None:
    """Scanners fill what they did not scan with pure white: the step to glass is not stain."""
    image = np.broadcast_to(GLASS, (256, 320, 3)).copy()
    image[:, 200:] = 255
    assert tissue_mask(np.rint(image).astype(np.uint8)).mean() == 0


def test_pale_tissue_on_saturated_glass_is_found() -> None:
    """Here pure white is the glass: the only unsaturated pixels are tissue and must not pass for glass."""
    drawn = _drawn()
    image = np.where(drawn[..., None], 255 * np.exp(-np.array([0.015, 0.06, 0.025])), 255.0)
    assert _iou(tissue_mask(np.rint(image).astype(np.uint8)), drawn) > 0.9


def test_small_components_and_weak_ones_are_dropped() -> None:
    weak = np.zeros((40, 40), bool)
    weak[2:5, 2:6] = weak[10, 2:13] = weak[20:30, 20:30] = True
    strong = np.zeros((40, 40), bool)
    strong[3, 3] = strong[10, 5] = True
    kept = np.zeros((40, 40), bool)
    kept[2:5, 2:6] = True
    assert np.array_equal(_components(weak, strong), kept)


def test_image_without_glass_is_all_tissue() -> None:
    pink = np.random.default_rng(1).integers(90, 140, (256, 256, 3)).astype(np.uint8)
    pink[..., 1] //= 2
    assert tissue_mask(pink).all()


def test_a_speck_is_no_tissue_and_a_spot_is() -> None:
    image = np.broadcast_to(GLASS, (256, 256, 3)).copy()
    image[50:51, 50:51] *= np.exp(-PALE_EOSIN)
    image[180:195, 180:195] *= np.exp(-6 * PALE_EOSIN)
    found = tissue_mask(np.rint(image).astype(np.uint8))
    assert not found[:120, :120].any()
    assert found[180:195, 180:195].all()


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("CMU-1-Small-Region.svs", 0.25, 0.6),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.6, 0.72),  # white fill around tinted glass
        ("giardia_HE_left_1.02GP.tif", 0.15, 0.4),
    ],
)
def test_real_slides(data_dir: Path, name: str, least: float, most: float) -> None:
    """Bounds drawn by eye on the thumbnails; the dark half of the inside is stain whatever the method."""
    with open_raster(data_dir / "slides" / name) as raster:
        image = thumbnail(raster, 512).pixels
    found = tissue_mask(image)
    assert found.shape == image.shape[:2]
    assert least < found.mean() < most
    dark = image.astype(float).mean(-1) < 150
    assert found[dark].mean() > 0.98
    assert np.array_equal(found, tissue_mask(image.copy())), "the same thumbnail gives the same mask"


def _nearest(mask: Mask, height: int, width: int) -> Mask:
    """Upsample by where pixel centres fall, one pixel at a time in exact integers."""
    h, w = mask.shape
    out = np.zeros((height, width), bool)
    for i in range(height):
        for j in range(width):
            out[i, j] = mask[(2 * i + 1) * h // (2 * height), (2 * j + 1) * w // (2 * width)]
    return out


@pytest.mark.parametrize(("h", "w", "height", "width"), [(5, 7, 41, 60), (13, 9, 13, 9), (31, 23, 10, 8), (1, 1, 6, 9)])
def test_crop_and_any_equal_nearest_upsampling(h: int, w: int, height: int, width: int) -> None:
    random = np.random.default_rng(7)
    small = random.random((h, w)) < 0.2
    validity = ValidityMask(small, height, width)
    whole = np.pad(_nearest(small, height, width), 10)
    assert np.array_equal(validity.crop(Box(-10, -10, height + 10, width + 10)), whole)
    for _ in range(60):
        y0, x0 = int(random.integers(-9, height + 5)), int(random.integers(-9, width + 5))
        box = Box(y0, x0, y0 + int(random.integers(1, 6)), x0 + int(random.integers(1, 6)))
        box = box.intersect(Box(-10, -10, height + 10, width + 10))
        truth = whole[box.y0 + 10 : box.y1 + 10, box.x0 + 10 : box.x1 + 10]
        assert np.array_equal(validity.crop(box), truth)
        assert validity.any(box) == truth.any()


def grid(height: int, width: int) -> OutputGrid:
    return OutputGrid(height, width, 1, 1, 0, None, None, None)


def test_saved_mask_reads_back_bit_for_bit(tmp_path: Path) -> None:
    small = np.random.default_rng(5).random((37, 53)) < 0.5
    path = tmp_path / "mask.png"
    ValidityMask(small, 370, 530).save(path)
    again = load_mask(path, grid(370, 530))
    assert (again.height, again.width) == (370, 530)
    assert again.mask.dtype == bool
    assert np.array_equal(again.mask, small)
    assert Image.open(path).mode == "1"


def test_every_value_but_zero_is_to_be_done(tmp_path: Path) -> None:
    values = np.array([[0, 1, 0, 255], [7, 0, 128, 0]], np.uint8)
    Image.fromarray(values).save(tmp_path / "gray.png")
    color = np.zeros((2, 4, 3), np.uint8)
    color[values > 0, 2] = 1
    Image.fromarray(color).save(tmp_path / "color.png")
    for name in ("gray.png", "color.png"):
        assert np.array_equal(load_mask(tmp_path / name, grid(20, 40)).mask, values > 0)


def test_a_negative_value_is_not_zero(tmp_path: Path) -> None:
    values = np.zeros((20, 40), np.int16)
    values[3:9, :30] = -1  # as some raster calculators write what is true
    tifffile.imwrite(tmp_path / "signed.tif", values)
    assert np.array_equal(load_mask(tmp_path / "signed.tif", grid(20, 40)).mask, values != 0)


def test_what_counts_in_a_mask_is_the_stored_value(tmp_path: Path) -> None:
    """... as tifffile and GDAL give it: shown, 0 may be white and 1 black."""
    marked = np.zeros((20, 40), bool)
    marked[3:9, :30] = True
    tifffile.imwrite(tmp_path / "bool.tif", marked)  # white is zero, as tifffile writes masks
    tifffile.imwrite(tmp_path / "white.tif", marked.astype(np.uint8), photometric="miniswhite")
    colors = np.zeros((3, 256), np.uint16)
    colors[:, 0] = 65535
    tifffile.imwrite(tmp_path / "palette.tif", marked.astype(np.uint8), photometric="palette", colormap=colors)
    photo = Image.fromarray(marked.astype(np.uint8), mode="P")
    photo.putpalette([255, 255, 255, 0, 0, 0])
    photo.save(tmp_path / "palette.png")
    zarr.create_array(tmp_path / "bool.zarr", data=marked)
    for name in ("bool.tif", "white.tif", "palette.tif", "palette.png", "bool.zarr"):
        assert np.array_equal(load_mask(tmp_path / name, grid(20, 40)).mask, marked), name


def test_jpeg_mask_counts_from_half_brightness(tmp_path: Path) -> None:
    drawn = np.zeros((64, 64), bool)
    drawn[16:48, 8:40] = True
    Image.fromarray(np.where(drawn, 255, 0).astype(np.uint8)).save(tmp_path / "mask.jpg", quality=40)
    assert np.array_equal(load_mask(tmp_path / "mask.jpg", grid(64, 64)).mask, drawn)


@pytest.mark.parametrize(("height", "width"), [(100, 100), (400, 200), (1000, 2100)])
def test_mask_of_other_proportions_is_refused(tmp_path: Path, height: int, width: int) -> None:
    ValidityMask(np.ones((200, 400), bool), 1, 1).save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match=rf"mask\.png: 400x200 has other proportions than the image's {width}x{height}"):
        load_mask(tmp_path / "mask.png", grid(height, width))


@pytest.mark.parametrize(("height", "width"), [(200, 400), (2000, 4000), (1003, 1999), (20, 40)])
def test_mask_of_the_same_proportions_is_taken(tmp_path: Path, height: int, width: int) -> None:
    ValidityMask(np.ones((200, 400), bool), 1, 1).save(tmp_path / "mask.png")
    assert load_mask(tmp_path / "mask.png", grid(height, width)).crop(Box(0, 0, height, width)).all()


@pytest.mark.parametrize("crs", ["EPSG:32636", "EPSG:4326"])
def test_a_mask_with_a_place_covers_the_image(tmp_path: Path, crs: str) -> None:
    """A cloud mask of a whole tile is no mask of a cut of it, though both are square."""
    north, wanted = 40000, OutputGrid(100, 100, 1, 1, 0, None, (10, 0, 500000, 0, -10, 40000), "EPSG:32636")
    for name, west, metres in (("same", 500000, 1000), ("tile", 500000, 2000), ("beside", 500300, 1000)):
        ground = transform_bounds("EPSG:32636", crs, west, north - metres, west + metres, north)
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", height=50, width=50, count=1, dtype="uint8", crs=crs,
            transform=from_bounds(*ground, 50, 50),
        ) as file:  # fmt: skip
            file.write(np.ones((50, 50), np.uint8), 1)
    assert load_mask(tmp_path / "same.tif", wanted).mask.all()
    for name, off in (("tile", 100), ("beside", 30)):
        with pytest.raises(MaskError, match=rf"{name}\.tif covers other ground than the image: a corner is {off} px"):
            load_mask(tmp_path / f"{name}.tif", wanted)
    # Without a place of its own an image has only its size.
    assert load_mask(tmp_path / "tile.tif", grid(100, 100)).mask.all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("orientation", "size"), [(3, (30, 40)), (4, (30, 40)), (6, (40, 40)), (8, (40, 40))])
def test_a_mask_that_may_be_drawn_on_the_turned_photo_is_refused(
    tmp_path: Path, orientation: int, size: tuple[int, int], suffix: str
) -> None:
    drawn = Image.fromarray(np.full(size, 255, np.uint8))
    drawn.save(tmp_path / f"mask.{suffix}")
    with pytest.raises(MaskError, match=f"orientation {orientation}.* or on the turned one"):
        load_mask(tmp_path / f"mask.{suffix}", grid(*size), orientation)
    exif = drawn.getexif()
    exif[274] = orientation
    drawn.save(tmp_path / f"mask.{suffix}", exif=exif)
    assert load_mask(tmp_path / f"mask.{suffix}", grid(*size), orientation).mask.all(), "turned alike"
    Image.fromarray(np.full((30, 40), 255, np.uint8)).save(tmp_path / "stored.png")
    assert load_mask(tmp_path / "stored.png", grid(300, 400), 6).mask.all(), "as turned it would be 40 x 30"
    with pytest.raises(MaskError, match=r"than the image's 300x400 as stored \(EXIF shows it turned, orientation 6\)"):
        load_mask(tmp_path / "stored.png", grid(400, 300), 6)


def test_what_is_no_mask_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    for name in ("text.png", "missing.png"):
        with pytest.raises(MaskError, match=rf"^mask .*{name}") as caught:
            load_mask(tmp_path / name, grid(10, 10))
        assert "\n" not in str(caught.value)
