"""Drawn slides and scenes: other libraries open them, the seed decides every byte, the truth fits the picture."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
from scipy import ndimage

from unetpp.drawing import SCENE_CLASSES, DrawnScene, DrawnSlide, draw_scene, draw_slide
from unetpp.drawing.noise import enlarged, smooth_noise
from unetpp.errors import ShapeError


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> DrawnSlide:
    folder = tmp_path_factory.mktemp("slide")
    return draw_slide(folder / "slide.tif", folder / "truth.tif", side=1536, seed=7)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> DrawnScene:
    folder = tmp_path_factory.mktemp("scene")
    return draw_scene(folder / "scene.tif", folder / "truth.tif", side=768, seed=7)


def test_openslide_opens_the_slide_with_its_spacing_and_pyramid(slide: DrawnSlide) -> None:
    with openslide.OpenSlide(slide.path) as opened, tifffile.TiffFile(slide.path) as file:
        assert opened.properties["openslide.vendor"] == "generic-tiff"
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert opened.level_dimensions == ((1536, 1536), (768, 768), (384, 384))
        assert not opened.associated_images
        assert "SYNTHETIC" in opened.properties["tiff.ImageDescription"]
        for level, page in enumerate(file.pages):
            whole = page.asarray()
            size = opened.level_dimensions[level]
            read = np.asarray(opened.read_region((0, 0), level, size))[..., :3]
            assert np.array_equal(read, whole)


def test_levels_show_the_same_picture(slide: DrawnSlide) -> None:
    with tifffile.TiffFile(slide.path) as file:
        fine, coarse = (file.pages[i].asarray().astype(float) for i in (0, 2))
    blocks = fine.reshape(384, 4, 384, 4, 3).mean((1, 3))
    assert np.abs(blocks - coarse).mean() < 5
    assert np.abs(blocks - np.roll(coarse, 2, 0)).mean() > 10


def test_truth_marks_the_dark_nuclei_and_counts_them(slide: DrawnSlide) -> None:
    pixels = tifffile.imread(slide.path, key=0).astype(float)
    labels = tifffile.imread(slide.truth)
    assert labels.shape == pixels.shape[:2]
    assert np.unique(labels).tolist() == [0, 1]
    red = pixels[..., 0]
    assert red[labels == 1].mean() < 140
    assert red[labels == 0].mean() > 200
    assert (red[labels == 1] < 185).mean() > 0.95
    found = ndimage.label(labels)[1]
    assert found <= slide.nuclei <= 2 * found  # some nuclei touch
    assert slide.nuclei > 300
    glass = (pixels > 230).all(-1)
    assert 0.2 < glass.mean() < 0.8
    assert not labels[ndimage.binary_erosion(glass, iterations=6)].any()


def test_nuclei_cross_tile_borders_unbroken(slide: DrawnSlide) -> None:
    """A tile that did not know its neighbours' nuclei would leave straight cuts on the tile borders."""
    labels = tifffile.imread(slide.truth).astype(int)
    changes = np.abs(np.diff(labels, axis=0)).mean(1)
    borders = changes[[511, 1023]].mean()
    assert labels[511:513].all(0).sum() > 20
    assert borders < 1.5 * changes[400:1100].mean()


def test_the_seed_decides_every_byte(slide: DrawnSlide, tmp_path: Path) -> None:
    again = draw_slide(tmp_path / "b.tif", tmp_path / "b_truth.tif", side=1536, seed=7)
    assert (sha256(again.path), sha256(again.truth)) == (sha256(slide.path), sha256(slide.truth))
    other = draw_slide(tmp_path / "c.tif", tmp_path / "c_truth.tif", side=1024, seed=8)
    assert not np.array_equal(tifffile.imread(other.truth), tifffile.imread(slide.truth)[:1024, :1024])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tif", "b_truth.tif", "c.tif", "c_truth.tif"]


@pytest.mark.parametrize("side", [512, 1000, 1537])
def test_sizes_that_do_not_tile_are_refused(side: int, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=str(side)):
        draw_slide(tmp_path / "s.tif", tmp_path / "t.tif", side=side)
    assert not list(tmp_path.iterdir())


def test_the_scene_is_georeferenced_with_nodata_around_it(scene: DrawnScene) -> None:
    with rasterio.open(scene.path) as image, rasterio.open(scene.truth) as truth:
        assert image.crs.to_epsg() == truth.crs.to_epsg() == 32636
        assert image.transform == truth.transform
        assert image.res == (0.5, 0.5)
        assert (image.nodata, truth.nodata) == (0, 255)
        assert "SYNTHETIC" in image.tags()["TIFFTAG_IMAGEDESCRIPTION"]
        pixels, labels, valid = image.read(), truth.read(1), image.dataset_mask() > 0
    assert np.array_equal(valid, labels != 255)
    assert (pixels[:, ~valid] == 0).all()
    assert (pixels[:, valid] > 0).all()
    assert 0.6 < valid.mean() < 0.85
    assert not valid[0, 0]
    assert not valid[-1, -1]


def test_every_class_of_the_scene_looks_like_itself(scene: DrawnScene) -> None:
    with rasterio.open(scene.path) as image, rasterio.open(scene.truth) as truth:
        light, labels = image.read().mean(0), truth.read(1)
    share = {name: (labels == value).mean() for name, value in SCENE_CLASSES.items()}
    assert all(share[name] > 0.005 for name in ("building", "land", "road", "vegetation", "water")), share
    mean = {name: light[labels == value].mean() for name, value in SCENE_CLASSES.items() if share[name]}
    assert mean["water"] < mean["vegetation"] < mean["road"] < mean["land"]
    assert light[labels == SCENE_CLASSES["building"]].std() > 35


def test_the_scene_in_web_mercator_is_the_same_picture(scene: DrawnScene, tmp_path: Path) -> None:
    other = draw_scene(tmp_path / "s.tif", tmp_path / "t.tif", side=768, seed=7, crs="EPSG:3857")
    same = draw_scene(tmp_path / "u.tif", tmp_path / "v.tif", side=768, seed=7)
    assert (sha256(same.path), sha256(same.truth)) == (sha256(scene.path), sha256(scene.truth))
    with rasterio.open(other.path) as mercator, rasterio.open(scene.path) as utm:
        assert mercator.crs.to_epsg() == 3857
        assert np.array_equal(mercator.read(), utm.read())


def test_enlarged_windows_agree_with_the_whole() -> None:
    field = smooth_noise(np.random.default_rng(0), (20, 30), 2.0)
    whole = enlarged(field, 0, 0, (320, 480), 16)
    assert np.allclose(enlarged(field, 100, 200, (64, 96), 16), whole[100:164, 200:296], atol=1e-6)
    assert np.allclose(whole.reshape(20, 16, 30, 16).mean((1, 3))[1:-1, 1:-1], field[1:-1, 1:-1], atol=0.35)
    assert field.mean() == pytest.approx(0, abs=1e-5)
    assert field.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_a_wide_slide_holds_100_000_nuclei_in_flat_memory(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from unetpp.drawing import draw_slide
folder = Path(sys.argv[1])
drawn = draw_slide(folder / "s.tif", folder / "t.tif", side=int(sys.argv[2]), seed=7)
print(drawn.nuclei, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    told = {}
    for side in (4096, 16384):
        out = subprocess.run([sys.executable, "-c", code, tmp_path, str(side)], capture_output=True, check=True)
        told[side] = [int(value) for value in out.stdout.split()]
    assert told[16384][0] >= 100_000
    assert told[16384][1] - told[4096][1] < 250  # the coarse maps and a row of tiles grow, the image is not held
