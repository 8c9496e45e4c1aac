"""Masks as class indices: values, palettes, colours, instances, other sizes, other CRSs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from rasterio.transform import from_origin
from rasterio.warp import Resampling, reproject

from unetpp.errors import DataError
from unetpp.geometry import Box, Spacing
from unetpp.io import open_raster
from unetpp.io.resample import plan_grid
from unetpp_workflows.prepare.dataset import Dataset
from unetpp_workflows.prepare.labels import majority
from unetpp_workflows.prepare.legend import Legend
from unetpp_workflows.prepare.masks import MaskReader


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def read(image: Path, mask: Path, dataset: Dataset, box: Box | None = None, spacing: Spacing | None = None):  # type: ignore[no-untyped-def]
    """Return indices, objects and the texts of faults."""
    with open_raster(image) as raster:
        grid = plan_grid(raster, model_spacing=spacing, override=Spacing(1, 1, "um") if spacing else None)
        reader = MaskReader(str(mask), Legend.of(dataset), raster, grid)
        found = reader.read(box or Box(0, 0, grid.height, grid.width))
        faults = [str(fault) for fault in reader.faults()]
        reader.close()
    return (*found, faults)


def test_values_and_what_the_legend_does_not_list(image: Path, described: Callable[..., Dataset]) -> None:
    raw = np.random.default_rng(0).choice([0, 1, 2, 7, 200, 255], (40, 50)).astype(np.uint8)
    Image.fromarray(raw).save(image.with_name("m.png"))
    labels, objects, faults = read(image, image.with_name("m.png"), described(table="t", no_data=[7]))
    expected = np.where(raw <= 2, raw, 255)
    assert (labels == expected).all() and objects is None
    assert len(faults) == 1 and f"200 ({(raw == 200).sum()} px)" in faults[0]


def test_palette_indices_are_values(image: Path, described: Callable[..., Dataset]) -> None:
    raw = np.random.default_rng(1).integers(0, 3, (40, 50)).astype(np.uint8)
    photo = Image.fromarray(raw, mode="P")
    photo.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    photo.save(image.with_name("m.png"))
    assert (read(image, image.with_name("m.png"), described(table="t"))[0] == raw).all()


def test_colours_mean_classes(image: Path, described: Callable[..., Dataset]) -> None:
    raw = np.random.default_rng(2).integers(0, 4, (40, 50))
    colors = np.array([[10, 20, 30], [0, 200, 0], [200, 0, 0], [1, 1, 1]], np.uint8)
    Image.fromarray(colors[raw]).save(image.with_name("m.png"))
    labels, _, faults = read(image, image.with_name("m.png"), described(table="t"))
    assert (labels == np.where(raw < 3, raw, 255)).all()
    assert "colour 1, 1, 1" in faults[0]


def test_listed_marks_and_label_map_rename_values(image: Path, described: Callable[..., Dataset]) -> None:
    raw = np.random.default_rng(3).choice([10, 20, 21, 30], (40, 50)).astype(np.uint16)
    Image.fromarray(raw).save(image.with_name("m.png"))
    classes = [{"name": name, "color": [i, i, i], "labels": marks} for i, (name, marks) in enumerate(
        [("a", [10]), ("b", [20, 21]), ("c", [30])])]  # fmt: skip
    expected = np.select([raw == 10, raw == 30], [0, 2], 1)
    assert (read(image, image.with_name("m.png"), described(classes, table="t"))[0] == expected).all()
    mapped = described(table="t", label_map={10: 0, 20: 1, 21: 1, 30: 2})
    assert (read(image, image.with_name("m.png"), mapped)[0] == expected).all()


def test_instances_are_one_class_and_keep_their_numbers(image: Path, described: Callable[..., Dataset]) -> None:
    raw = np.random.default_rng(4).choice([0, 1, 300, 65535], (40, 50)).astype(np.uint16)
    Image.fromarray(raw).save(image.with_name("m.png"))
    two = [{"name": "no", "color": [0, 0, 0], "background": True}, {"name": "cell", "color": [1, 1, 1]}]
    labels, objects, _ = read(image, image.with_name("m.png"), described(two, table="t", instances=True))
    assert (labels == (raw > 0)).all() and (objects == raw).all()
    with pytest.raises(DataError, match="one class"):
        read(image, image.with_name("m.png"), described(table="t", instances=True))


TWO = [{"name": "no", "color": [0, 0, 0], "background": True}, {"name": "cell", "color": [9, 9, 9]}]


def tiff(path: Path, raw: Any, nodata: float | None) -> Path:
    """Write values (h, w) or (h, w, bands) as a TIFF with a nodata tag, or without one."""
    planes = np.moveaxis(np.atleast_3d(raw), -1, 0)
    count, height, width = planes.shape
    shape = {"count": count, "height": height, "width": width, "dtype": raw.dtype, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", **shape) as file:
        file.write(planes)
    return path


@pytest.mark.parametrize(
    ("dtype", "marked", "nodata", "no_data"),
    [
        ("uint16", 65535, None, [65535]),
        ("uint16", 65535, 65535, []),
        ("uint32", 2**32 - 1, 2**32 - 1, []),
        ("float32", -9999, -9999, []),
        ("float32", np.nan, None, []),
        ("float32", np.finfo(np.float32).min, np.finfo(np.float32).min, []),
    ],
)
def test_what_does_not_count_is_no_object(
    dtype: str, marked: float, nodata: float | None, no_data: list[int], image: Path, described: Callable[..., Dataset]
) -> None:
    numbers = np.random.default_rng(8).integers(0, 4, (40, 50))
    off = np.random.default_rng(9).random((40, 50)) < 0.4
    mask = tiff(image.with_name("m.tif"), np.where(off, np.array(marked, dtype), numbers.astype(dtype)), nodata)
    settings = described(TWO, table="t", instances=True, no_data=no_data)
    labels, objects, faults = read(image, mask, settings)
    assert (labels == np.where(off, 255, numbers > 0)).all() and (objects == np.where(off, 0, numbers)).all()
    assert not faults


def test_what_does_not_count_is_no_class(image: Path, described: Callable[..., Dataset]) -> None:
    raw = np.random.default_rng(10).choice([0, 1, 7, 255], (40, 50)).astype(np.float32)
    raw[:9] = np.nan
    classes = [{**TWO[0], "labels": [0]}, {**TWO[1], "labels": [255]}]
    labels, _, faults = read(image, tiff(image.with_name("m.tif"), raw, 1), described(classes, table="t", no_data=[7]))
    expected = np.select([raw == 0, raw == 255], [0, 1], 255)
    assert (labels == expected).all() and (labels[:9] == 255).all() and not faults


def test_foreground_that_is_written_as_255_is_asked_for(image: Path, described: Callable[..., Dataset]) -> None:
    """Among masks of 0 and 1, one of 0 and 255 would lose all its foreground without a word."""
    raw = np.zeros((40, 50), np.uint8)
    raw[5:9, 5:15] = 255
    labels, _, faults = read(image, tiff(image.with_name("m.tif"), raw, None), described(TWO, table="t"))
    assert (labels == raw).all() and len(faults) == 1 and "set labels = [255] in its class" in faults[0]
    assert "40 px" in faults[0]
    with_border = raw.copy()
    with_border[20:24, 20:24] = 1
    for mask, more in ((with_border, {}), (raw, {"no_data": [255]}), (np.zeros_like(raw), {})):
        assert not read(image, tiff(image.with_name("m.tif"), mask, None), described(TWO, table="t", **more))[2]


def test_nodata_of_a_file_that_a_class_lists_counts_and_is_told(image: Path, described: Callable[..., Dataset]) -> None:
    raw = np.random.default_rng(11).choice([0, 255], (40, 50)).astype(np.uint8)
    mask = tiff(image.with_name("m.tif"), raw, 255)
    listed = described([TWO[0], {**TWO[1], "labels": [255]}], table="t")
    for dataset in (listed, described(TWO, table="t", label_map={0: 0, 255: 1})):
        labels, _, faults = read(image, mask, dataset)
        assert (labels == raw // 255).all()
        assert len(faults) == 1 and "nodata value 255 of labels is a class's and counts" in faults[0]


@pytest.mark.parametrize("colored", [False, True])
def test_nodata_of_a_file_that_a_class_has_by_default_counts_and_is_told(
    colored: bool, image: Path, described: Callable[..., Dataset]
) -> None:
    chosen = np.random.default_rng(12).integers(0, 2, (40, 50))
    raw = np.stack([chosen * 9] * 3, -1) if colored else chosen
    mask = tiff(image.with_name("m.tif"), raw.astype(np.uint8), 0)
    labels, _, faults = read(image, mask, described(TWO, table="t"))
    assert (labels == chosen).all()
    assert len(faults) == 1 and "is a class's and counts as it; else set no_data = [0]" in faults[0]
    assert f"{(chosen == 0).sum():,} px" in faults[0]
    mark: Any = [0, 0, 0] if colored else 0
    labels, _, faults = read(image, mask, described(TWO, table="t", no_data=[mark]))
    assert (labels == np.where(chosen, 1, 255)).all() and not faults


def test_nodata_does_not_count_in_another_crs_either(tmp_path: Path, described: Callable[..., Dataset]) -> None:
    place = {"crs": "EPSG:32636", "height": 40, "width": 50, "count": 1, "driver": "GTiff", "dtype": "uint16"}
    raw = np.random.default_rng(13).choice([0, 1, 2, 65535], (40, 50)).astype(np.uint16)
    for name, x in (("i.tif", 500000), ("m.tif", 500010)):
        at = from_origin(x, 39200, 1.0, 1.0)
        with rasterio.open(
            tmp_path / name, "w", transform=at, nodata=65535 if name == "m.tif" else None, **place
        ) as file:
            file.write(raw, 1)
    labels, objects, _ = read(tmp_path / "i.tif", tmp_path / "m.tif", described(TWO, table="t", instances=True))
    raw, off = raw[:, :40], raw[:, :40] == 65535
    assert (labels[:, :10] == 255).all() and (labels[:, 10:] == np.where(off, 255, raw > 0)).all()
    assert not objects[:, :10].any() and (objects[:, 10:] == np.where(off, 0, raw)).all()


def test_a_value_means_one_thing(image: Path, described: Callable[..., Dataset]) -> None:
    with pytest.raises(DataError, match="mark 0 in labels means two things"):
        Legend.of(described(TWO, table="t", no_data=[0], label_map={0: 0, 1: 1}))


def test_labels_of_a_photo_that_viewers_turn_are_told(image: Path, described: Callable[..., Dataset]) -> None:
    photo = Image.open(image)
    exif = photo.getexif()
    exif[274] = 3
    photo.save(image, exif=exif)
    Image.fromarray(np.ones((40, 50), np.uint8)).save(image.with_name("m.png"))
    faults = read(image, image.with_name("m.png"), described(table="t"))[2]
    assert len(faults) == 1 and "viewers show the image turned: orientation 3" in faults[0]


def test_another_size_is_an_error(image: Path, described: Callable[..., Dataset]) -> None:
    Image.fromarray(np.zeros((40, 49), np.uint8)).save(image.with_name("m.png"))
    with pytest.raises(DataError, match="49 x 40 px, the image 50 x 40"):
        read(image, image.with_name("m.png"), described(table="t"))


def test_labels_of_several_pages_are_refused(image: Path, described: Callable[..., Dataset]) -> None:
    mask, page = image.with_name("m.tif"), np.ones((40, 50), np.uint8)
    with tifffile.TiffWriter(mask) as file:
        file.write(page)
        file.write(page[::2, ::2])  # a level of a pyramid that does not say so
    assert (read(image, mask, described(table="t"))[0] == 1).all()
    tifffile.imwrite(mask, np.stack([page, 2 * page]), photometric="minisblack")
    with pytest.raises(DataError, match="several pages"):
        read(image, mask, described(table="t"))


def test_jpeg_masks_are_refused(image: Path, described: Callable[..., Dataset]) -> None:
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(image.with_name("m.jpg"))
    with pytest.raises(DataError, match="JPEG"):
        read(image, image.with_name("m.jpg"), described(table="t"))


def test_a_coarser_grid_takes_the_value_at_each_centre(image: Path, described: Callable[..., Dataset]) -> None:
    raw = np.random.default_rng(5).integers(0, 3, (40, 50)).astype(np.uint8)
    Image.fromarray(raw).save(image.with_name("m.png"))
    labels, _, _ = read(image, image.with_name("m.png"), described(table="t"), spacing=Spacing(2.5, 2.5, "um"))
    rows, cols = np.floor((np.arange(16) + 0.5) * 2.5).astype(int), np.floor((np.arange(20) + 0.5) * 2.5).astype(int)
    assert (labels == raw[np.ix_(rows, cols)]).all()


def test_labels_of_a_pyramids_level_lie_where_its_pixels_do(tmp_path: Path, described: Callable[..., Dataset]) -> None:
    with rasterio.open(tmp_path / "i.tif", "w", driver="GTiff", height=1001, width=1003, count=1, dtype="uint8",
                       crs="EPSG:32636", transform=from_origin(0, 0, 1, 1)) as file:  # fmt: skip
        file.write(np.zeros((1001, 1003), np.uint8), 1)
        file.build_overviews([16])
    raw = np.random.default_rng(8).integers(0, 3, (63, 63)).astype(np.uint8)
    Image.fromarray(raw).save(tmp_path / "m.png")
    labels, _, _ = read(tmp_path / "i.tif", tmp_path / "m.png", described(table="t"))
    # The last pixel of the level stands for 9 or 11 pixels, all others for 16.
    assert (labels == np.kron(raw, np.ones((16, 16), np.uint8))[:1001, :1003]).all()


def test_our_own_ome_zarr_labels_are_labels(image: Path, described: Callable[..., Dataset], tmp_path: Path) -> None:
    import zarr

    raw = np.random.default_rng(6).integers(0, 3, (40, 50)).astype(np.uint8)
    root = zarr.open_group(tmp_path / "l.zarr", mode="w")
    root.attrs.put({"ome": {"version": "0.5", "labels": ["classes"]}})
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scale = {"coordinateTransformations": [{"type": "scale", "scale": [1, 1]}], "path": "0"}
    level = root.create_group("classes")
    level.attrs.put({"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [scale]}]}})
    level.create_array("0", data=raw)
    assert (read(image, tmp_path / "l.zarr", described(table="t"))[0] == raw).all()


@pytest.mark.parametrize("instances", [False, True])
def test_a_boolean_zarr_array_holds_the_classes_0_and_1(
    instances: bool, image: Path, described: Callable[..., Dataset]
) -> None:
    import zarr

    marked = np.random.default_rng(14).random((40, 50)) < 0.4
    zarr.create_array(image.with_name("m.zarr"), data=marked)
    labels, _, faults = read(image, image.with_name("m.zarr"), described(TWO, table="t", instances=instances))
    assert (labels == np.where(marked, 1, 0)).all() and not faults
    renamed = described([{**TWO[0], "labels": [1]}, {**TWO[1], "labels": [0]}], table="t")
    assert (read(image, image.with_name("m.zarr"), renamed)[0] == np.where(marked, 0, 1)).all()


def test_labels_in_another_crs_are_reprojected_as_gdal_does(tmp_path: Path, described: Callable[..., Dataset]) -> None:
    blocks = np.random.default_rng(7).integers(0, 3, (20, 20)).astype(np.uint8)
    raw = np.kron(blocks, np.ones((10, 10), np.uint8))
    place = {"crs": "EPSG:32636", "transform": from_origin(323000, 39200, 1.0, 1.0)}
    with rasterio.open(
        tmp_path / "m.tif", "w", driver="GTiff", height=200, width=200, count=1, dtype="uint8", **place
    ) as m:
        m.write(raw, 1)
    from rasterio.warp import transform as move

    (x,), (y,) = move("EPSG:32636", "EPSG:3857", [323020.0], [39180.0])
    target = {"crs": "EPSG:3857", "transform": from_origin(x, y, 1.3, 1.3)}
    with rasterio.open(
        tmp_path / "i.tif", "w", driver="GTiff", height=140, width=150, count=1, dtype="uint8", **target
    ) as i:
        i.write(np.zeros((140, 150), np.uint8), 1)
    labels, _, faults = read(tmp_path / "i.tif", tmp_path / "m.tif", described(table="t"))
    expected = np.full((140, 150), 255, np.uint8)
    reproject(raw, expected, src_transform=place["transform"], src_crs=place["crs"], dst_transform=target["transform"],
              dst_crs=target["crs"], resampling=Resampling.nearest, dst_nodata=255)  # fmt: skip
    # GDAL approximates the transform along scanlines, so pixels on an edge may fall to the other side.
    assert (labels != expected).mean() < 0.002
    assert (labels == 255).any() and (labels != 255).mean() > 0.5
    assert "EPSG:32636, the image in EPSG:3857: reprojected" in faults[0]


def test_labels_a_turn_of_the_globe_away_lie_on_their_image(tmp_path: Path, described: Callable[..., Dataset]) -> None:
    raw = np.random.default_rng(3).integers(0, 3, (30, 40)).astype(np.uint8)
    facts: dict[str, Any] = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
    for name, values, west in (("m.tif", raw, -180.0), ("i.tif", np.zeros((30, 60), np.uint8), 179.8)):
        height, width = values.shape
        place = from_origin(west, -16.0, 0.01, 0.01)
        with rasterio.open(tmp_path / name, "w", height=height, width=width, transform=place, **facts) as file:
            file.write(values, 1)
    labels, _, _ = read(tmp_path / "i.tif", tmp_path / "m.tif", described(table="t"))
    assert (labels[:, :20] == 255).all() and np.array_equal(labels[:, 20:], raw)


def test_landsat_classes_lie_on_their_image(data_dir: Path, described: Callable[..., Dataset]) -> None:
    names = ["developed", "agriculture", "herbaceous", "shrubland", "forest", "water", "sediment"]
    classes = [{"name": name, "color": [i, i, i], "value": i + 1} for i, name in enumerate(names)]
    image, mask = data_dir / "geo/landsat7_nc_5band.tif", data_dir / "geo/landsat7_nc_landclass.tif"
    labels, _, faults = read(image, mask, described(classes, table="t"))
    assert any("EPSG:3358, the image in EPSG:32119" in fault for fault in faults)
    with rasterio.open(image) as bands:
        infrared = bands.read(4).astype(float)
    # Water is black in the near infrared wherever labels and image agree.
    assert np.median(infrared[labels == 5]) < 0.6 * np.median(infrared[labels == 4])


def test_majority_wins_and_a_tie_does_not_count() -> None:
    votes = [np.array([[0, 1, 2, 255, 0]], np.uint8), np.array([[0, 1, 0, 255, 255]], np.uint8),
             np.array([[1, 2, 1, 255, 255]], np.uint8)]  # fmt: skip
    assert majority(votes, 3).tolist() == [[0, 1, 255, 255, 0]]


@pytest.mark.parametrize("count", [3, 30])
def test_many_unknown_values_look_like_numbers_of_objects(
    count: int, image: Path, described: Callable[..., Dataset]
) -> None:
    raw = (np.arange(40 * 50).reshape(40, 50) % (count + 2)).astype(np.uint8)
    _, _, faults = read(image, tiff(image.with_name("m.tif"), raw, None), described(TWO, table="t"))
    assert len(faults) == 1 and ("set instances = true" in faults[0]) == (count == 30)
