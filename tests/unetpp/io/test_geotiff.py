"""Scenes: our pixels against rasterio's own, nodata, alpha, NaN, CRS, transform, spacing, damaged blocks, threads."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine, from_gcps
from rasterio.windows import Window as GdalWindow
from skimage.data import astronaut

from unetpp.errors import CorruptImageError, ImageFormatError
from unetpp.geometry import Box
from unetpp.io import open_raster, tiff

SCENES = [
    "geo/landsat7_bahamas_RGB.byte.tif",
    "geo/landsat7_nc_5band.tif",
    "geo/landsat7_olinda_6band_L7_ETMs.tif",
    "geo/spacenet_pan16_sample_geotiff.tif",
    "geo/spacenet_vegas_pan16_4326.tif",
    "kampala/kampala_A_z19.tif",
    "kampala/kampala_A_z20_buildings.tif",
]


def _gdal(path: Path, box: Box, level: int = 0) -> np.ndarray:
    options = {} if level == 0 else {"overview_level": level - 1}
    with rasterio.open(path, **options) as file:
        return np.moveaxis(file.read(window=GdalWindow(box.x0, box.y0, box.width, box.height)), 0, -1)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.proves("GeoTIFF, COG")
def test_every_level_equals_rasterio(data_dir: Path, boxes: Callable[..., list[Box]], name: str) -> None:
    path = data_dir / name
    with open_raster(path) as raster, rasterio.open(path) as file:
        assert (raster.kind, raster.format) == ("scene", "geotiff")
        assert len(raster.levels) == 1 + len(file.overviews(1))
        assert CRS.from_wkt(raster.crs) == file.crs
        assert raster.transform == tuple(file.transform)[:6]
        assert raster.dtype == file.dtypes[0] and len(raster.bands) == file.count
        for level in range(len(raster.levels)):
            for box in boxes(raster, level, count=3):
                window = raster.read(box, level)
                np.testing.assert_array_equal(window.pixels, _gdal(path, box, level))
                place = raster.levels[level]
                assert window.transform is not None and place.downsample >= 1
                corner = file.transform @ (box.x0 * place.downsample, box.y0 * place.downsample) if level == 0 else None
                if corner is not None:
                    assert (window.transform[2], window.transform[5]) == pytest.approx(corner)


def test_nodata_of_a_real_scene_is_gdal_s_dataset_mask(data_dir: Path) -> None:
    path = data_dir / SCENES[0]
    with open_raster(path) as raster, rasterio.open(path) as file:
        valid = raster.read(raster.levels[0].box).valid
        np.testing.assert_array_equal(valid, file.dataset_mask() > 0)
        assert 0.2 < valid.mean() < 0.95


@pytest.mark.parametrize(
    ("name", "size", "unit"), [(SCENES[3], 0.5, "m"), (SCENES[1], 28.5, "m"), (SCENES[4], None, "deg")]
)
def test_spacing_of_real_scenes(data_dir: Path, name: str, size: float | None, unit: str) -> None:
    with open_raster(data_dir / name) as raster, rasterio.open(data_dir / name) as file:
        assert raster.spacing is not None and raster.spacing.unit == unit
        assert (raster.spacing.y, raster.spacing.x) == pytest.approx(file.res)
        if size is not None:
            assert raster.spacing.x == pytest.approx(size, rel=1e-3)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_made_files_of_every_type(make: Any, boxes: Callable[..., list[Box]], dtype: str) -> None:
    pixels = make.noise((150, 170, 4), dtype)
    path = make.geotiff(pixels, photometric="minisblack", alpha="no", overviews=(2, 4))
    with open_raster(path) as raster:
        assert raster.dtype == dtype and raster.bands[1:] == ("band2", "band3", "band4")
        assert [x.box.shape for x in raster.levels] == [(150, 170), (75, 85), (38, 43)]
        for box in boxes(raster):
            window = raster.read(box)
            np.testing.assert_array_equal(window.pixels, pixels[box.slices()])
            assert window.valid.all()
        for level in (1, 2):
            box = raster.levels[level].box
            np.testing.assert_array_equal(raster.read(box, level).pixels, _gdal(path, box, level))


def test_outside_is_zero_and_invalid(make: Any) -> None:
    pixels = make.noise((40, 50, 2), "uint16")
    with open_raster(make.geotiff(pixels)) as raster:
        window = raster.read(Box(-3, -4, 45, 60))
        assert window.valid.sum() == 40 * 50 and window.valid[3:43, 4:54].all()
        np.testing.assert_array_equal(window.pixels[3:43, 4:54], pixels)
        assert not window.pixels[~window.valid].any()
        assert window.transform is not None
        assert window.transform[2::3] == pytest.approx((450_000 - 4 * 0.5, 40_000 + 3 * 0.5))


def test_nodata_alpha_mask_and_nan_are_invalid(make: Any) -> None:
    base = make.noise((64, 64, 3))
    deep = base.astype("uint16")
    deep[5, 6, 1] = 9999
    with open_raster(make.geotiff(deep, "deep.tif", nodata=9999)) as raster:
        assert np.argwhere(~raster.read(raster.levels[0].box).valid).tolist() == [[5, 6]]
    shallow = base.copy()
    shallow[1, 2], shallow[3, 4, 0] = 0, 0
    with open_raster(make.geotiff(shallow, "shallow.tif", nodata=0)) as raster:
        assert np.argwhere(~raster.read(raster.levels[0].box).valid).tolist() == [[1, 2]]
    real = base.astype("float32")
    real[7, 8, 2], real[9, 9, 0], real[0, 1, 0] = np.nan, np.inf, np.float32(-3.4e38)
    with open_raster(make.geotiff(real, "real.tif", nodata=-3.4e38)) as raster:
        assert np.argwhere(~raster.read(raster.levels[0].box).valid).tolist() == [[0, 1], [7, 8], [9, 9]]
    hidden = np.full((64, 64), 255, np.uint8)
    hidden[10:20, 30:] = 0
    with open_raster(make.geotiff(base, "mask.tif", mask=hidden)) as raster:
        np.testing.assert_array_equal(raster.read(raster.levels[0].box).valid, hidden > 0)
    rgba = np.dstack([base, hidden])
    with open_raster(make.geotiff(rgba, "rgba.tif", photometric="rgb", alpha="yes")) as raster:
        window = raster.read(raster.levels[0].box)
        assert raster.bands == ("red", "green", "blue")
        np.testing.assert_array_equal(window.valid, hidden > 0)
        np.testing.assert_array_equal(window.pixels, base)


def _masked(make: Any, *steps: str) -> tuple[Path, np.ndarray]:
    """A scene whose upper half is masked, made in these steps: mask and overviews, inside the file or beside it."""
    hidden = np.full((256, 300), 255, np.uint8)
    hidden[:128] = 0
    path: Path = make.geotiff(make.noise((256, 300, 3)))
    for step in steps:
        inside = step.endswith("inside")
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside, TIFF_USE_OVR=not inside),
            rasterio.open(path, "r+") as file,
        ):
            if step.startswith("mask"):
                file.write_mask(hidden)
            else:
                file.build_overviews([2, 4])
    return path, hidden


@pytest.mark.parametrize(
    ("steps", "count"),
    [
        (["mask inside", "overviews inside"], 3),
        (["mask beside", "overviews inside"], 3),
        (["mask beside", "overviews beside"], 3),
        (["overviews inside", "mask inside"], 1),
        (["overviews inside", "mask beside"], 1),
        (["overviews beside", "mask beside"], 1),
        (["mask inside", "overviews beside"], 1),
    ],
)
def test_overviews_without_the_mask_are_no_levels(make: Any, steps: list[str], count: int) -> None:
    path, hidden = _masked(make, *steps)
    with rasterio.open(path) as file, open_raster(path) as raster:
        assert file.overviews(1) == [2, 4]
        assert len(raster.levels) == count
        for level, place in enumerate(raster.levels):
            valid = raster.read(place.box, level).valid
            np.testing.assert_array_equal(valid, hidden[:: 2**level, :: 2**level] > 0)


def test_levels_end_where_the_mask_does(make: Any) -> None:
    path, _ = _masked(make, "mask inside", "overviews inside")
    with tifffile.TiffFile(path) as file:
        coarsest: Any = file.pages[-1]
        assert coarsest.is_mask and coarsest.shape == (64, 75)
        subfile, kind = coarsest.tags[254].valueoffset, 1
    data = bytearray(path.read_bytes())
    data[subfile : subfile + 4] = kind.to_bytes(4, "little")
    path.write_bytes(data)
    with open_raster(path) as raster:
        assert [level.box.shape for level in raster.levels] == [(256, 300), (128, 150)]


def test_a_mask_beside_a_jpeg_2000_is_of_level_0_alone(make: Any) -> None:
    scene, hidden = _masked(make, "mask beside")
    path = make.folder / "photo.jp2"
    Image.fromarray(make.noise((256, 300, 3))).save(path, num_resolutions=3)
    scene.with_name("scene.tif.msk").rename(path.with_name("photo.jp2.msk"))
    with rasterio.open(path) as file, open_raster(path) as raster:
        assert file.overviews(1)
        assert len(raster.levels) == 1
        np.testing.assert_array_equal(raster.read(raster.levels[0].box).valid, hidden > 0)


def test_rotated_grid_keeps_its_transform(make: Any) -> None:
    grid = Affine.translation(5e5, 1e6) @ Affine.rotation(30) @ Affine.scale(2.0, -3.0)
    with open_raster(make.geotiff(make.noise((20, 30, 1)), transform=grid)) as raster:
        assert raster.transform == pytest.approx(tuple(grid)[:6])
        assert raster.spacing is not None
        assert (raster.spacing.y, raster.spacing.x) == pytest.approx((3.0, 2.0))
        window = raster.read(Box(4, 6, 10, 12))
        assert window.transform is not None
        assert window.transform[2::3] == pytest.approx(grid @ (6, 4))


@pytest.mark.parametrize("grid", [Affine(math.nan, 0, 5, 0, -1, 6), Affine(2, 4, 5, 1, 2, 6)])
def test_a_grid_whose_pixels_have_no_area_is_refused(make: Any, grid: Any) -> None:
    with pytest.raises(ImageFormatError, match="gives a pixel no area"):
        open_raster(make.geotiff(make.noise((20, 30, 1)), transform=grid))


def _with_points(make: Any, place: Any, bend: float, corners: list[tuple[int, int]], beside: bool) -> Path:
    """A TIFF of 60 x 80 px with control points at (row, column), in its tags or in a file beside it."""
    points = [GroundControlPoint(row, col, *(place @ (col + bend * (row == 60), row))) for row, col in corners]
    path: Path = make.folder / "points.tif"
    profile = {"profile": "BASELINE"} if beside else {}
    with rasterio.open(path, "w", "GTiff", 80, 60, 1, dtype="uint8", gcps=points, crs="EPSG:32636", **profile) as file:
        file.write(make.noise((60, 80)), 1)
    return path


@pytest.mark.parametrize("beside", [False, True])
def test_control_points_that_an_affine_transform_fits_place_the_image(make: Any, beside: bool) -> None:
    place = Affine.translation(4.5e5, 4.2e6) @ Affine.rotation(20) @ Affine.scale(0.5, -0.5)
    path = _with_points(make, place, 0.5, [(0, 0), (0, 80), (60, 80), (30, 40), (60, 0)], beside)
    with rasterio.open(path) as file:
        assert file.transform.is_identity and file.crs is None and len(file.gcps[0]) == 5
        assert beside == (path.with_name("points.tif.aux.xml").exists() and not tiff.read_header(path).placed)
        by_gdal = from_gcps(file.gcps[0])
    with open_raster(path) as raster:
        assert raster.kind == "scene" and raster.crs is not None and "32636" in raster.crs
        assert raster.transform == pytest.approx(tuple(by_gdal)[:6], abs=1e-6)
        assert raster.spacing is not None and raster.spacing.y == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(
    ("bend", "corners", "message"),
    [
        (5.0, [(0, 0), (0, 80), (60, 80), (30, 40), (60, 0)], r"up to \d\.\d px off any affine transform\); warp it"),
        (0.0, [(0, 0), (30, 40), (60, 80)], r"\(too few or on one line\); warp it"),
    ],
)
def test_other_control_points_are_refused_and_not_overlooked(
    make: Any, bend: float, corners: list[tuple[int, int]], message: str
) -> None:
    path = _with_points(make, Affine(0.5, 0, 4.5e5, 0, -0.5, 4.2e6), bend, corners, False)
    with pytest.raises(ImageFormatError, match=message):
        open_raster(path)


@pytest.mark.parametrize("place", [Affine(0, 0, 0, 0, 0, 0), Affine(0.5, 0.2, 4.5e5, 1, 0.4, 4.2e6)])
def test_control_points_at_one_place_or_on_a_line_on_the_ground_are_refused(make: Any, place: Affine) -> None:
    path = _with_points(make, place, 0, [(0, 0), (0, 80), (60, 80), (60, 0)], False)
    with pytest.raises(ImageFormatError, match=r"\(too few or on one line\); warp it"):
        open_raster(path)


def test_without_crs_spacing_is_unknown_and_feet_become_metres(make: Any) -> None:
    with open_raster(make.geotiff(make.noise((8, 8, 1)), "bare.tif", crs=None)) as raster:
        assert raster.spacing is None and raster.crs is None and raster.kind == "image"
    with open_raster(make.geotiff(make.noise((8, 8, 1)), "feet.tif", crs="EPSG:2263")) as raster:
        assert raster.spacing is not None and raster.spacing.unit == "m"
        assert math.isclose(raster.spacing.x, 0.5 * 1200 / 3937, rel_tol=1e-6)


@pytest.mark.parametrize("second", ["image", "thumbnail", "overview"])
def test_a_scene_of_several_images_is_refused_and_with_a_small_one_beside_it_read(make: Any, second: str) -> None:
    pixels = make.noise((60, 80, 3))
    scale, tie = (33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 4e5, 4e4, 0.0), True)
    with tifffile.TiffWriter(make.folder / "pages.tif") as file:
        file.write(pixels, photometric="rgb", metadata=None, extratags=[scale, tie])
        other = 255 - pixels if second == "image" else pixels[::2, ::2]
        file.write(other, photometric="rgb", metadata=None, subfiletype=int(second == "overview"))
    if second == "image":
        with pytest.raises(ImageFormatError, match="holds 2 images, one per page"):
            open_raster(make.folder / "pages.tif")
        return
    with open_raster(make.folder / "pages.tif") as raster:
        assert len(raster.levels) == 1 + (second == "overview") and raster.transform is not None
        np.testing.assert_array_equal(raster.read(raster.levels[0].box).pixels, pixels)


def test_a_damaged_block_is_named_and_others_still_read(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.tif"
    data = bytearray((data_dir / SCENES[5]).read_bytes())
    with tifffile.TiffFile(data_dir / SCENES[5]) as file:
        offset, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    data[offset : offset + count] = bytes(255 - x for x in data[offset : offset + count])
    path.write_bytes(data)
    with open_raster(path) as raster:
        with pytest.raises(CorruptImageError, match=r"damaged\.tif: .*does not decode") as caught:
            raster.read(Box(0, 0, 20, 20))
        assert "\n" not in str(caught.value)
        box = Box(300, 300, 400, 400)
        np.testing.assert_array_equal(raster.read(box).pixels, _gdal(data_dir / SCENES[5], box))


def _photo_scene(make: Any, interleave: str) -> Path:
    """A scene of JPEG tiles of 64 px, the first of them without its second half."""
    photo = "ycbcr" if interleave == "pixel" else "rgb"
    path: Path = make.geotiff(
        astronaut()[:256, :256], "photo.tif", compress="jpeg", photometric=photo, interleave=interleave
    )
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("log", ["as it is", "silenced", "disabled"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_a_damaged_jpeg_block_is_named_however_often_it_is_read(
    make: Any, monkeypatch: pytest.MonkeyPatch, interleave: str, log: str
) -> None:
    path = _photo_scene(make, interleave)
    monkeypatch.setattr(logging.getLogger("rasterio._err"), "disabled", log == "disabled")
    monkeypatch.setattr(logging.getLogger("rasterio"), "level", logging.ERROR if log == "silenced" else logging.NOTSET)
    with open_raster(path) as raster:
        for _ in range(3):
            with pytest.raises(
                CorruptImageError, match=r"photo\.tif: level 0 .*does not decode \(Premature end"
            ) as caught:
                raster.read(Box(10, 10, 20, 70))
            assert "\n" not in str(caught.value)
            box = Box(64, 64, 256, 256)
            np.testing.assert_array_equal(raster.read(box).pixels, _gdal(path, box))


def test_damage_is_not_forgotten_where_another_block_fails(make: Any) -> None:
    path = _photo_scene(make, "pixel")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    with open_raster(path) as raster:
        for box in (Box(0, 0, 64, 128), Box(0, 0, 64, 64)):
            with pytest.raises(CorruptImageError, match="does not decode"):
                raster.read(box)


def test_threads_hear_of_their_own_damage_only(make: Any) -> None:
    path = _photo_scene(make, "pixel")
    boxes = [Box(0, 0, 64, 64), Box(64, 64, 256, 256)] * 20
    with open_raster(path) as raster, ThreadPoolExecutor(4) as pool:

        def damaged(box: Box) -> bool:
            try:
                raster.read(box)
            except CorruptImageError:
                return True
            return False

        assert list(pool.map(damaged, boxes)) == [True, False] * 20


def test_damaged_jpeg_blocks_under_a_vrt_are_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where GDAL reads with threads of its own."""
    monkeypatch.setenv("GDAL_NUM_THREADS", "4")
    path = _photo_scene(make, "pixel")
    stack = path.with_suffix(".vrt")
    band = (
        '<VRTRasterBand dataType="Byte" band="{0}"><SimpleSource><SourceFilename relativeToVRT="1">photo.tif'
        "</SourceFilename><SourceBand>{0}</SourceBand></SimpleSource></VRTRasterBand>"
    )
    bands = "".join(band.format(number) for number in (1, 2, 3))
    stack.write_text(f'<VRTDataset rasterXSize="256" rasterYSize="256">{bands}</VRTDataset>')
    with open_raster(stack) as raster:
        for _ in range(2):
            with pytest.raises(CorruptImageError, match="Premature end"):
                raster.read(Box(0, 0, 256, 256))


