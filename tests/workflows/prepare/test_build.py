"""A whole preparation: what is stored, statistics, faults, restarts, memory."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import rasterio
import tifffile
import zarr
from PIL import Image

from unetpp.errors import StoreError
from unetpp.geometry import Box
from unetpp.train.content import known_images, source_content
from unetpp.train.store import PatchStore
from unetpp_workflows.prepare.build import Prepared, Run, discard_work, prepare, work_folder
from unetpp_workflows.prepare.dataset import Dataset, load_dataset

GLOBS: dict[str, Any] = {
    "images": "images/*.png",
    "labels": "masks/{stem}.png",
    "group_pattern": "^([a-z]+)",
    "validation": ["v"],
}


def whole(store: PatchStore, name: str) -> tuple[Any, Any, Any]:
    """Read a whole image back: pixels, labels, objects."""
    image = next(i for i in store.images if i.name == name)
    source = store.source(image.split)
    position = [i.name for i in source.images].index(name)
    crop = source.read(position, Box(0, 0, image.height, image.width))
    return crop.pixels, crop.labels, crop.objects


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_what_is_stored_is_what_was_given(described: Callable[..., Dataset], photos: Any, tmp_path: Path) -> None:
    drawn = photos({"a1": (70, 100), "b1": (32, 32), "b2": (33, 65), "v1": (40, 90)})
    prepared = prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr")
    assert not prepared.faults
    store = PatchStore.open(tmp_path / "s.zarr")
    for name, (pixels, labels) in drawn.items():
        found = whole(store, name)
        assert (found[0] == pixels).all() and (found[1] == labels).all() and found[2] is None
    training = [drawn[name] for name in ("a1", "b1", "b2")]
    everything = np.concatenate([pixels.reshape(-1, 3) for pixels, _ in training]).astype(np.float64)
    assert np.allclose(store.mean, everything.mean(0), rtol=1e-14)
    assert np.allclose(store.std, everything.std(0), rtol=1e-13)
    counts = np.bincount(np.concatenate([labels.ravel() for _, labels in training]))
    assert np.allclose(store.frequencies, counts / counts.sum(), rtol=1e-15)
    assert [i.group for i in store.source("train").images] == ["a", "b", "b"]
    assert store.source("val").blocks.counts.sum(0).tolist() == np.bincount(drawn["v1"][1].ravel()).tolist()
    # Anybody's Zarr reads the same arrays: one patch is one chunk, and shards hold whole patches.
    array = zarr.open_group(tmp_path / "s.zarr", mode="r")["pixels"]
    assert isinstance(array, zarr.Array) and array.chunks == (1, 32, 32, 3) and array.shards is not None
    assert (array[0] == drawn["a1"][0][:32, :32]).all()


def test_only_labelled_blocks_and_their_neighbours_are_stored(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    drawn = photos({"a1": (320, 320), "v1": (32, 32)})
    labels = np.full((320, 320), 255, np.uint8)
    labels[100:110, 200:210] = 1
    Image.fromarray(labels).save(tmp_path / "masks/a1.png")
    prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr")
    store = PatchStore.open(tmp_path / "s.zarr")
    assert (store.image == 0).sum() == 9 and len(store.source("train").blocks.image) == 1
    pixels, found, _ = whole(store, "a1")
    assert (found == labels).all()
    assert (pixels[64:160, 160:256] == drawn["a1"][0][64:160, 160:256]).all()
    assert (pixels[:64] == np.rint(store.mean)).all()


def test_no_data_has_no_labels_and_no_part_in_statistics(described: Callable[..., Dataset], tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    values = random.normal(1000, 30, (2, 50, 70)).astype(np.float32)
    values[:, :20] = -9999
    for name in ("a", "v"):
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", height=50, width=70, count=2, dtype="float32", nodata=-9999,
            crs="EPSG:32636", transform=rasterio.transform.from_origin(0, 0, 2, 2),
        ) as file:  # fmt: skip
            file.write(values + (name == "v") * (values > 0) * 7)
    (tmp_path / "t.csv").write_text("image,labels,split\na.tif,m.png,train\nv.tif,m.png,val\n")
    Image.fromarray(np.ones((50, 70), np.uint8)).save(tmp_path / "m.png")
    prepare(described(table="t.csv"), tmp_path, tmp_path / "s.zarr")
    store = PatchStore.open(tmp_path / "s.zarr")
    pixels, labels, _ = whole(store, "a")
    assert (labels[:20] == 255).all() and (labels[20:] == 1).all()
    assert np.allclose(store.mean, values[:, 20:].astype(np.float64).mean((1, 2)), rtol=1e-12)
    assert np.allclose(store.std, values[:, 20:].astype(np.float64).std((1, 2)), rtol=1e-9)
    assert (pixels[:20] == np.array(store.mean, np.float32)).all()
    assert store.spacing is not None and str(store.spacing) == "2 m/px"


def test_mask_ignore_and_votes(described: Callable[..., Dataset], photos: Any, tmp_path: Path) -> None:
    photos({"a": (64, 64), "v": (64, 64)})
    votes = {"x": np.zeros((64, 64), np.uint8), "y": np.ones((64, 64), np.uint8), "z": np.ones((64, 64), np.uint8)}
    votes["y"][:, :32] = 2
    for name, labels in votes.items():
        Image.fromarray(labels).save(tmp_path / f"{name}.png")
    area = np.zeros((64, 64), np.uint8)
    area[:40] = 255
    Image.fromarray(area).save(tmp_path / "mask.png")
    Image.fromarray(np.roll(area, 32, 0) * (np.arange(64) < 8)).save(tmp_path / "ignore.png")
    rows = [f"images/a.png,{name}.png,train,{name},mask.png,ignore.png" for name in votes]
    header = "image,labels,split,annotator,mask,ignore"
    (tmp_path / "t.csv").write_text("\n".join([header, *rows, "images/v.png,masks/v.png,val,x,,"]))
    prepare(described(table="t.csv"), tmp_path, tmp_path / "s.zarr")
    labels = whole(PatchStore.open(tmp_path / "s.zarr"), "a")[1]
    expected = np.ones((64, 64), np.uint8)
    expected[:, :32] = 255  # 0, 2 and 1: a tie
    expected[40:] = 255
    expected[:8, 32:] = 1
    assert (labels == expected).all()


def test_polygons_to_ignore_and_a_file_of_none(described: Callable[..., Dataset], photos: Any, tmp_path: Path) -> None:
    drawn = photos({"a": (64, 64), "v": (64, 64)})
    square = {"type": "Polygon", "coordinates": [[[8, 8], [40, 8], [40, 24], [8, 24], [8, 8]]]}
    for name, shapes in (("a", [square]), ("v", [])):
        features = [{"type": "Feature", "geometry": shape, "properties": {}} for shape in shapes]
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (tmp_path / f"{name}.geojson").write_text(text)
    prepare(described(**GLOBS, ignore="{stem}.geojson"), tmp_path, tmp_path / "s.zarr")
    store = PatchStore.open(tmp_path / "s.zarr")
    expected = drawn["a"][1].copy()
    expected[8:24, 8:40] = 255
    assert (whole(store, "a")[1] == expected).all()
    assert (whole(store, "v")[1] == drawn["v"][1]).all()


def test_images_are_known_again_however_they_are_cut_and_labelled(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    photos({"a": (70, 100), "b": (70, 100), "v": (70, 100)})
    prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr")
    told = source_content(PatchStore.open(tmp_path / "s.zarr").source("train"))
    Image.fromarray(np.full((70, 100), 255, np.uint8) * (np.arange(100) > 40)).save(tmp_path / "masks/a.png")
    Image.fromarray(np.zeros((70, 100, 3), np.uint8)).save(tmp_path / "images/b.png")
    for name, more in (("t", {"side": 64}), ("u", {"spacing": "2um", "image_spacing": "1um"})):
        prepare(described(**{**GLOBS, **more, "validation": ["a", "b"]}), tmp_path, tmp_path / f"{name}.zarr")
        store = PatchStore.open(tmp_path / f"{name}.zarr")
        assert known_images(store.source("val"), told) == 1 and known_images(store.source("train"), told) == 0


def test_an_image_is_known_where_a_part_was_seen_and_a_part_by_the_whole(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    """The two parts of one image are not each other's: what was not trained on may be measured."""
    photos({"a": (64, 300), "b": (64, 300), "v": (64, 300)})
    settings = {**GLOBS, "group_pattern": "(a)", "shares": {"train": 0.6, "val": 0.4}, "guard": 40, "validation": []}
    for name in "bv":
        (tmp_path / f"images/{name}.png").rename(tmp_path / f"{name}.png")
    prepare(described(**settings), tmp_path, tmp_path / "parts.zarr")
    for name in "bv":
        (tmp_path / f"{name}.png").rename(tmp_path / f"images/{name}.png")
    prepare(described(**{**GLOBS, "side": 64, "validation": ["a"]}), tmp_path, tmp_path / "whole.zarr")
    (first, rest), (others, whole) = (
        [PatchStore.open(tmp_path / f"{name}.zarr").source(split) for split in ("train", "val")]
        for name in ("parts", "whole")
    )
    assert known_images(whole, source_content(first)) == known_images(whole, source_content(rest)) == 1
    assert known_images(first, source_content(whole)) == known_images(rest, source_content(whole)) == 1
    assert known_images(rest, source_content(first)) == known_images(others, source_content(first)) == 0
    assert known_images(rest, source_content(rest)) == known_images(whole, source_content(whole)) == 1


