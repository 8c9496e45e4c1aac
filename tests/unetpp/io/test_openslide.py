"""Slides: our pixels against OpenSlide's and tifffile's own, spacing, edges, photos of labels, damaged tiles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile

from unetpp.errors import CorruptImageError
from unetpp.geometry import Box, Spacing
from unetpp.io import open_raster
from unetpp.io.base import thumbnail

CMU = "slides/CMU-1-Small-Region.svs"
TCGA = "slides/TCGA-CR-7395-01A-01-TS1.svs"
GIARDIA = "slides/giardia_HE_left_1.02GP.tif"


def _openslide_pixels(path: Path, box: Box, level: int) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        down = slide.level_downsamples[level]
        corner = (round(box.x0 * down), round(box.y0 * down))
        return np.asarray(slide.read_region(corner, level, (box.width, box.height)))[..., :3]


@pytest.mark.parametrize("name", [CMU, TCGA, GIARDIA])
def test_level_0_equals_openslide(data_dir: Path, boxes: Callable[..., list[Box]], name: str) -> None:
    with open_raster(data_dir / name) as raster:
        assert raster.kind == "slide"
        for box in boxes(raster):
            window = raster.read(box)
            assert window.valid.all()
            np.testing.assert_array_equal(window.pixels, _openslide_pixels(data_dir / name, box, 0))


def test_low_level_equals_the_file_s_own_tiles(data_dir: Path, boxes: Callable[..., list[Box]]) -> None:
    with open_raster(data_dir / TCGA) as raster, tifffile.TiffFile(data_dir / TCGA) as file:
        sizes = [(level.height, level.width) for level in raster.levels]
        assert len(sizes) == 2
        page = next(p for p in file.pages if (p.imagelength, p.imagewidth) == sizes[1])
        truth = page.asarray()
        for box in boxes(raster, 1):
            np.testing.assert_array_equal(raster.read(box, 1).pixels, truth[box.slices()])


@pytest.mark.parametrize("level", [1, 3, 5])
def test_levels_of_a_made_up_of_tiles_pyramid_equal_openslide(
    data_dir: Path, boxes: Callable[..., list[Box]], level: int
) -> None:
    with open_raster(data_dir / GIARDIA) as raster, openslide.OpenSlide(data_dir / GIARDIA) as slide:
        assert [(x.width, x.height) for x in raster.levels] == list(slide.level_dimensions)
        exact = float(slide.level_downsamples[level]).is_integer()
        for box in boxes(raster, level, count=3):
            ours = raster.read(box, level).pixels.astype(int)
            theirs = _openslide_pixels(data_dir / GIARDIA, box, level).astype(int)
            if exact:
                np.testing.assert_array_equal(ours, theirs)
            else:
                # OpenSlide interpolates by a fraction of a pixel here.
                assert np.abs(ours - theirs).mean() < 4


def test_spacing_comes_from_metadata_only(data_dir: Path) -> None:
    with open_raster(data_dir / CMU) as raster:
        assert raster.spacing == Spacing(0.499, 0.499, "um")
        assert raster.format == "openslide/aperio"
        assert raster.crs is None and raster.transform is None
    for name in (TCGA, GIARDIA):
        with open_raster(data_dir / name) as raster:
            assert raster.spacing is None


def test_outside_is_zero_and_invalid(data_dir: Path) -> None:
    with open_raster(data_dir / CMU) as raster:
        level = raster.levels[0]
        window = raster.read(Box(-10, -20, 30, 40))
        assert not window.valid[:10].any() and not window.valid[:, :20].any() and window.valid[10:, 20:].all()
        assert not window.pixels[~window.valid].any()
        np.testing.assert_array_equal(window.pixels[10:, 20:], raster.read(Box(0, 0, 30, 40)).pixels)
        window = raster.read(Box(level.height - 5, level.width - 7, level.height + 9, level.width + 8))
        assert window.valid.sum() == 35 and window.valid[:5, :7].all()
        far = raster.read(Box(level.height + 100, 0, level.height + 110, 10))
        assert not far.valid.any() and not far.pixels.any()


@pytest.mark.parametrize("name", [CMU, TCGA])
def test_thumbnail_is_the_tissue_not_the_label_photo(data_dir: Path, name: str) -> None:
    with open_raster(data_dir / name) as raster, openslide.OpenSlide(data_dir / name) as slide:
        assert slide.associated_images, "the sample must hold photos for this test to mean anything"
        photos = {photo.size for photo in slide.associated_images.values()}
        assert not photos & {(level.width, level.height) for level in raster.levels}
        ours = thumbnail(raster, 200).pixels.astype(float)
        height, width = ours.shape[:2]
        whole = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")
        theirs = np.asarray(whole.resize((width, height), 4), float)  # 4: box filter
        assert np.abs(ours - theirs).mean() < 4
        for photo in slide.associated_images.values():
            other = np.asarray(photo.convert("RGB").resize((width, height), 4), float)
            if photo.size[0] / photo.size[1] != pytest.approx(width / height, rel=0.05):
                assert np.abs(ours - other).mean() > 8


def _damage(source: Path, target: Path, size: tuple[int, int], tile: int) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o644)
    with tifffile.TiffFile(target) as file:
        page: Any = next(p for p in file.pages if (p.imagelength, p.imagewidth) == size)
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    with target.open("r+b") as stream:
        stream.seek(offset)
        data = stream.read(count)
        stream.seek(offset)
        stream.write(bytes(255 - x for x in data))


@pytest.mark.parametrize("level", [0, 1])
def test_a_damaged_tile_is_named_and_others_still_read(data_dir: Path, tmp_path: Path, level: int) -> None:
    with open_raster(data_dir / TCGA) as raster:
        size = raster.levels[level].box.shape
    path = tmp_path / "damaged.svs"
    _damage(data_dir / TCGA, path, size, 0)
    with open_raster(path) as raster, open_raster(data_dir / TCGA) as sound:
        with pytest.raises(CorruptImageError, match=r"damaged\.svs: .*does not decode") as caught:
            raster.read(Box(0, 0, 20, 20), level)
        assert "\n" not in str(caught.value)
        good = Box(size[0] - 40, size[1] - 40, size[0], size[1])
        np.testing.assert_array_equal(raster.read(good, level).pixels, sound.read(good, level).pixels)


def test_two_threads_at_once_read_right_pixels(data_dir: Path, boxes: Callable[..., list[Box]]) -> None:
    with open_raster(data_dir / TCGA) as raster:
        jobs = [(box, level) for level in (0, 1) for box in boxes(raster, level, count=12)]
        alone = [raster.read(*job).pixels for job in jobs]
    with open_raster(data_dir / TCGA) as raster, ThreadPoolExecutor(2) as pool:
        for ours, truth in zip(pool.map(lambda job: raster.read(*job).pixels, jobs), alone, strict=True):
            np.testing.assert_array_equal(ours, truth)


def test_closing_twice_is_harmless(data_dir: Path) -> None:
    with open_raster(data_dir / CMU) as raster:
        raster.close()
    raster.close()