@pytest.mark.proves("JPEG 2000")
def test_jpeg_2000_equals_other_decoders(make: Any, boxes: Callable[..., list[Box]]) -> None:
    photo, deep = make.noise((300, 411, 3)), make.noise((300, 411), np.uint16) * 16
    Image.fromarray(photo).save(make.folder / "lossy.jp2", quality_layers=[20], irreversible=True)
    (make.folder / "deep.jp2").write_bytes(imagecodecs.jpeg2k_encode(deep, reversible=True, bitspersample=12))
    place = {"crs": "EPSG:32636", "transform": Affine(10, 0, 450_000, 0, -10, 40_000)}
    with rasterio.open(
        make.folder / "placed.jp2", "w", "JP2OpenJPEG", 411, 300, 3, dtype="uint8", QUALITY=100, REVERSIBLE="YES",
        BLOCKXSIZE=128, BLOCKYSIZE=128, **place,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(photo, -1, 0))
    with Image.open(make.folder / "lossy.jp2") as file:
        truths = {"lossy": np.asarray(file), "deep": deep[..., None], "placed": photo}
    for name, truth in truths.items():
        with open_raster(make.folder / f"{name}.jp2") as raster:
            assert raster.format == "jp2" and raster.kind == ("scene" if name == "placed" else "image")
            assert (raster.spacing is not None) == (name == "placed")
            for box in boxes(raster):
                np.testing.assert_array_equal(raster.read(box).pixels, truth[box.slices()])


