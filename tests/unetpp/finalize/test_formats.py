"""The formats that are made on request, each as a program other than ours reads it, and as steps of their own."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
import rasterio
import scipy.ndimage as ndi
import shapely
import tifffile
import zarr
from pyproj import CRS
from shapely.geometry import shape

from unetpp.durable import file_sha256
from unetpp.errors import OutputError
from unetpp.finalize import FORMATS, figures, finalize, verify_products
from unetpp.geometry import Box, Spacing
from unetpp.job import SegmentJob

UTM = {"crs": CRS.from_epsg(32636).to_wkt(), "transform": (0.5, 0.0, 449000.0, 0.0, -0.5, 36500.0)}
SLIDE = {"spacing": Spacing(0.5, 0.25, "um"), "step": 2.0}
MakeJob = Callable[..., SegmentJob]


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = ndi.gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), 2)
    labels = np.select([noise > 0.05, noise < -0.08], [1, 4], 0).astype(np.uint8)
    labels[:, width - 20 :] = 255
    return labels


def hashes(out: Path) -> dict[str, str]:
    """Return the hash of every file of the image's folder and of its markers."""
    older = (out / FORMATS["ome-zarr-0.4"]).rglob("*")
    paths = (*out.glob("classes*"), *out.glob("polygons*"), *older, *(out / "finalize").iterdir())
    return {str(path.relative_to(out)): file_sha256(path) for path in sorted(paths) if path.is_file()}


@pytest.mark.parametrize("place", [UTM, SLIDE], ids=["scene", "slide"])
def test_tables_of_polygons_are_the_geopackage_to_the_bit(place: dict[str, Any], make_job: MakeJob) -> None:
    job = make_job(blobs(200, 150), **place)
    counted = finalize(job, formats=("gpkg", "geoparquet", "flatgeobuf"))
    assert counted.formats == ("gpkg", "geoparquet", "flatgeobuf")
    truth = geopandas.read_file(job.out / "polygons.gpkg").set_index("id").sort_index()
    parquet = geopandas.read_parquet(job.out / "polygons.parquet")
    flat = geopandas.read_file(job.out / "polygons.fgb")
    assert len(truth) == sum(counted.objects.values()) > 20
    for table in (found.set_index("id").sort_index() for found in (parquet, flat)):
        assert list(table.columns) == list(truth.columns)
        assert table.index.equals(truth.index)
        assert (shapely.to_wkb(table.geometry.array) == shapely.to_wkb(truth.geometry.array)).all()
        for column in ("class", "name", truth.columns[2]):
            assert (table[column] == truth[column]).all()
        assert (table.crs is None) == (place is SLIDE)
        if place is UTM:
            assert table.crs == CRS.from_epsg(32636)
    if place is SLIDE:  # level-0 pixels, as in QuPath's file
        assert truth.geometry.area.sum() == 4 * np.isin(blobs(200, 150), (1, 4)).sum()


