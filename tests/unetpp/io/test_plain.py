"""Photos and plain TIFFs: our pixels against Pillow's and tifffile's, alpha, palette, 16 bit, spacing, damage."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from unetpp.errors import CorruptImageError, ImageTooLargeError
from unetpp.geometry import Box, Spacing
from unetpp.io import open_raster


@pytest.mark.parametrize("folder", ["dsb2018/images", "dubai/images", "camvid_video/frames"])
@pytest.mark.proves("PNG, JPEG")
def test_real_photos_equal_pillow(data_dir: Path, boxes: Callable[..., list[Box]], folder: str) -> None:
    path = min(x for x in (data_dir / folder).rglob("*") if x.suffix in (".png", ".jpg", ".jpeg"))
    with Image.open(path) as photo:
        truth = np.asarray(photo.convert("RGB"))
    with open_raster(path) as raster:
        assert raster.kind == "image" and raster.spacing is None and raster.crs is None
        for box in boxes(raster):
            np.testing.assert_array_equal(raster.read(box).pixels, truth[box.slices()])


@pytest.mark.parametrize("name", ["grey.png", "grey.jpg", "grey.bmp"])
@pytest.mark.proves("BMP")
def test_grey_becomes_rgb(make: Any, name: str) -> None:
    path = make.folder / name
    Image.fromarray(make.noise((30, 40))).save(path)
    truth = np.asarray(Image.open(path))
    with open_raster(path) as raster:
        assert raster.bands == ("red", "green", "blue")
        pixels = raster.read(Box(0, 0, 30, 40)).pixels
        np.testing.assert_array_equal(pixels, np.repeat(truth.reshape(30, 40, -1)[..., :1], 3, axis=2))


def test_alpha_and_transparent_palette_are_validity(make: Any) -> None:
    rgba = make.noise((20, 30, 4))
    rgba[5:9, 3:7, 3] = 0
    Image.fromarray(rgba).save(make.folder / "rgba.png")
    with open_raster(make.folder / "rgba.png") as raster:
        window = raster.read(Box(0, 0, 20, 30))
        np.testing.assert_array_equal(window.pixels, rgba[..., :3])
        np.testing.assert_array_equal(window.valid, rgba[..., 3] > 0)
    photo = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 3, "P")
    photo.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    photo.save(make.folder / "palette.png", transparency=1)
    with open_raster(make.folder / "palette.png") as raster:
        window = raster.read(Box(0, 0, 3, 4))
        assert window.pixels[0, 0].tolist() == [10, 20, 30] and window.pixels[0, 2].tolist() == [70, 80, 90]
        np.testing.assert_array_equal(window.valid, np.arange(12).reshape(3, 4) % 3 != 1)


@pytest.mark.parametrize("name", ["o.jpg", "o.png", "o.webp", "o.tif"])
def test_the_orientation_is_told_and_pixels_are_as_stored(make: Any, name: str) -> None:
    photo, path = Image.fromarray(make.noise((16, 24, 3))), make.folder / name
    exif = photo.getexif()
    exif[274] = 6
    for given, expected in ((exif, 6), (b"Exif\0\0nonsense" if name != "o.tif" else None, 1)):
        photo.save(path, **({"exif": given} if given else {}))
        with open_raster(path) as raster:
            # Of TIFFs, and of no other format, Pillow itself turns the pixels.
            stored = tifffile.imread(path) if name == "o.tif" else np.asarray(Image.open(path).convert("RGB"))
            np.testing.assert_array_equal(raster.read(raster.levels[0].box).pixels, stored)
            assert getattr(raster, "orientation", None) == expected


def test_16_bit_png_keeps_its_samples(make: Any) -> None:
    pixels = make.noise((20, 30, 3), "uint16") * 257
    (make.folder / "deep.png").write_bytes(imagecodecs.png_encode(pixels))
    with open_raster(make.folder / "deep.png") as raster:
        assert raster.dtype == np.uint16
        window = raster.read(Box(-1, 0, 20, 31))
        np.testing.assert_array_equal(window.pixels[1:, :30], pixels)
        assert window.valid.sum() == 600 and not window.pixels[~window.valid].any()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("factor", [1, 257])
def test_a_palette_of_8_or_16_bits_has_gdal_s_colours(make: Any, factor: int) -> None:
    indexes, colors = make.noise((20, 30)), make.noise((3, 256), np.uint16, seed=1) * factor
    tifffile.imwrite(make.folder / "p.tif", indexes, photometric="palette", colormap=colors)
    with rasterio.open(make.folder / "p.tif") as file:
        table = np.array([file.colormap(1)[i][:3] for i in range(256)])
    with open_raster(make.folder / "p.tif") as raster:
        np.testing.assert_array_equal(raster.read(raster.levels[0].box).pixels, table[indexes])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.proves("other TIFF")
def test_pyramidal_tiff_equals_tifffile(make: Any, boxes: Callable[..., list[Box]], dtype: str) -> None:
    levels = [make.noise((200, 260), dtype), make.noise((100, 130), dtype, seed=1)]
    path = make.pyramid(levels)
    with open_raster(path) as raster:
        assert raster.dtype == dtype and [x.box.shape for x in raster.levels] == [(200, 260), (100, 130)]
        for level, truth in enumerate(levels):
            for box in boxes(raster, level):
                np.testing.assert_array_equal(raster.read(box, level).pixels[..., 0], truth[box.slices()])


def test_tiled_rgb_tiff_is_read_exactly(make: Any) -> None:
    levels = [make.noise((200, 260, 3)), make.noise((100, 130, 3), seed=1)]
    with open_raster(make.pyramid(levels, dpcm=40_000)) as raster:
        assert raster.spacing is not None and (raster.spacing.x, raster.spacing.unit) == (pytest.approx(0.25), "um")
        for level, truth in enumerate(levels):
            np.testing.assert_array_equal(raster.read(raster.levels[level].box, level).pixels, truth)


@pytest.mark.parametrize("grey", [True, False])
def test_print_resolution_is_unknown_spacing(make: Any, grey: bool) -> None:
    pixels = make.noise((70, 70) if grey else (70, 70, 3))
    for dpi in (72, 300):
        with open_raster(make.pyramid([pixels], dpcm=dpi / 2.54)) as raster:
            assert raster.spacing is None
    with open_raster(make.pyramid([pixels])) as raster:
        assert raster.spacing is None


@pytest.mark.proves("OME-TIFF")
def test_ome_spacing_and_nan(make: Any) -> None:
    pixels = make.noise((20, 30), "float32")
    pixels[3, 4] = np.nan
    path = make.folder / "a.ome.tif"
    tifffile.imwrite(path, pixels, metadata={"axes": "YX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.4})
    with open_raster(path) as raster:
        assert raster.spacing == Spacing(0.4, 0.3, "um")
        window = raster.read(Box(0, 0, 20, 30))
        assert np.argwhere(~window.valid).tolist() == [[3, 4]]
        np.testing.assert_array_equal(window.pixels[..., 0], pixels)


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [
        ('"0.25"', '"&#181;m"', 0.25),
        ('"0.25"', '"&#xB5;m"', 0.25),
        ("'250'", "'nm'", 0.25),
        (' = "0.25"', ' = "\u00b5m"', 0.25),
        ('"NaN"', '"\u00b5m"', None),
        ('"INF"', '"\u00b5m"', None),
        ('"unknown"', '"\u00b5m"', None),
        ('"0"', '"\u00b5m"', None),
        ('"0.25"', '"pixel"', None),
    ],
)
def test_ome_spacing_in_every_spelling_of_xml(make: Any, size: str, unit: str, expected: float | None) -> None:
    path = make.folder / "a.ome.tif"
    tifffile.imwrite(path, make.noise((20, 30)), metadata={"axes": "YX"})
    sizes = "".join(
        f" {name}{value}" if value.startswith(" =") else f" {name}={value}"
        for axis in "XY"
        for name, value in ((f"PhysicalSize{axis}", size), (f"PhysicalSize{axis}Unit", unit))
    )
    tifffile.tiffcomment(path, tifffile.tiffcomment(path).replace("<Pixels", f"<Pixels{sizes}").encode())
    with open_raster(path) as raster:
        assert raster.spacing == (None if expected is None else Spacing(expected, expected, "um"))


def test_image_bomb_is_refused_before_it_decodes(make: Any) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path = make.folder / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(ImageTooLargeError, match=r"bomb\.png: 60000x60000") as caught:
        open_raster(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_damaged_jpeg_is_refused(make: Any, mode: str, progressive: bool) -> None:
    """Pillow reads it, because the file has its end: only the second half of what comes before it is missing."""
    path = make.folder / "damaged.jpg"
    Image.fromarray(make.noise((200, 200, 3))).convert(mode).save(path, progressive=progressive)
    with open_raster(path) as raster:
        np.testing.assert_array_equal(
            raster.read(Box(0, 0, 200, 200)).pixels, np.asarray(Image.open(path).convert("RGB"))
        )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[-2:])
    Image.open(path).load()
    with (
        pytest.raises(CorruptImageError, match=r"damaged\.jpg: Box.* does not decode") as caught,
        open_raster(path) as raster,
    ):
        raster.read(Box(0, 0, 9, 9))
    assert "\n" not in str(caught.value)


def test_a_print_jpeg_of_four_inks_and_one_of_two_pictures_are_read(make: Any) -> None:
    photo = Image.fromarray(make.noise((60, 50, 3)))
    photo.convert("CMYK").save(make.folder / "print.jpg")
    photo.save(make.folder / "two.jpg", "MPO", save_all=True, append_images=[photo])
    for name in ("print.jpg", "two.jpg"):
        truth = np.asarray(Image.open(make.folder / name).convert("RGB"))
        with open_raster(make.folder / name) as raster:
            np.testing.assert_array_equal(raster.read(Box(0, 0, 60, 50)).pixels, truth)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.tif", "deep.png"])
def test_truncated_images_are_named(make: Any, name: str) -> None:
    path = make.folder / name
    if name == "deep.png":
        path.write_bytes(imagecodecs.png_encode(make.noise((90, 90, 3), "uint16")))
    elif name == "cut.tif":
        tifffile.imwrite(path, make.noise((90, 90)))
    else:
        Image.fromarray(make.noise((90, 90, 3))).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptImageError, match=name) as caught, open_raster(path) as raster:
        raster.read(Box(0, 0, 90, 90))
    assert "\n" not in str(caught.value)