def test_a_compression_that_gdal_lacks_is_no_damage(make: Any) -> None:
    with tifffile.TiffFile(make.geotiff(make.noise((70, 70, 3)))) as file:
        tags = [file.pages.first.tags[code] for code in (33550, 33922, 34735)]
        places = [(tag.code, tag.dtype, tag.count, tag.value, True) for tag in tags]
    path = make.folder / "other.tif"
    tifffile.imwrite(path, make.noise((70, 70, 3)), compression="jpegxr", photometric="rgb", extratags=places)
    with pytest.raises(ImageFormatError, match=r"other\.tif: its compression cannot be read here .*; rewrite it"):
        open_raster(path)


def test_a_truncated_file_is_named(make: Any) -> None:
    path = make.geotiff(make.noise((256, 256, 3)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptImageError, match=r"scene\.tif: ") as caught, open_raster(path) as raster:
        raster.read(Box(0, 0, 256, 256))
    assert "\n" not in str(caught.value)


def test_two_threads_at_once_read_right_pixels(make: Any, boxes: Callable[..., list[Box]]) -> None:
    pixels = make.noise((500, 500, 3), "uint16")
    with open_raster(make.geotiff(pixels)) as raster, ThreadPoolExecutor(2) as pool:
        wanted = boxes(raster, count=40)
        for box, window in zip(wanted, pool.map(raster.read, wanted), strict=True):
            np.testing.assert_array_equal(window.pixels, pixels[box.slices()])
