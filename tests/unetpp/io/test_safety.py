"""What readers must never do: leak a slide's photos or texts, write beside the image, or fail in an unnamed way."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from rasterio.env import get_gdal_config

from unetpp.errors import CorruptImageError, UnetppError
from unetpp.geometry import Box
from unetpp.io import open_raster
from unetpp.io import openslide as slides
from unetpp.io.base import fingerprint, thumbnail
from unetpp.io.gdal import GDAL_CACHE_BYTES
from unetpp.io.openslide import SlideRaster, _composite

FACTS = ("uri", "kind", "format", "levels", "bands", "dtype", "spacing", "crs", "transform")


def test_label_macro_and_texts_stay_in_the_slide(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_dir / "slides" / "CMU-1-Small-Region.svs"
    with openslide.OpenSlide(path) as slide:
        assert {"label", "macro"} <= set(slide.associated_images), "the sample must carry what may not leak"
        texts = [v for k, v in slide.properties.items() if k.startswith("aperio.") and len(v) > 8]
        assert texts

    def refuse(*_: Any) -> None:
        raise AssertionError("a reader asked for the slide's photos")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(refuse))
    with open_raster(path) as raster:
        small = thumbnail(raster, 64)
        facts = pickle.dumps([getattr(raster, name) for name in FACTS] + [fingerprint(raster), small])
    assert not [text for text in texts if text.encode() in facts]


def test_nothing_is_written_beside_an_image(make: Any) -> None:
    scene = make.geotiff(make.noise((300, 200, 3)), overviews=(2, 4), nodata=0)
    photo = make.folder / "photo.png"
    Image.fromarray(make.noise((30, 30, 3))).save(photo)
    slide = make.pyramid([make.noise((200, 200, 3)), make.noise((100, 100, 3))], "slide.tif")
    before = {file: file.read_bytes() for file in make.folder.iterdir()}
    for path in (scene, photo, slide):
        with open_raster(path) as raster:
            thumbnail(raster, 20)
            fingerprint(raster)
    assert {file: file.read_bytes() for file in make.folder.iterdir()} == before


def test_gdal_cache_is_bounded(make: Any) -> None:
    with open_raster(make.geotiff(make.noise((70, 70, 3)))) as raster:
        raster.read(Box(0, 0, 70, 70))
        assert int(get_gdal_config("GDAL_CACHEMAX")) <= GDAL_CACHE_BYTES


def test_transparent_pixels_take_the_background_and_are_invalid() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (40, 50, 4)).astype(np.uint8)
    rgba[:10, :, 3], rgba[10:20, :, 3] = 0, 255
    pixels, valid = _composite(rgba, (250, 240, 230))
    alpha = rgba[..., 3:] / 255
    exact = rgba[..., :3] * alpha + np.array([250, 240, 230]) * (1 - alpha)
    assert np.abs(pixels - exact).max() <= 0.5
    assert valid is not None and np.array_equal(valid, rgba[..., 3] > 0)
    assert np.array_equal(_composite(rgba[10:20], (0, 0, 0))[0], rgba[10:20, :, :3])
    assert _composite(rgba[10:20], (0, 0, 0))[1] is None


def test_levels_openslide_interpolates_never_depend_on_the_box(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slide whose levels have no tiles of their own to decode: any box equals the same part of any other."""
    monkeypatch.setattr(SlideRaster, "_tiff", lambda self: None)
    monkeypatch.setattr(slides, "BLOCK", 96)
    random = np.random.default_rng(4)
    with SlideRaster(data_dir / "slides" / "TCGA-CR-7395-01A-01-TS1.svs") as raster:
        large = raster.read(Box(900, 1100, 1400, 1500), 1)
        for _ in range(8):
            y, x = (int(v) for v in random.integers((900, 1100), (1300, 1400)))
            box = Box(y, x, y + int(random.integers(1, 100)), x + int(random.integers(1, 100)))
            assert np.array_equal(raster.read(box, 1).pixels, large.pixels[box.slices(large.box)])


def _files(make: Any) -> list[Path]:
    folder = make.folder
    Image.fromarray(make.noise((60, 50, 4))).save(folder / "a.png")
    Image.fromarray(make.noise((60, 50, 3))).save(folder / "a.jpg")
    tifffile.imwrite(folder / "strip.tif", make.noise((60, 50, 3)), compression="lzw", rowsperstrip=16)
    spacing = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(folder / "o.ome.tif", make.noise((3, 60, 50)), metadata=spacing)
    scene = make.geotiff(make.noise((90, 80, 3)), overviews=(2,), nodata=0)
    slide = make.pyramid([make.noise((90, 80, 3)), make.noise((45, 40, 3))], dpcm=40_000)
    return [folder / name for name in ("a.png", "a.jpg", "strip.tif", "o.ome.tif")] + [scene, slide]


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_anywhere_end_in_one_named_line(make: Any) -> None:
    """Random bytes overwritten in every kind of file, most of them in its header: a result or a named error."""
    random = np.random.default_rng(11)
    failures = 0
    for path in _files(make):
        whole = path.read_bytes()
        for _ in range(25):
            data = bytearray(whole)
            for _ in range(3):
                where = random.choice([min(400, len(data)), len(data)])
                data[int(random.integers(4, where))] = int(random.integers(0, 256))
            damaged = make.folder / f"damaged{''.join(path.suffixes)}"
            damaged.write_bytes(data)
            try:
                with open_raster(damaged) as raster:
                    for number, level in enumerate(raster.levels):
                        raster.read(level.box.clip(500, 500), number)
            except UnetppError as error:
                failures += 1
                assert "\n" not in str(error) and str(damaged) in str(error)
    assert failures > 30, "the damage must bite"


def test_a_failure_of_a_format_library_names_file_and_box(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make.folder / "strip.tif"
    tifffile.imwrite(path, make.noise((60, 50, 3)))
    with open_raster(path) as raster:
        with monkeypatch.context() as patch:
            patch.setattr(type(raster), "_read_inside", lambda *_: {}["unexpected"])
            with pytest.raises(CorruptImageError, match=r"strip\.tif: level 0 Box\(y0=3, .*unexpected"):
                raster.read(Box(3, 0, 9, 9))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            raster.read(Box(3, 0, 9, 9))
