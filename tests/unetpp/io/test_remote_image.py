"""Remote images of every kind: the pixels, levels and masks of the local file, whatever the network does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from tests.object_store import BUCKET, ObjectStore
from unetpp.errors import CorruptImageError, ImageFormatError, ImageNotFoundError, RemoteError
from unetpp.geometry import Box
from unetpp.io import Raster, open_raster, remote
from unetpp.io.base import fingerprint
from unetpp.io.remote import list_versions

FAULTS = ("error", "cut", "short", "reset")


def _same(one: Raster, other: Raster, boxes: Callable[..., list[Box]]) -> None:
    for name in ("kind", "format", "levels", "bands", "dtype", "spacing", "crs", "transform"):
        assert getattr(one, name) == getattr(other, name), name
    for level in range(len(one.levels)):
        for box in (*boxes(one, level), one.levels[level].box):
            first, second = one.read(box, level), other.read(box, level)
            np.testing.assert_array_equal(first.pixels, second.pixels)
            np.testing.assert_array_equal(first.valid, second.valid)


def _scene(make: Any) -> Path:
    mask = np.full((300, 333), 255, np.uint8)
    mask[40:90, 100:] = 0
    path: Path = make.geotiff(make.noise((300, 333, 3)), mask=mask, overviews=(2, 4))
    return path


def _scene_with_sidecars(make: Any) -> Path:
    """A GeoTIFF with its mask, its overviews and its nodata value in files of their own."""
    import rasterio

    path = make.geotiff(make.noise((300, 333, 3), np.uint16), "plain.tif")
    mask = np.full((300, 333), 255, np.uint8)
    mask[40:90, 100:] = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True, GDAL_PAM_ENABLED=True),
        rasterio.open(path, "r+") as file,
    ):
        file.write_mask(mask)
        file.build_overviews([2])
    bands = "".join(f'<PAMRasterBand band="{i}"><NoDataValue>7</NoDataValue></PAMRasterBand>' for i in (1, 2, 3))
    path.with_name("plain.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    assert all(path.with_name("plain.tif" + ending).exists() for ending in (".msk", ".ovr"))
    return Path(path)


def _masked_image(make: Any) -> Path:
    """A TIFF without a place, with its mask in a file of its own."""
    import rasterio

    path: Path = make.folder / "masked.tif"
    mask = np.full((300, 333), 255, np.uint8)
    mask[40:90, 100:] = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(path, "w", "GTiff", 333, 300, 3, dtype="uint8") as file,
    ):
        file.write(np.moveaxis(make.noise((300, 333, 3)), -1, 0))
        file.write_mask(mask)
    assert path.with_name("masked.tif.msk").exists()
    return path


def _scene_placed_beside(make: Any) -> Path:
    return Path(make.geotiff(make.noise((300, 333, 3)), "baseline.tif", profile="BASELINE"))


def _deep(make: Any) -> Path:
    levels = [make.noise((n, n + 9), np.uint16) for n in (300, 150)]
    return Path(make.pyramid(levels, "deep.tif"))


def _ome_zarr(make: Any) -> Path:
    path: Path = make.folder / "image.zarr"
    group = zarr.open_group(path, mode="w")
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    axes.insert(0, {"name": "c", "type": "channel"})
    datasets = []
    for i, side in enumerate((300, 150)):
        data = np.moveaxis(make.noise((side, side, 3)), -1, 0)
        shards = (3, 128, 128) if i == 0 else None
        group.create_array(str(i), data=data, chunks=(3, 64, 64), shards=shards)
        scale = [1, 0.5 * 2**i, 0.5 * 2**i]
        datasets.append({"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return path


def _photo(make: Any) -> Path:
    path: Path = make.folder / "photo.png"
    Image.fromarray(make.noise((100, 120, 3))).save(path)
    return path


def _slide(make: Any) -> Path:
    return Path(make.pyramid([make.noise((n, n, 3)) for n in (512, 256)], "slide.tif", dpcm=40_000))


MAKERS = [_scene, _scene_with_sidecars, _scene_placed_beside, _masked_image, _deep, _ome_zarr, _photo, _slide]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__.strip("_"))
@pytest.mark.proves("at s3://", "at http://, https://")
def test_remote_equals_local_under_faults(
    make: Any, boxes: Callable[..., list[Box]], object_store: ObjectStore, maker: Callable[[Any], Path]
) -> None:
    path = maker(make)
    key = f"{maker.__name__}/{path.name}"
    for file in path.parent.glob(f"{path.stem}*"):
        object_store.put(file, f"{maker.__name__}/{file.name}")
    uri = f"s3://{BUCKET}/{key}"
    with open_raster(path) as local:
        quiet = fingerprint(uri)
        object_store.proxy.misbehave(*FAULTS)
        with open_raster(uri) as raster:
            assert raster.uri == uri
            _same(raster, local, boxes)
            assert fingerprint(raster) == quiet
        assert sum(object_store.proxy.seen.values()) >= 2
        object_store.proxy.misbehave()
        with open_raster(f"{object_store.proxy.url}/{BUCKET}/{key}") as raster:
            _same(raster, local, boxes)
    staged = list(Path(make.folder, "staging").glob("*"))
    assert bool(staged) == (maker in (_photo,)), "only what cannot be read in ranges is staged"


def test_reads_only_what_it_needs(make: Any, object_store: ObjectStore) -> None:
    path = make.geotiff(make.noise((4096, 4096, 1), np.uint16), compress="none", blockxsize=256, blockysize=256)
    uri = object_store.put(path, "large.tif")
    with open_raster(uri) as raster:
        raster.read(Box(2000, 2000, 2300, 2300))
    ranges = [entry[2].removeprefix("bytes=").split("-") for entry in object_store.proxy.requests if entry[2]]
    assert 0 < sum(int(stop) - int(start) + 1 for start, stop in ranges) < path.stat().st_size / 4


@pytest.mark.parametrize("compress", ["none", "deflate", "jpeg"])
def test_a_block_that_never_comes_whole_is_an_error(make: Any, object_store: ObjectStore, compress: str) -> None:
    """GDAL must neither fill it with zeros nor remember it: the same open raster reads on when the network is back."""
    options = {"compress": compress} | ({"photometric": "ycbcr"} if compress == "jpeg" else {})
    path = make.geotiff(make.noise((700, 700, 3)), blockxsize=256, blockysize=256, **options)
    uri = object_store.put(path, f"{compress}.tif")
    with open_raster(path) as local, open_raster(uri) as raster:
        box = raster.levels[0].box
        raster.read(Box(0, 0, 9, 9))
        object_store.proxy.misbehave("cut", "error", times=99)
        with pytest.raises(RemoteError, match="no complete answer"):
            raster.read(box)
        object_store.proxy.misbehave()
        np.testing.assert_array_equal(raster.read(box).pixels, local.read(box).pixels)


@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_an_object_that_was_uploaded_in_part_is_an_error(make: Any, object_store: ObjectStore, compress: str) -> None:
    path = make.geotiff(make.noise((700, 700, 3)), compress=compress)
    path.write_bytes(path.read_bytes()[:-50_000])
    with pytest.raises(CorruptImageError), open_raster(object_store.put(path, "part.tif")) as raster:
        raster.read(raster.levels[0].box)


def test_a_chunk_that_never_comes_is_an_error(make: Any, object_store: ObjectStore) -> None:
    with open_raster(object_store.put(_ome_zarr(make), "broken.zarr")) as raster:
        object_store.proxy.misbehave("cut", "error", times=99)
        with pytest.raises(RemoteError, match="no complete answer"):
            raster.read(raster.levels[0].box)


def test_threads_and_closing_from_another(make: Any, object_store: ObjectStore) -> None:
    path = _scene(make)
    uri = object_store.put(path, "threads.tif")
    with open_raster(path) as local:
        whole = local.read(local.levels[0].box).pixels
    object_store.proxy.misbehave(*FAULTS)
    with open_raster(uri) as one, open_raster(uri) as two, ThreadPoolExecutor(4) as pool:
        boxes = [Box(y, x, y + 40, x + 50) for y in range(0, 240, 40) for x in range(0, 250, 50)]
        found = list(pool.map(lambda box: (one.read(box), two.read(box)), boxes))
    for box, windows in zip(boxes, found, strict=True):
        for window in windows:
            np.testing.assert_array_equal(window.pixels, whole[box.slices()])


def test_fingerprint_follows_the_object(make: Any, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _scene(make)
    uri = object_store.put(path, "print.tif")
    first = fingerprint(uri)
    object_store.put(path, "print.tif")
    assert fingerprint(uri) == first, "the same bytes"
    (make.folder / "mask").write_bytes(path.read_bytes())
    object_store.put(make.folder / "mask", "print.tif.msk")
    second = fingerprint(uri)
    assert second != first, "a sidecar came"
    path.write_bytes(path.read_bytes() + b"\0")
    object_store.put(path, "print.tif")
    assert fingerprint(uri) not in (first, second)

    folder = _ome_zarr(make)
    uri = object_store.put(folder, "print.zarr")
    first = fingerprint(uri)
    chunks = sorted(file for file in folder.rglob("c/*/*/*") if file.is_file())
    chunk = chunks[-1]
    before = chunk.read_bytes()
    shutil.copy(next(file for file in chunks if file.read_bytes() != before), chunk)
    object_store.put(chunk, f"print.zarr/{chunk.relative_to(folder).as_posix()}")
    assert fingerprint(uri) != first, "a chunk changed"
    monkeypatch.setattr(remote, "_LISTED", 2)  # the others are told of together
    changed = fingerprint(uri)
    chunk.write_bytes(before)
    object_store.put(chunk, f"print.zarr/{chunk.relative_to(folder).as_posix()}")
    assert len(list_versions(uri)) == 3 and fingerprint(uri) != changed, "one of the others changed"


def test_names_of_nothing_are_refused(make: Any, object_store: ObjectStore) -> None:
    for name in ("nothing.tif", "nothing", "nothing.zarr"):
        with pytest.raises((ImageNotFoundError, CorruptImageError), match="nothing"):
            open_raster(f"s3://{BUCKET}/{name}")
    uri = object_store.put(_photo(make), "slide.mrxs")
    with pytest.raises(ImageFormatError, match="an image of several files is not read remotely"):
        open_raster(uri)


def test_a_world_file_is_refused_and_never_overlooked(make: Any, object_store: ObjectStore) -> None:
    path = make.folder / "world.tif"
    tifffile.imwrite(path, make.noise((70, 70, 3)), photometric="rgb")
    path.with_suffix(".tfw").write_text("0.5\n0\n0\n-0.5\n450000\n40000\n")
    object_store.put(path.with_suffix(".tfw"), "world.tfw")
    with pytest.raises(ImageFormatError, match=r"placed by world\.tfw, which is not read remotely"):
        open_raster(object_store.put(path, "world.tif"))
