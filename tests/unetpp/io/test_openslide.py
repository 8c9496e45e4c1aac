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
@pytest.mark.proves("Aperio SVS", "tiled RGB TIFF pyramid")
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


@pytest.fixture(scope="module")
def pyramid(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG pyramid of real tissue whose levels halve exactly and whose edge tiles are cut."""
    with openslide.OpenSlide(data_dir / CMU) as slide:
        pixels = np.asarray(slide.read_region((100, 50), 0, (1112, 904)))[..., :3]
    path = tmp_path_factory.mktemp("pyramid") / "pyramid.tif"
    with tifffile.TiffWriter(path) as file:
        for index in range(3):
            extra: dict[str, Any] = {"subfiletype": 1} if index else {}
            options = {"tile": (240, 256), "compression": "jpeg", "photometric": "rgb", "metadata": None}
            file.write(np.ascontiguousarray(pixels[:: 2**index, :: 2**index]), **options, **extra)
    return path


def _read_fast(raster: Any, box: Box, level: int) -> Any:
    """Read, and make sure that OpenSlide is not asked again."""
    real = raster._read_region
    raster._read_region = None
    try:
        return raster.read(box, level)
    finally:
        raster._read_region = real


@pytest.mark.parametrize("level", [0, 1, 2])
def test_levels_of_an_exact_pyramid_equal_openslide_without_it(
    pyramid: Path, boxes: Callable[..., list[Box]], level: int
) -> None:
    with open_raster(pyramid) as raster:
        raster.read(Box(0, 0, 9, 9), level)  # the comparison with OpenSlide
        for box in [*boxes(raster, level, count=20), raster.levels[level].box]:
            window = _read_fast(raster, box, level)
            assert window.valid.all()
            np.testing.assert_array_equal(window.pixels, _openslide_pixels(pyramid, box, level))


@pytest.mark.parametrize("name", [CMU, TCGA, GIARDIA])
def test_real_slides_are_read_without_openslide(data_dir: Path, name: str) -> None:
    with open_raster(data_dir / name) as raster:
        first = raster.read(Box(77, 33, 99, 66)).pixels
        np.testing.assert_array_equal(_read_fast(raster, Box(77, 33, 99, 66), 0).pixels, first)


def _drop(path: Path, tile: int, *, page: int = 0) -> None:
    """Say in the directory that a tile was never written."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages[page].tags
        for name in ("TileOffsets", "TileByteCounts"):
            values = list(tags[name].value)
            values[tile] = 0
            tags[name].overwrite(values)


def test_a_tile_that_was_never_written_is_openslides_affair(pyramid: Path, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(pyramid, tmp_path / "gap.tif"))
    _drop(path, 6)  # row 1, column 1 of 5 x 4 tiles
    gap, edge = Box(240, 256, 480, 512), Box(200, 200, 300, 600)
    with open_raster(path) as raster:
        window = raster.read(edge)
        assert not window.valid[gap.intersect(edge).slices(edge)].any()
        assert window.valid.sum() == edge.area - gap.intersect(edge).area
        outside = window.valid
        np.testing.assert_array_equal(window.pixels[outside], _openslide_pixels(pyramid, edge, 0)[outside])


def test_where_tiles_differ_from_openslide_its_pixels_count(
    pyramid: Path, boxes: Callable[..., list[Box]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetpp.io import jpeg

    decode = jpeg.decode
    monkeypatch.setattr(jpeg, "decode", lambda *arguments: decode(*arguments) ^ 1)
    with open_raster(pyramid) as raster:
        for box in boxes(raster, 0):
            np.testing.assert_array_equal(raster.read(box).pixels, _openslide_pixels(pyramid, box, 0))


@pytest.mark.parametrize("damage", ["noise", "a tail of zeros", "no end"])
def test_a_jpeg_that_other_decoders_would_guess_is_refused(data_dir: Path, tmp_path: Path, damage: str) -> None:
    path = Path(shutil.copyfile(data_dir / CMU, tmp_path / "damaged.svs"))
    path.chmod(0o644)
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        offset, count = page.dataoffsets[23], page.databytecounts[23]
        columns = -(-page.imagewidth // page.tilewidth)
    with path.open("r+b") as stream:
        start = {"noise": count // 2, "a tail of zeros": count - 300, "no end": count - 2}[damage]
        length = {"noise": 64, "a tail of zeros": 300, "no end": 2}[damage]
        stream.seek(offset + start)
        stream.write(np.random.default_rng(3).bytes(length) if damage == "noise" else bytes(length))
    row, column = divmod(23, columns)
    box = Box(row * 240, column * 240, row * 240 + 240, column * 240 + 240)
    with tifffile.TiffFile(path) as file:
        file.pages[0].asarray()  # reads it all and says nothing
    with open_raster(path) as raster:
        raster.read(Box(0, 0, 240, 240))
        with pytest.raises(CorruptImageError, match="tile 23 of level 0"):
            raster.read(box)
