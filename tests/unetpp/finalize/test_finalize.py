"""All products of one job: consistent with its labels, resumable, and the same bytes after any number of kills."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import scipy.ndimage as ndi
from pyproj import CRS

from unetpp import commit
from unetpp.durable import file_sha256
from unetpp.errors import StoreError
from unetpp.finalize import ClassArea, Figures, discard_products, figures, finalize, verify_products
from unetpp.geometry import Spacing
from unetpp.job import SegmentJob
from unetpp.store import LabelStore

UTM = {"crs": CRS.from_epsg(32636).to_wkt(), "transform": (0.5, 0.0, 449000.0, 0.0, -0.5, 36500.0)}
LONLAT = {"crs": CRS.from_epsg(4326).to_wkt(), "transform": (1e-4, 0.0, 20.0, 0.0, -1e-4, 61.0)}
MakeJob = Callable[..., SegmentJob]


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = ndi.gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), 2)
    labels = np.select([noise > 0.05, noise < -0.08], [1, 4], 0).astype(np.uint8)
    labels[:, width - 20 :] = 255
    return labels


def products(out: Path) -> dict[str, str]:
    """Return the hash of every file that a rerun must reproduce: all but job and commit records."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    kept = (path for path in files if path.relative_to(out).parts[0] not in (commit.COMMITS, "job.json"))
    return {str(path.relative_to(out)): file_sha256(path) for path in kept}


def test_products_of_a_slide(make_job: MakeJob) -> None:
    labels = blobs(600, 150)
    job = make_job(labels, spacing=Spacing(0.5, 0.25, "um"), step=2.0)
    found = finalize(job)
    assert found.outputs == {"labels": "labels.ome.zarr", "polygons": "polygons.geojson"}
    assert found.method == "spacing"
    assert list(found.areas) == ["background", "nucleus", "Gebäude"]
    for value, name in ((0, "background"), (1, "nucleus"), (4, "Gebäude")):
        px = int((labels == value).sum())
        assert found.areas[name] == ClassArea(px, pytest.approx(px * 0.125e-6), "mm2")
    assert found.objects == {"nucleus": ndi.label(labels == 1)[1], "Gebäude": ndi.label(labels == 4)[1]}
    features = json.loads((job.out / "polygons.geojson").read_text())["features"]
    assert len(features) == sum(found.objects.values())
    area = sum(f["properties"]["measurements"]["Area px^2"] for f in features)
    assert area == 4 * np.isin(labels, (1, 4)).sum()
    assert not (job.out / "classes.tif").exists()
    assert sorted(path.name for path in (job.out / "finalize").iterdir()) == [
        f"{step}.json" for step in ("areas", "geojson", "objects", "pyramid")
    ]
    assert Figures.from_json(json.loads(json.dumps(found.to_json()))) == found == figures(job)


@pytest.mark.parametrize("place", [UTM, LONLAT], ids=["UTM", "4326"])
def test_products_of_a_scene(place: dict[str, object], make_job: MakeJob) -> None:
    labels = blobs(90, 130)
    job = make_job(labels, **place, shard=64)
    found = finalize(job)
    assert found.outputs == {
        "labels": "labels.ome.zarr",
        "polygons": "polygons.geojson",
        "geopackage": "polygons.gpkg",
        "geotiff": "classes.tif",
    }
    with rasterio.open(job.out / "classes.tif") as file:
        assert np.array_equal(file.read(1), labels)
    table = geopandas.read_file(job.out / "polygons.gpkg")
    assert table["name"].value_counts().to_dict() == found.objects
    for name in ("nucleus", "Gebäude"):
        assert table["area_m2"][table["name"] == name].sum() == pytest.approx(found.areas[name].value)
    assert found.method == ("planar" if place is UTM else "geodesic")
    if place is UTM:
        assert found.areas["nucleus"] == ClassArea(int((labels == 1).sum()), (labels == 1).sum() * 0.25, "m2")


@pytest.mark.parametrize("place", [UTM, {}], ids=["scene", "image"])
def test_an_image_without_data_has_products_without_content(place: dict[str, object], make_job: MakeJob) -> None:
    job = make_job(np.full((600, 70), 255, np.uint8), **place)
    found = finalize(job)
    assert found.objects == {"nucleus": 0, "Gebäude": 0}
    assert all((area.px, area.value) == (0, 0.0) for area in found.areas.values())
    assert json.loads((job.out / "polygons.geojson").read_text())["features"] == []
    import zarr

    level = zarr.open_array(job.store.root / "classes" / "1", mode="r")
    assert level.shape == (300, 35) and (level[:] == 255).all()
    if place:
        with rasterio.open(job.out / "classes.tif") as file:
            assert (file.read(1) == 255).all()
        assert len(geopandas.read_file(job.out / "polygons.gpkg")) == 0


