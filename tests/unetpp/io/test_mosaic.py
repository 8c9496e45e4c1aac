"""Mosaics: each Dubai scene as one image equals its nine parts, overlaps follow the rule, misfits are refused."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.merge import merge
from rasterio.transform import from_origin

from unetpp.errors import ImageFormatError, ImageNotFoundError
from unetpp.geometry import Box
from unetpp.io import open_raster
from unetpp.io.base import fingerprint

Bytes = NDArray[np.uint8]


def write_mosaic(path: Path, parts: list[dict[str, Any]], rule: str = "first") -> Path:
    lines = [
        "    { " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in part.items()) + " }," for part in parts
    ]
    path.write_text(f'rule = "{rule}"\nparts = [\n' + "\n".join(lines) + "\n]\n")
    return path


def dubai(data_dir: Path, folder: Path, scene: str) -> tuple[Path, Path]:
    """Write one scene as a single PNG, by PIL alone, and as the mosaic of its JPEG parts."""
    facts = json.loads((data_dir / "dubai/scenes.json").read_text())["scenes"][scene]
    whole = np.zeros((facts["height"], facts["width"], 3), np.uint8)
    parts = []
    for part in facts["parts"]:
        path = data_dir / "dubai/images" / f"{part['part']}.jpg"
        x, y = part["x"], part["y"]
        whole[y : y + part["h"], x : x + part["w"]] = np.asarray(Image.open(path).convert("RGB"))
        parts.append({"uri": str(path), "x": x, "y": y})
    Image.fromarray(whole).save(folder / f"{scene}.png", compress_level=1)
    return folder / f"{scene}.png", write_mosaic(folder / f"{scene}.mosaic.toml", parts)


@pytest.mark.parametrize("scene", ["t1", "t2"])
def test_nine_parts_read_as_the_scene(data_dir: Path, tmp_path: Path, scene: str) -> None:
    one, parts = dubai(data_dir, tmp_path, scene)
    with open_raster(one) as whole, open_raster(parts) as mosaic:
        size = whole.levels[0].box
        assert mosaic.levels[0].box == size and mosaic.bands == whole.bands and mosaic.format == "mosaic"
        first, second = whole.read(size), mosaic.read(size)
        assert np.array_equal(first.pixels, second.pixels) and second.valid.all()
        rng = np.random.default_rng(0)
        for y, x in rng.integers(-100, [size.y1, size.x1], (8, 2)).tolist():
            box = Box(y, x, y + 700, x + 900)
            one_window, two_window = whole.read(box), mosaic.read(box)
            assert np.array_equal(one_window.pixels, two_window.pixels)
            assert np.array_equal(one_window.valid, two_window.valid)


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["t1", "t2", "t3", "t4", "t5", "t6"])
def test_nine_parts_are_segmented_as_the_scene(data_dir: Path, tmp_path: Path, tiny_package: Path, scene: str) -> None:
    from unetpp.finalize import finalize
    from unetpp.segment import ShardWorker, pending, prepare_job

    found = []
    for name in dubai(data_dir, tmp_path, scene):
        job = prepare_job(name, tmp_path / name.suffix[1:], tiny_package, core=512, shard=1024, maps=["uncertainty"])
        worker = ShardWorker(job)
        for shard in pending(job):
            worker.run(shard)
        worker.close()
        finalize(job, formats=["geojson"])
        features = json.loads((job.out / "polygons.geojson").read_text())["features"]
        shapes = [(feature["properties"]["classification"]["name"], feature["geometry"]) for feature in features]
        whole = Box(0, 0, job.plan.height, job.plan.width)
        found.append((job.store.read(whole), job.map_stores[0].read(whole), shapes))
    (labels, uncertainty, shapes), (other_labels, other_uncertainty, other_shapes) = found
    assert len(np.unique(labels)) > 1 and len(shapes) > 10
    assert np.array_equal(labels, other_labels) and np.array_equal(uncertainty, other_uncertainty)
    assert shapes == other_shapes


def scene(path: Path, pixels: Bytes, *, x: float, y: float, size: float = 0.5, crs: int = 32633) -> Path:
    height, width, bands = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint8", "nodata": 0}
    place = rasterio.Affine(size, 0, 5e5 + x * 0.5, 0, -size, 5e6 - y * 0.5)
    with rasterio.open(path, "w", **profile, crs=f"EPSG:{crs}", transform=place) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path


@pytest.mark.parametrize("rule", ["first", "last"])
@pytest.mark.proves("mosaics (.mosaic.toml)")
def test_overlaps_follow_the_rule_and_nodata_never_wins(tmp_path: Path, rule: str) -> None:
    rng = np.random.default_rng(1)
    names = []
    for number, (y, x) in enumerate([(40, 60), (0, 0), (80, 20), (10, 90)]):
        pixels = rng.integers(1, 255, (70, 80, 3), dtype=np.uint8)
        pixels[rng.random((70, 80)) < 0.3] = 0
        names.append(scene(tmp_path / f"{number}.tif", pixels, x=x, y=y).name)
    path = write_mosaic(tmp_path / "all.mosaic.toml", [{"uri": name} for name in names], rule)
    truth, place = merge([tmp_path / name for name in names], method=rule, nodata=0)
    with open_raster(path) as mosaic:
        window = mosaic.read(mosaic.levels[0].box)
        assert np.array_equal(window.pixels, np.moveaxis(truth, 0, -1))
        assert np.array_equal(window.valid, (truth != 0).any(0)) and 0.3 < window.valid.mean() < 0.95
        assert mosaic.transform == tuple(place)[:6] and mosaic.crs is not None and "32633" in mosaic.crs
        assert mosaic.kind == "scene" and mosaic.spacing is not None and mosaic.spacing.y == 0.5


EAST, WEST, HALF_OF_EQUATOR = 179.5, -180.0, 20037508.342789244


@pytest.mark.parametrize(
    ("crs", "lefts", "size", "left", "order"),
    [
        ("EPSG:4326", (EAST, WEST), 0.01, EAST, (0, 1)),
        ("EPSG:4326", (WEST, EAST), 0.01, -180.5, (1, 0)),  # in the turn of the first
        ("EPSG:4326", (EAST, 180.0), 0.01, EAST, (0, 1)),
        ("EPSG:4326", (0.0, 90.0, -90.0, WEST), 1.8, WEST, (3, 2, 0, 1)),  # right round the globe: as it is
        ("EPSG:3857", (-HALF_OF_EQUATOR, HALF_OF_EQUATOR - 5e3), 100.0, -HALF_OF_EQUATOR - 5e3, (1, 0)),
        ("EPSG:3857", (-HALF_OF_EQUATOR, HALF_OF_EQUATOR - 5030), 100.0, 0, None),
        ("EPSG:3857", (-HALF_OF_EQUATOR, HALF_OF_EQUATOR * (1 - 50 / 2**15)), HALF_OF_EQUATOR / 2**15, None, (1, 0)),
        ("EPSG:32601", (0.0, 4e6), 10.0, 0.0, (0, None, 1)),  # nothing repeats itself
        ("EPSG:3857", (-13e6, 15e6), 1e4, -13e6, (0, None, 1)),  # narrower across 180, but off the grid there
    ],
)
def test_parts_on_either_side_of_longitude_180_lie_beside_each_other(
    tmp_path: Path, crs: str, lefts: tuple[float, ...], size: float, left: float | None, order: tuple[Any, ...] | None
) -> None:
    rng = np.random.default_rng(3)
    parts = [rng.integers(1, 255, (3, 50, 1), dtype=np.uint8) for _ in lefts]
    for number, (x, pixels) in enumerate(zip(lefts, parts, strict=True)):
        profile = {"driver": "GTiff", "height": 3, "width": 50, "count": 1, "dtype": "uint8", "crs": crs}
        with rasterio.open(
            tmp_path / f"{number}.tif", "w", **profile, transform=from_origin(x, 10, size, size)
        ) as file:
            file.write(pixels[..., 0], 1)
    path = write_mosaic(tmp_path / "m.mosaic.toml", [{"uri": f"{number}.tif"} for number in range(len(lefts))])
    if order is None:
        with pytest.raises(
            ImageFormatError, match=r"1\.tif lies -50\.\d+, 0\.000 pixels from .*0\.tif, not whole ones"
        ):
            open_raster(path)
        return
    with open_raster(path) as mosaic:
        window = mosaic.read(mosaic.levels[0].box)
        gap = window.pixels.shape[1] - 50 * len(lefts)
        between = [np.zeros((3, gap, 1), np.uint8) if number is None else parts[number] for number in order]
        np.testing.assert_array_equal(window.pixels, np.concatenate(between, axis=1))
        assert mosaic.transform is not None
        assert mosaic.transform[2] == pytest.approx(-HALF_OF_EQUATOR * (1 + 50 / 2**15) if left is None else left)


def test_the_fingerprint_follows_the_parts(tmp_path: Path) -> None:
    pixels = np.full((20, 30, 3), 9, np.uint8)
    part = scene(tmp_path / "a.tif", pixels, x=0, y=0)
    path = write_mosaic(tmp_path / "m.mosaic.toml", [{"uri": "a.tif"}])
    before = fingerprint(path)
    assert fingerprint(path) == before
    os.utime(part, ns=(1, 1))
    assert fingerprint(path) != before


def test_many_parts_are_read_by_many_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    whole = rng.integers(1, 255, (60, 800, 3), dtype=np.uint8)
    for number in range(40):
        scene(tmp_path / f"{number}.tif", whole[:, number * 20 : number * 20 + 20], x=number * 20, y=0)
    path = write_mosaic(tmp_path / "m.mosaic.toml", [{"uri": f"{number}.tif"} for number in range(40)])
    wrong: list[Box] = []
    with open_raster(path) as mosaic:

        def read(seed: int) -> None:
            for x in np.random.default_rng(seed).integers(0, 700, 30).tolist():
                box = Box(0, x, 60, x + 100)
                if not np.array_equal(mosaic.read(box).pixels, whole[box.slices()]):
                    wrong.append(box)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert sum(part.raster is not None for part in mosaic._parts) <= 16 + 4  # type: ignore[attr-defined]


def test_parts_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    pixels = np.full((20, 30, 3), 9, np.uint8)
    scene(tmp_path / "a.tif", pixels, x=0, y=0)
    scene(tmp_path / "half.tif", pixels, x=30.5, y=0)
    scene(tmp_path / "coarse.tif", pixels, x=30, y=0, size=1.0)
    scene(tmp_path / "zone.tif", pixels, x=30, y=0, crs=32634)
    scene(tmp_path / "gray.tif", pixels[..., :1], x=30, y=0)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([{"uri": "a.tif"}, {"uri": "half.tif"}], "not whole ones"),
        ([{"uri": "a.tif"}, {"uri": "coarse.tif"}], "resample one of them"),
        ([{"uri": "a.tif"}, {"uri": "zone.tif"}], "another crs"),
        ([{"uri": "a.tif"}, {"uri": "gray.tif"}], "another bands"),
        ([{"uri": "photo.png"}], "has no georeference"),
        ([{"uri": "a.tif"}, {"uri": "a.tif", "x": 1, "y": 2}], "place all or none"),
        ([{"uri": "a.tif", "x": 1}], "part 1 is not"),
        ([{"uri": "a.tif", "x": 1.5, "y": 0}], "whole pixels"),
        ([{"uri": "b.mosaic.toml"}], "itself a mosaic"),
        ([], "is no mosaic"),
    ]
    for parts, why in cases:
        with pytest.raises(ImageFormatError, match=why) as error:
            open_raster(write_mosaic(tmp_path / "m.mosaic.toml", parts))
        assert "\n" not in str(error.value)
    with pytest.raises(ImageFormatError, match="is no mosaic"):
        open_raster(write_mosaic(tmp_path / "m.mosaic.toml", [{"uri": "a.tif"}], rule="mean"))
    with pytest.raises(ImageNotFoundError, match=r"gone\.tif"):
        open_raster(write_mosaic(tmp_path / "m.mosaic.toml", [{"uri": "gone.tif"}]))