def test_the_geoparquet_file_is_one_of_version_1_1(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetpp.finalize.geoparquet.BATCH_FEATURES", 40)
    job = make_job(blobs(300, 150), **UTM)
    finalize(job, formats=["geoparquet"])
    path = job.out / "polygons.parquet"
    whole = geopandas.read_parquet(path)
    with pyarrow.parquet.ParquetFile(path) as file:
        geo = json.loads(file.metadata.metadata[b"geo"])
        groups = file.num_row_groups
    assert groups == -(-len(whole) // 40) > 2
    column = geo["columns"][geo["primary_column"]]
    assert (geo["version"], column["encoding"], column["geometry_types"]) == ("1.1.0", "WKB", ["Polygon"])
    assert column["bbox"] == pytest.approx(list(whole.total_bounds), abs=0)
    # Arrow's own readers, with which other programs read, know the table as one of places too.
    for schema in (pyarrow.parquet.read_table(path).schema, pyarrow.dataset.dataset(path).schema):
        known = json.loads(schema.metadata[b"geo"])
        assert known | {"columns": {"geometry": known["columns"]["geometry"] | {"bbox": column["bbox"]}}} == geo
    assert column["orientation"] == "counterclockwise"
    assert all(
        polygon.exterior.is_ccw and not any(ring.is_ccw for ring in polygon.interiors) for polygon in whole.geometry
    )
    assert whole.geometry.is_valid.all()
    boxes = pyarrow.parquet.read_table(path, columns=["bbox"])["bbox"].to_pylist()
    assert np.array_equal(np.array([list(box.values()) for box in boxes]), whole.geometry.bounds.to_numpy())
    x0, y0, x1, y1 = whole.total_bounds
    window = (x0, y0, (x0 + x1) / 2, (y0 + y1) / 2)
    part = geopandas.read_parquet(path, bbox=window)  # by the covering column
    assert 0 < len(part) < len(whole)
    assert set(part["id"]) == set(whole[whole.geometry.envelope.intersects(shapely.box(*window))]["id"])


@pytest.mark.parametrize("place", [UTM, SLIDE], ids=["scene", "slide"])
def test_the_gzipped_geojson_holds_the_plain_one(place: dict[str, Any], make_job: MakeJob) -> None:
    job = make_job(blobs(200, 150), **place)
    finalize(job, formats=("geojson", "geojson.gz"))
    packed = (job.out / "polygons.geojson.gz").read_bytes()
    assert gzip.decompress(packed) == (job.out / "polygons.geojson").read_bytes()
    assert packed[4:8] == bytes(4) and not packed[3] & 8  # neither time nor name
    assert len(json.loads(gzip.decompress(packed))["features"]) > 10


def test_without_a_crs_the_geotiff_is_an_ordinary_pyramid(make_job: MakeJob) -> None:
    labels = blobs(1100, 600)
    job = make_job(labels, **SLIDE)
    assert finalize(job, formats=["cog"]).outputs["geotiff"] == "classes.tif"
    with tifffile.TiffFile(job.out / "classes.tif") as file:
        assert [page.shape for page in file.pages] == [(1100, 600), (550, 300), (275, 150)]
        page = file.pages[0]
        assert page.is_tiled and page.photometric.name == "PALETTE"
        assert np.array_equal(page.asarray(), labels)
        assert np.array_equal(file.pages[1].asarray(), labels[::2, ::2])  # nearest
        x, y = (page.tags[name].value for name in ("XResolution", "YResolution"))
        assert (x[0] / x[1], y[0] / y[1]) == pytest.approx((40000, 20000))  # px per cm
        assert page.tags["GDAL_NODATA"].value == "255"


def test_the_ome_tiff_is_a_labelled_pyramid(make_job: MakeJob) -> None:
    labels = blobs(1100, 700)
    job = make_job(labels, **SLIDE, shard=256)
    assert finalize(job, formats=["ome-tiff"]).outputs == {"labels": "labels.ome.zarr", "ome_tiff": "classes.ome.tif"}
    path = job.out / "classes.ome.tif"
    with rasterio.open(path) as file:  # GDAL, a reader that shares no code with the writer
        assert np.array_equal(file.read(1), labels)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(1100, 700), (550, 350), (275, 175)]
        for number, level in enumerate(levels):
            assert np.array_equal(level.asarray(), job.store.read(Box(0, 0, *level.shape), number))
        root = ET.fromstring(file.ome_metadata)  # noqa: S314 (our own file)
    space = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    pixels = root.find(".//ome:Pixels", space)
    assert pixels is not None
    expected = {"SizeX": "700", "SizeY": "1100", "Type": "uint8", "PhysicalSizeX": "0.25", "PhysicalSizeY": "0.5"}
    assert expected.items() <= pixels.attrib.items()
    assert pixels.attrib["PhysicalSizeXUnit"] == "µm"
    names = {item.attrib["K"]: item.text for item in root.iterfind(".//ome:MapAnnotation//ome:M", space)}
    assert names == {"0": "background", "1": "nucleus", "4": "Gebäude", "255": "no data"}


def test_ome_zarr_0_4_is_the_same_pyramid_to_other_readers(make_job: MakeJob) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader
    from ome_zarr_models.v04 import ImageLabel

    labels = blobs(1100, 700)
    job = make_job(labels, **SLIDE, shard=256)
    outputs = finalize(job, formats=["ome-zarr-0.4"]).outputs
    assert outputs == {"labels": "labels.ome.zarr", "ome_zarr_04": "labels-0.4.ome.zarr"}
    root = job.out / outputs["ome_zarr_04"]
    node = next(node for node in Reader(parse_url(root / "classes"))() if node.data)
    assert np.array_equal(np.asarray(node.data[0]), labels)
    group = zarr.open_group(root / "classes", mode="r")
    assert group.metadata.zarr_format == 2
    attributes = ImageLabel.from_zarr(group).attributes
    assert attributes.multiscales[0].version == "0.4"
    found = {entry.label_value: entry.rgba for entry in attributes.image_label.colors}
    assert set(found) == {0, 1, 4, 255}
    assert [t.scale for t in attributes.multiscales[0].datasets[1].coordinateTransformations[:1]] == [[1.0, 0.5]]
    for level in range(3):
        values = group[str(level)][:]
        assert np.array_equal(values, job.store.read(Box(0, 0, *values.shape), level))
    verified = verify_products(job)
    assert verified == {}
    (root / "classes/0/1/1").unlink()
    assert list(verify_products(job)) == ["labels-0.4.ome.zarr/classes/0/1/1"]
    finalize(job, formats=["ome-zarr-0.4"])
    assert verify_products(job) == {}


@pytest.mark.parametrize("place", [UTM, SLIDE, {}], ids=["scene", "slide", "image"])
def test_every_format_of_an_empty_image_opens(place: dict[str, Any], make_job: MakeJob) -> None:
    job = make_job(np.full((600, 70), 255, np.uint8), **place)
    found = finalize(job, formats=FORMATS)
    assert set(found.formats) == set(FORMATS)
    for name in ("polygons.gpkg", "polygons.fgb"):
        assert len(geopandas.read_file(job.out / name)) == 0
    assert len(geopandas.read_parquet(job.out / "polygons.parquet")) == 0
    for name in ("classes.tif", "classes.ome.tif"):
        assert (tifffile.imread(job.out / name) == 255).all()


@pytest.mark.parametrize("place", [UTM, SLIDE], ids=["scene", "slide"])
def test_a_format_asked_for_later_is_made_alone_and_equals_that_of_one_call(
    place: dict[str, Any], make_job: MakeJob
) -> None:
    labels = blobs(600, 150)
    once = make_job(labels, **place, name="once")
    finalize(once, formats=FORMATS)
    job = make_job(labels, **place)
    wanted: list[str] = []
    for name in FORMATS:
        before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*") if path.is_file()}
        wanted.append(name)
        assert figures(job, wanted) is None
        found = finalize(job, formats=[name])
        assert found == figures(job, wanted) and set(found.formats) == set(wanted)
        kept = {path: path.stat().st_mtime_ns for path in before if path.name != ".lock"}
        assert kept.items() <= before.items(), name
    assert hashes(job.out) == hashes(once.out)
    assert verify_products(job) == {}
    files = {**FORMATS, "ome-zarr-0.4": "labels-0.4.ome.zarr/classes/0/0/0"}
    for name, file in files.items():
        content = bytearray((job.out / file).read_bytes())
        content[len(content) // 2] ^= 1
        (job.out / file).write_bytes(content)
        assert list(verify_products(job)) == [file], name
        content[len(content) // 2] ^= 1
        (job.out / file).write_bytes(content)


def test_polygons_are_joined_across_shards_in_every_format(make_job: MakeJob) -> None:
    labels = blobs(300, 280)
    whole, split = make_job(labels, **UTM, shard=384, name="whole"), make_job(labels, **UTM, shard=64, name="split")
    for job in (whole, split):
        finalize(job, formats=FORMATS)
    for name in ("polygons.gpkg", "polygons.parquet", "polygons.fgb"):
        read = geopandas.read_parquet if name.endswith("parquet") else geopandas.read_file
        ours, theirs = (read(job.out / name).set_index("id").sort_index() for job in (split, whole))
        assert (shapely.to_wkb(ours.geometry.array) == shapely.to_wkb(theirs.geometry.array)).all()
    for ours in json.loads(gzip.decompress((split.out / "polygons.geojson.gz").read_bytes()))["features"]:
        assert shape(ours["geometry"]).is_valid


KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import geopandas, pyarrow.parquet, pyogrio.raw, pyproj, rasterio.shutil, scipy.sparse.csgraph, shapely, tifffile, zarr
import scipy.ndimage, skimage.measure, skimage.morphology, skimage.segmentation
import unetpp.finalize.geotiff, unetpp.finalize.instances, unetpp.finalize.ometiff, unetpp.finalize.vectors
from unetpp.finalize import FORMATS, finalize
from unetpp.job import SegmentJob

def start(folder):
    child = os.fork()
    if child:
        return child
    finalize(SegmentJob.load(folder), formats=FORMATS, instances=True)
    os._exit(0)

fresh, work, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
shutil.copytree(fresh, work / "whole")
began = time.perf_counter()
assert os.waitpid(start(work / "whole"), 0)[1] == 0
duration = time.perf_counter() - began
chance = random.Random(3)
kills = 0
for number in range(rounds):
    folder = work / str(number)
    shutil.copytree(fresh, folder)
    for attempt in range(100):
        child = start(folder)
        if attempt < 4:
            time.sleep(chance.uniform(0, duration))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        kills += 1
print(kills)
"""


@pytest.mark.slow  # test_finalize.py kills the formats that are always written
def test_killed_at_random_points_all_formats_end_with_the_same_bytes(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(blobs(520, 120), **UTM, shard=256)
    command = [sys.executable, "-c", KILLER, str(job.out), str(tmp_path), "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
    expected = hashes(tmp_path / "whole")
    files = {**FORMATS, "ome-zarr-0.4": "labels-0.4.ome.zarr/classes/1/.zarray"}
    assert {*files.values(), "finalize/instances.json"} <= set(expected)
    for number in range(2):
        assert hashes(tmp_path / str(number)) == expected


FULL = """
import os, resource, sys
from pathlib import Path
import pyarrow.parquet, pyogrio.raw, pyproj, scipy.sparse.csgraph, skimage.measure, tifffile, zarr
import unetpp.finalize.ometiff, unetpp.finalize.vectors
from unetpp.errors import OutputError
from unetpp.finalize import finalize
from unetpp.job import SegmentJob

for task in sys.argv[2:]:
    name, limit = task.split("=")
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
        try:
            finalize(SegmentJob.load(Path(sys.argv[1])), formats=[name])
            print("no error", task)
        except OutputError as error:
            print(error)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_disk_that_fills_up_is_an_error_and_never_a_damaged_product(make_job: MakeJob) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (150, 150))
    whole, job = make_job(labels, **UTM, name="whole"), make_job(labels, **UTM)
    names = ("geoparquet", "flatgeobuf", "geojson.gz", "ome-tiff")
    finalize(whole, formats=names)
    finalize(job, formats=[])
    sizes = {name: (whole.out / FORMATS[name]).stat().st_size for name in names}
    tasks = [f"{name}={int(sizes[name] * share)}" for name in names for share in (0.3, 0.9, 0.999)]
    command = [sys.executable, "-c", FULL, str(job.out), *tasks]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(tasks) and all(line.startswith("cannot write ") for line in lines), lines
    assert not any((job.out / FORMATS[name]).exists() for name in names)
    finalize(job, formats=names)
    assert hashes(job.out) == hashes(whole.out)


def test_a_folder_that_cannot_be_written_is_one_line(make_job: MakeJob, tmp_path: Path) -> None:
    from unetpp.finalize.ometiff import write_ome_tiff

    job = make_job(np.zeros((40, 40), np.uint8))
    with pytest.raises(OutputError, match=r"cannot write .*classes\.ome\.tif"):
        write_ome_tiff(
            job.store.read, [(40, 40)], grid=job.grid, classes=job.classes, key="k", folder=tmp_path / "missing"
        )