def test_a_second_run_makes_nothing(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(blobs(80, 90), **LONLAT)
    assert figures(job) is None
    first = finalize(job)
    before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*")}
    monkeypatch.setattr(LabelStore, "read", lambda *args: pytest.fail("labels were read again"))
    assert finalize(job) == first
    assert {path: path.stat().st_mtime_ns for path in job.out.rglob("*")} == before | {
        path: path.stat().st_mtime_ns for path in [job.out / "finalize"]
    }


@pytest.mark.parametrize(
    "name",
    [
        "polygons.gpkg",
        "polygons.geojson",
        "classes.tif",
        "labels.ome.zarr/classes/1/c/0/0",
        "labels.ome.zarr/classes/1/zarr.json",
    ],
)
@pytest.mark.parametrize("fault", ["missing", "short"])
def test_only_the_damaged_product_is_made_again(name: str, fault: str, make_job: MakeJob) -> None:
    job = make_job(blobs(600, 90), **UTM)
    finalize(job)
    before = products(job.out)
    path = job.out / name
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    others = ["classes.tif", "polygons.gpkg", "labels.ome.zarr/classes/1/c/0/0"]
    kept = {other: (job.out / other).stat().st_ino for other in others if other.split(".")[0] != name.split(".")[0]}
    assert set(verify_products(job)) == {name}
    finalize(job)
    assert products(job.out) == before
    assert verify_products(job) == {}
    assert {other: (job.out / other).stat().st_ino for other in kept} == kept


def test_verify_finds_a_changed_byte(make_job: MakeJob) -> None:
    job = make_job(blobs(60, 60), **UTM)
    finalize(job)
    path = job.out / "polygons.gpkg"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert list(verify_products(job)) == ["polygons.gpkg"]


@pytest.mark.parametrize(
    "name", ["zarr.json", "classes/zarr.json", "classes/0/zarr.json", "classes/spatial_ref/zarr.json"]
)
def test_verify_finds_metadata_that_is_lost(name: str, make_job: MakeJob) -> None:
    job = make_job(blobs(60, 60), **UTM)
    finalize(job)
    (job.store.root / name).unlink()
    assert verify_products(job) == {f"labels.ome.zarr/{name}": "file is missing"}


def test_shards_that_were_missing_change_the_products(make_job: MakeJob) -> None:
    labels = blobs(600, 90)
    whole = make_job(labels, **UTM)
    finalize(whole)
    job = make_job(labels, **UTM, name="partial")
    shard = job.plan.shards()[3]
    record = commit.record_path(job.store, shard).read_bytes()
    content = job.store.shard_object(shard).read_bytes()
    commit.revoke(job.store, shard)
    job.store.shard_object(shard).write_bytes(content[:50])  # killed while it was written
    partial = finalize(job)
    hidden = labels.copy()
    hidden[shard.box.slices()] = 255
    assert partial.areas["nucleus"].px == (hidden == 1).sum()
    assert partial.objects["nucleus"] == ndi.label(hidden == 1)[1]
    job.store.shard_object(shard).write_bytes(content)
    commit.record_path(job.store, shard).write_bytes(record)
    finalize(job)
    assert products(job.out) == products(whole.out)


def test_products_of_another_job_are_replaced_or_removed(make_job: MakeJob) -> None:
    job = make_job(blobs(60, 60), **UTM)
    finalize(job)
    other = make_job(blobs(60, 60, seed=3), name="other")
    for path in (other.out / "labels.ome.zarr", other.out / "commits"):
        shutil.rmtree(job.out / path.name)
        shutil.copytree(path, job.out / path.name)
    moved = replace(other, out=job.out)
    found = finalize(moved)
    assert found.outputs == {"labels": "labels.ome.zarr", "polygons": "polygons.geojson"}
    assert not (job.out / "polygons.gpkg").exists() and not (job.out / "classes.tif").exists()
    assert found == finalize(other)


def test_discarded_products_are_gone(make_job: MakeJob) -> None:
    job = make_job(blobs(60, 60), **UTM)
    before = {path.name for path in job.out.iterdir()}
    finalize(job)
    discard_products(job.out)
    assert {path.name for path in job.out.iterdir()} == before | {".lock"}
    assert figures(job) is None


def test_files_that_others_put_beside_the_products_stay(make_job: MakeJob) -> None:
    job = make_job(blobs(60, 60), **UTM)
    finalize(job, formats=["geojson"])
    own = {job.out / name: name.encode() for name in ("polygons.gpkg", "finalize/notes.txt", "finalize/a.json")}
    for path, content in own.items():
        path.write_bytes(content)
    finalize(job, formats=["geojson", "cog"])
    with pytest.raises(StoreError, match=r"polygons\.gpkg exists and was not made by this job; move it away"):
        finalize(job, formats=["flatgeobuf", "gpkg"])
    assert not (job.out / "polygons.fgb").exists()
    discard_products(job.out)
    assert {path: path.read_bytes() for path in own} == own
    assert not (job.out / "classes.tif").exists() and not (job.out / "polygons.geojson").exists()
    assert set((job.out / "finalize").iterdir()) == set(own) - {job.out / "polygons.gpkg"}


@pytest.mark.parametrize("moved", [False, True])
def test_a_product_is_ours_from_before_it_has_its_name(
    moved: bool, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(blobs(60, 60), **UTM)
    finalize(job, formats=["cog"])
    expected = products(job.out)
    discard_products(job.out)
    replace_path = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target.name != "classes.tif":
            return replace_path(path, target)
        if moved:
            replace_path(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        finalize(job, formats=["cog"])
    monkeypatch.undo()
    assert (job.out / "classes.tif").exists() is moved and figures(job, formats=["cog"]) is None
    finalize(job, formats=["cog"])
    assert products(job.out) == expected


def test_a_product_is_ours_until_it_is_gone(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(blobs(60, 60), **UTM)
    finalize(job, formats=["cog"])
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.name in ("classes.tif", "cog.json"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        discard_products(job.out)
    monkeypatch.undo()
    discard_products(job.out)
    assert not (job.out / "classes.tif").exists() and not (job.out / "finalize").exists()


def test_progress_names_the_steps(make_job: MakeJob) -> None:
    calls: list[tuple[str, float]] = []
    finalize(make_job(blobs(600, 60), **UTM), progress=lambda step, share: calls.append((step, share)))
    assert list(dict.fromkeys(step for step, _ in calls)) == ["pyramid", "cog", "areas", "vectors"]
    for step in ("pyramid", "cog", "areas", "vectors"):
        shares = [share for name, share in calls if name == step]
        assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1


KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import geopandas, pyogrio.raw, pyproj, rasterio.shutil, scipy.sparse.csgraph, shapely, skimage.measure, zarr
import unetpp.finalize.geotiff, unetpp.finalize.pieces, unetpp.finalize.polygons
import unetpp.finalize.pyramid, unetpp.finalize.vectors
from unetpp.finalize import finalize
from unetpp.job import SegmentJob

def start(folder):
    child = os.fork()
    if child:
        return child
    finalize(SegmentJob.load(folder))
    os._exit(0)

fresh, work, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
shutil.copytree(fresh, work / "whole")
began = time.perf_counter()
assert os.waitpid(start(work / "whole"), 0)[1] == 0
duration = time.perf_counter() - began
chance = random.Random(int(sys.argv[4]))
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


def test_killed_at_random_points_the_next_run_ends_with_the_same_bytes(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(blobs(1030, 200), **LONLAT, shard=256)
    rounds = 5
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(job.out), str(tmp_path), str(rounds), "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= rounds
    expected = products(tmp_path / "whole")
    assert {"polygons.gpkg", "polygons.geojson", "classes.tif", "finalize/areas.json"} <= set(expected)
    for number in range(rounds):
        assert products(tmp_path / str(number)) == expected


FULL = """
import os, resource, sys
from pathlib import Path
import rasterio.shutil, pyogrio.raw, zarr
from unetpp.errors import OutputError
from unetpp.finalize import finalize
from unetpp.job import SegmentJob

for limit in map(int, sys.argv[2:]):
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            finalize(SegmentJob.load(Path(sys.argv[1])))
            print("no error")
        except OutputError as error:
            print(error)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("name", ["classes.tif", "polygons.gpkg"])
def test_a_disk_that_fills_up_is_an_error_and_never_a_damaged_product(name: str, make_job: MakeJob) -> None:
    if name == "classes.tif":
        labels = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (700, 700))
    else:
        labels = np.eye(40, dtype=np.uint8)
    job = make_job(labels, **UTM)
    finalize(job)
    expected = products(job.out)
    size = (job.out / name).stat().st_size
    assert size == max((job.out / other).stat().st_size for other in expected)
    discard_products(job.out)
    limits = [int(size * share) for share in (0.3, 0.8, 0.92, 0.99)]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(job.out), *map(str, limits)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(limits) and all(line.startswith("cannot write ") for line in lines), lines
    assert not (job.out / name).exists()
    finalize(job)
    assert products(job.out) == expected