def test_an_image_without_a_label_is_neither_trained_on_nor_measured(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    photos({"a1": (40, 40), "a2": (40, 40), "v1": (40, 40), "v2": (40, 40)})
    for name in ("a1", "v2"):
        Image.fromarray(np.full((40, 40), 255, np.uint8)).save(tmp_path / f"masks/{name}.png")
    prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr")
    store = PatchStore.open(tmp_path / "s.zarr")
    train, val = store.source("train"), store.source("val")
    assert [image.name for image in (*store.images, *train.images, *val.images)] == ["a1", "a2", "v1", "v2", "a2", "v1"]
    assert (whole(store, "a2")[0] == np.asarray(Image.open(tmp_path / "images/a2.png"))).all()
    # Nothing was all that one knew of them, and the same of all.
    assert known_images(val, source_content(train)) == 0 and known_images(val, source_content(val)) == 1


def test_empty_fields_are_not_known_again_by_being_empty(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    photos(dict.fromkeys(("a1", "a2", "v1", "v2"), (40, 40)))
    for name in ("a1", "v2"):
        Image.fromarray(np.full((40, 40, 3), (7, 9, 9), np.uint8)).save(tmp_path / f"images/{name}.png")
    assert not prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr").errors
    store = PatchStore.open(tmp_path / "s.zarr")
    train, val = store.source("train"), store.source("val")
    assert len(val.images) == 2 and known_images(val, source_content(train)) == 0


def test_one_group_is_cut_with_a_band_between(described: Callable[..., Dataset], photos: Any, tmp_path: Path) -> None:
    drawn = photos({"a": (64, 300)})
    settings = {**GLOBS, "group_pattern": "(a)", "shares": {"train": 0.6, "val": 0.4}, "guard": 40, "validation": []}
    prepare(described(**settings), tmp_path, tmp_path / "s.zarr")
    store = PatchStore.open(tmp_path / "s.zarr")
    train, val = (whole(store, f"a#{split}")[1] != 255 for split in ("train", "val"))
    assert store.within_group
    assert train[:, :160].all() and not train[:, 160:].any()
    assert val[:, 200:].all() and not val[:, :200].any()
    assert (whole(store, "a#val")[1][:, 200:] == drawn["a"][1][:, 200:]).all()


def test_photos_and_tiffs_without_names_are_one_set(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    drawn = photos({"a1": (40, 40), "b1": (40, 40), "v1": (40, 40)})
    tifffile.imwrite(tmp_path / "images/b1.tif", drawn["b1"][0], photometric="minisblack", planarconfig="contig")
    (tmp_path / "images/b1.tif").rename(tmp_path / "images/b1.png")
    tifffile.imwrite(tmp_path / "images/v1.tif", drawn["v1"][0], photometric="rgb")
    (tmp_path / "images/v1.tif").rename(tmp_path / "images/v1.png")
    prepared = prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr")
    assert prepared.facts is not None and not prepared.faults
    assert (whole(PatchStore.open(tmp_path / "s.zarr"), "b1")[0] == drawn["b1"][0]).all()


def test_an_image_without_an_object_does_not_stop_the_set(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    photos({"a1": (64, 64), "v1": (64, 64)})
    tree = {"type": "Polygon", "coordinates": [[[8, 8], [40, 8], [40, 40], [8, 40], [8, 8]]]}
    feature = {"type": "Feature", "geometry": tree, "properties": {"classification": {"name": "tree"}}}
    for name, features in (("a1", []), ("v1", [feature])):
        content = {"type": "FeatureCollection", "features": features}
        (tmp_path / f"masks/{name}.geojson").write_text(json.dumps(content))
    prepared = prepare(described(**{**GLOBS, "labels": "masks/{stem}.geojson"}), tmp_path, tmp_path / "s.zarr")
    assert not prepared.errors and any("a1: labels hold no polygon" in str(fault) for fault in prepared.faults)
    assert (whole(PatchStore.open(tmp_path / "s.zarr"), "a1")[1] == 0).all()


def test_a_store_stays_finished_however_its_data_folder_is_written(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos({"a1": (64, 64), "v1": (64, 64)})
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "images")
    rows = ["images/a1.png,masks/a1.png,train", f"{tmp_path}/images/v1.png,{tmp_path}/masks/v1.png,val"]
    (tmp_path / "t.csv").write_text("\n".join(["image,labels,split", *rows]))
    for number, dataset in enumerate((described(**GLOBS), described(table="t.csv"))):
        store = tmp_path / f"{number}.zarr"
        assert prepare(dataset, tmp_path, store).fresh
        for root in (Path(".."), tmp_path / "link", tmp_path / "masks/.."):
            assert not prepare(dataset, root, store).fresh
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for folder in ("images", "masks"):
        (tmp_path / folder).rename(moved / folder)
    assert not prepare(described(**GLOBS), moved, tmp_path / "0.zarr").fresh
    os.utime(moved / "images/a1.png")
    with pytest.raises(StoreError, match="other data or settings"):
        prepare(described(**GLOBS), moved, tmp_path / "0.zarr")


def test_the_store_does_not_depend_on_workers_executor_or_place(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    photos({f"{group}{i}": (150, 170) for group in "abv" for i in range(3)})
    found = []
    for run in (Run(workers=1), Run(workers=4), Run("ray", workers=2)):
        store = tmp_path / f"{run.executor}{run.workers}" / "s.zarr"
        found.append((prepare(described(**GLOBS), tmp_path, store, run=run), hashes(store)))
    assert found[0][1] == found[1][1] == found[2][1]
    moved = tmp_path / "moved"
    moved.mkdir()
    for folder in ("images", "masks"):
        (tmp_path / folder).rename(moved / folder)
    os.utime(moved / "images/a0.png")
    again = prepare(described(**GLOBS), moved, moved / "s.zarr")
    assert again.facts is not None and found[0][0].facts is not None
    assert again.facts["fingerprint"] == found[0][0].facts["fingerprint"]


def test_a_finished_store_is_kept_and_never_overwritten(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    photos({"a1": (64, 64), "v1": (64, 64)})
    first = prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr")
    discard_work(tmp_path / "s.zarr")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "s.zarr").rglob("*")}
    second = prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr")
    assert (first.fresh, second.fresh) == (True, False) and first.facts == second.facts
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "s.zarr").rglob("*")}
    with pytest.raises(StoreError, match="other data or settings"):
        prepare(described(**{**GLOBS, "side": 64}), tmp_path, tmp_path / "s.zarr")
    (tmp_path / "mine.zarr").mkdir()
    with pytest.raises(StoreError, match="no training store"):
        prepare(described(**GLOBS), tmp_path, tmp_path / "mine.zarr")


def test_a_vrt_of_a_file_that_is_not_there_is_one_of_all_faults(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    photos({"a1": (64, 64), "b1": (64, 64), "v1": (64, 64)})
    source = '<SourceFilename relativeToVRT="1">gone.tif</SourceFilename>'
    (tmp_path / "images/c1.vrt").write_text(f"<VRTDataset><VRTRasterBand>{source}</VRTRasterBand></VRTDataset>")
    (tmp_path / "images/b1.png").write_bytes(b"not a picture")
    rows = ["images/a1.png,masks/a1.png,train", "images/b1.png,masks/b1.png,train", "images/c1.vrt,masks/a1.png,train"]
    (tmp_path / "t.csv").write_text("\n".join(["image,labels,split", *rows, "images/v1.png,masks/v1.png,val"]))
    found = prepare(described(table="t.csv"), tmp_path, tmp_path / "s.zarr")
    assert sorted(fault.where for fault in found.errors) == ["b1", "c1"]


SCRIPT = """
import sys
from pathlib import Path
from unetpp_workflows.prepare import layout
from unetpp_workflows.prepare.build import Run, prepare
from unetpp_workflows.prepare.dataset import load_dataset
layout.SHARD_BYTES = 2**14
prepare(load_dataset(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), run=Run(workers=2))
"""


def run_and_kill(script: list[str], store: Path, wanted: int) -> bool:
    """Start a preparation and SIGKILL it once `wanted` shards are committed; tell whether it was still at work."""
    with subprocess.Popen(script) as process:
        markers = work_folder(store) / "markers"
        while process.poll() is None and len(list(markers.glob("*.json"))) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def test_a_killed_preparation_continues_to_the_same_bytes(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos({f"{group}{i}": (200, 230) for group in "av" for i in range(2)})
    toml = tmp_path / "d.toml"
    classes = "".join(
        f'[[classes]]\nname = "{c.name}"\ncolor = {list(c.color)}\nbackground = {str(c.background).lower()}\n'
        for c in described(**GLOBS).classes
    )
    data = "".join(f"{key} = {json.dumps(value)}\n" for key, value in GLOBS.items())
    toml.write_text(f"[data]\nside = 32\n{data}{classes}")
    killed, whole_run = tmp_path / "killed/s.zarr", tmp_path / "whole/s.zarr"
    script = [sys.executable, "-c", SCRIPT, str(toml), str(tmp_path)]
    assert run_and_kill([*script, str(killed)], killed, 10)
    kept = {file: file.stat().st_mtime_ns for file in (work_folder(killed) / "markers").glob("*.json")}
    surveys = {file: file.stat().st_mtime_ns for file in (work_folder(killed) / "surveys").glob("*.json")}
    assert len(kept) >= 10
    assert run_and_kill([*script, str(killed)], killed, 25)
    subprocess.run([*script, str(killed)], check=True)
    assert {**kept, **surveys} == {file: file.stat().st_mtime_ns for file in (*kept, *surveys)}
    monkeypatch.setattr("unetpp_workflows.prepare.layout.SHARD_BYTES", 2**14)
    prepare(load_dataset(toml), tmp_path, whole_run)
    assert hashes(killed) == hashes(whole_run)
    assert PatchStore.open(killed).counts.sum() == 4 * 200 * 230


def test_a_torn_shard_is_made_again_before_the_end(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetpp_workflows.prepare import build

    photos({"a1": (100, 100), "v1": (64, 64)})
    reference: Prepared = prepare(described(**GLOBS), tmp_path, tmp_path / "whole/s.zarr")
    monkeypatch.setattr(build, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(described(**GLOBS), tmp_path, tmp_path / "torn/s.zarr")
    with pytest.raises(StoreError, match="not finished"):
        PatchStore.open(tmp_path / "torn/s.zarr")
    shard = tmp_path / "torn/s.zarr/pixels/c/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-100])
    monkeypatch.undo()
    prepare(described(**GLOBS), tmp_path, tmp_path / "torn/s.zarr")
    assert reference.facts is not None
    assert hashes(tmp_path / "torn/s.zarr") == hashes(tmp_path / "whole/s.zarr")


def test_dsb2018_keeps_every_nucleus(data_dir: Path, described: Callable[..., Dataset], tmp_path: Path) -> None:
    names = sorted((data_dir / "dsb2018/images").glob("0*.png"))[:12]
    table = {row.split(",")[0]: row.split(",") for row in (data_dir / "dsb2018/manifest.csv").read_text().splitlines()}
    rows = [f"images/{n.name},labels/{n.name},{table[n.stem][-1]},{table[n.stem][3]}" for n in names]
    for folder in ("images", "labels"):
        (tmp_path / folder).symlink_to(data_dir / "dsb2018" / folder)
    (tmp_path / "t.csv").write_text("\n".join(["image,labels,split,type", *rows]))
    two = [{"name": "no", "color": [0, 0, 0], "background": True}, {"name": "nucleus", "color": [1, 1, 1]}]
    settings = described(two, table="t.csv", stratum="type", instances=True, side=256)
    prepare(settings, tmp_path, tmp_path / "s.zarr")
    store = PatchStore.open(tmp_path / "s.zarr")
    for name in names:
        objects = whole(store, name.stem)[2]
        assert len(np.unique(objects[objects > 0])) == int(table[name.stem][4])
    assert {image.stratum for image in store.source("train").images} <= {
        "fluorescence",
        "purple-white",
        "purple-dense",
        "brightfield-gray",
    }


def test_glass_of_a_slide_keeps_its_pixels_and_loses_its_labels(
    data_dir: Path, described: Callable[..., Dataset], tmp_path: Path
) -> None:
    (tmp_path / "slide.svs").symlink_to(data_dir / "slides/CMU-1-Small-Region.svs")
    (tmp_path / "p.geojson").write_text(
        json.dumps(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1500, 0], [1500, 2900], [0, 2900], [0, 0]]]},
                "properties": {"objectType": "annotation", "classification": {"name": "tree"}},
            }
        )
    )
    (tmp_path / "t.csv").write_text("image,labels,split\nslide.svs,p.geojson,train\n")
    prepared = prepare(described(table="t.csv", spacing="2um", side=64), tmp_path, tmp_path / "s.zarr")
    store = PatchStore.open(tmp_path / "s.zarr")
    pixels, labels, _ = whole(store, "slide")
    tissue = np.asarray(zarr.open_group(tmp_path / "s.zarr", mode="r")["tissue/0"][...])  # type: ignore[index]
    assert store.spacing is not None and str(store.spacing) == "2 um/px" and labels.shape == (740, 554)
    rows, cols = (np.arange(n) * 2 + 1 for n in labels.shape)
    expected = tissue[np.ix_(rows * tissue.shape[0] // 1480, cols * tissue.shape[1] // 1108)]
    assert ((labels != 255) == expected).all()
    off = (labels == 255)[:720, :370]
    assert 0.02 < off.mean() < 0.9 and pixels[:720, :370][off].mean() > 200
    assert any("are not tissue" in str(fault) for fault in prepared.faults)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_peak_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    toml = tmp_path / "d.toml"
    toml.write_text(
        '[data]\ntable = "t.csv"\n[[classes]]\nname = "a"\ncolor = [0, 0, 0]\n'
        '[[classes]]\nname = "b"\ncolor = [1, 1, 1]\n'
    )
    peaks = {}
    for side in (4096, 12288):
        folder = tmp_path / str(side)
        folder.mkdir()
        shape = {"height": side, "width": side, "driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256}
        random = np.random.default_rng(0)
        with (
            rasterio.open(folder / "i.tif", "w", count=3, dtype="uint8", compress="lzw", **shape) as image,
            rasterio.open(folder / "m.tif", "w", count=1, dtype="uint8", compress="lzw", **shape) as mask,
        ):
            for row in range(0, side, 256):
                window = rasterio.windows.Window(0, row, side, 256)
                image.write(random.integers(0, 256, (3, 256, side), np.uint8), window=window)
                mask.write((random.random((1, 256, side)) > 0.5).astype(np.uint8), window=window)
        (folder / "t.csv").write_text("image,labels,split\ni.tif,m.tif,train\n")
        script = [
            sys.executable,
            "-c",
            SCRIPT.replace("2**14", "2**24"),
            str(toml),
            str(folder),
            str(folder / "s.zarr"),
        ]
        with subprocess.Popen(script) as process:
            watched, peaks[side] = psutil.Process(process.pid), 0
            while process.poll() is None:
                try:
                    peaks[side] = max(peaks[side], watched.memory_full_info().pss)
                except psutil.Error:
                    break
                time.sleep(0.05)
        assert process.returncode == 0
    print({side: f"{peak / 2**20:.0f} MB" for side, peak in peaks.items()})
    assert peaks[12288] - peaks[4096] < 100 * 2**20


def test_remote_images_are_stored_as_local_ones_and_told_apart_when_they_change(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path, object_store: Any
) -> None:
    drawn = photos({"a": (70, 100), "v": (40, 90)})
    for name, (pixels, _) in drawn.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", tile=(32, 32))
    uris = {name: object_store.put(tmp_path / f"{name}.tif", f"slides/{name}.tif") for name in drawn}
    rows = "".join(f"{uris[name]},masks/{name}.png,{'val' if name == 'v' else 'train'}\n" for name in drawn)
    (tmp_path / "t.csv").write_text(f"image,labels,split\n{rows}")
    prepared = prepare(described(table="t.csv"), tmp_path, tmp_path / "s.zarr")
    assert not prepared.faults
    store = PatchStore.open(tmp_path / "s.zarr")
    for name, (pixels, labels) in drawn.items():
        found = whole(store, name)
        assert (found[0] == pixels).all() and (found[1] == labels).all()
    assert not prepare(described(table="t.csv"), tmp_path, tmp_path / "s.zarr").fresh

    tifffile.imwrite(tmp_path / "a.tif", 255 - drawn["a"][0], photometric="rgb", tile=(32, 32))
    object_store.put(tmp_path / "a.tif", "slides/a.tif")
    with pytest.raises(StoreError, match="was made from other data"):
        prepare(described(table="t.csv"), tmp_path, tmp_path / "s.zarr")
    prepare(described(table="t.csv"), tmp_path, tmp_path / "new.zarr")
    assert (whole(PatchStore.open(tmp_path / "new.zarr"), "a")[0] == 255 - drawn["a"][0]).all()

    (tmp_path / "t.csv").write_text(
        f"image,labels,split\n{rows}{uris['a'].replace('a.tif', 'gone.tif')},masks/a.png,train\n"
    )
    [fault] = prepare(described(table="t.csv"), tmp_path, tmp_path / "gone.zarr").errors
    assert fault.where == "gone" and "gone.tif" in fault.what
