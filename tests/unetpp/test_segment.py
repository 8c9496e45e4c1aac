"""One image, one job: shards equal whole-image inference, invalid stays 255, resume and keys never mix results."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.engines import NATIVE, WHOLES
from unetpp import commit, segment, shard_worker, tiling
from unetpp import lock as lock_module
from unetpp.durable import file_sha256
from unetpp.engine import choose_engine
from unetpp.errors import BandsError, CorruptImageError, MaskError, ModelPackageError, StoreError
from unetpp.finalize import finalize
from unetpp.geometry import Box, Spacing
from unetpp.io.resample import GridReader
from unetpp.job import JOB, EngineChoice
from unetpp.model.margins import Margins
from unetpp.package import load_package
from unetpp.segment import SegmentJob, ShardWorker, pending, plan_job, prepare_job, progress

Pixels = NDArray[np.uint8]
OPTIONS: dict[str, Any] = {"core": 64, "shard": 128, "engine": "torch", "precision": "fp32"}


@pytest.fixture(scope="module")
def tissue() -> Pixels:
    """A real stained section, 301 x 413 pixels: neither side is a multiple of anything."""
    from skimage.data import immunohistochemistry

    return np.ascontiguousarray(immunohistochemistry()[:301, :413])


@pytest.fixture
def image(tmp_path: Path, tissue: Pixels) -> Path:
    return save_png(tmp_path / "image.png", tissue)


def save_png(path: Path, pixels: Pixels) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def save_scene(path: Path, pixels: Pixels, nodata: int | None = 0) -> Path:

    height, width, bands = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": pixels.dtype}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5e6)}
    with rasterio.open(path, "w", **profile, **tiles, **place, nodata=nodata) as scene:
        scene.write(np.moveaxis(pixels, -1, 0))
    return path


def run_all(job: SegmentJob) -> NDArray[np.uint8]:
    worker = ShardWorker(job)
    for shard in pending(job):
        worker.run(shard)
    worker.close()
    return job.store.read(Box(0, 0, job.plan.height, job.plan.width))


def whole_image(package: Path, pixels: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the labels of one forward pass of the plain model over all of `pixels`, and where they are no near tie."""
    loaded = load_package(package)
    mean, std = (torch.tensor(v)[:, None, None] for v in (loaded.spec.mean, loaded.spec.std))
    with torch.inference_mode():
        x = (torch.from_numpy(np.moveaxis(pixels, -1, 0).astype(np.float32)) - mean) / std
        logits = loaded.load_model()(x[None])[0].numpy()
    best = np.sort(logits, axis=0)
    sure = best[-1] - best[-2] > 1e-4
    values = np.array([c.value for c in loaded.spec.classes], np.uint8)
    return values[logits.argmax(0)], sure


@pytest.mark.parametrize("engine", ["torch", *NATIVE])
def test_shards_equal_whole_image_inference(
    tmp_path: Path, image: Path, tissue: Pixels, tiny_package: Path, engine: str
) -> None:
    job = prepare_job(image, tmp_path / "out", tiny_package, **{**OPTIONS, "engine": engine})
    labels = run_all(job)
    expected, sure = whole_image(tiny_package, tissue)
    assert sure.mean() > 0.99 and np.array_equal(labels[sure], expected[sure])
    assert min(np.bincount(labels.ravel(), minlength=8)[[0, 1, 7]]) > 500
    assert commit.verify(job.store, job.key) == {}
    state = progress(job)
    assert (state.status, state.shards, state.committed, state.empty) == ("done", 12, 12, 0)
    assert state.counts == {v: int((labels == v).sum()) for v in (0, 1, 7)} and state.valid_px == labels.size
    assert set(state.seconds) == {"read", "compute", "write"}


@pytest.mark.parametrize("engine", ["torch", *NATIVE])
@pytest.mark.parametrize(("core", "shard"), [(32, 32), (128, 256), (1024, 1024)])
def test_labels_do_not_depend_on_tiles_and_shards(
    tmp_path: Path, tissue: Pixels, tiny_package: Path, core: int, shard: int, engine: str
) -> None:
    part = np.ascontiguousarray(tissue[:151, :173] if core == 32 else tissue)
    options = {**OPTIONS, "core": core, "shard": shard, "engine": engine}
    labels = run_all(prepare_job(save_png(tmp_path / "part.png", part), tmp_path / "out", tiny_package, **options))
    expected, sure = whole_image(tiny_package, part)
    assert np.array_equal(labels[sure], expected[sure])


@pytest.mark.parametrize("precision", WHOLES)
def test_whole_numbers_do_not_depend_on_tiles_and_shards(
    tmp_path: Path, image: Path, tissue: Pixels, tiny_package: Path, precision: str
) -> None:
    """Every label is that of one call over the whole image, and no more than they can tell from the definition's."""
    expected = choose_engine(load_package(tiny_package), precision=precision).labels(tissue)
    for core, shard in ((32, 64), (128, 256)):
        options = {**OPTIONS, "core": core, "shard": shard, "engine": "native", "precision": precision}
        labels = run_all(prepare_job(image, tmp_path / f"out{core}", tiny_package, **options))
        np.testing.assert_array_equal(labels, expected)
    plain, _ = whole_image(tiny_package, tissue)
    assert 0 < (labels != plain).mean() < {"int8": 0.05, "int16": 0.005}[precision]


@pytest.mark.parametrize(
    ("options", "core"),
    [
        ({"precision": "int8"}, 2048), ({"precision": "int8", "tta": "d4"}, 1024), ({"precision": "bf16"}, 1024),
        ({"precision": "int8", "maps": ("uncertainty",)}, 1024), ({"precision": "int8", "core": 512}, 512),
        ({"choice": EngineChoice(name="native", version="1", precision="int8", threads=1)}, 2048),
        ({"choice": EngineChoice(name="native", version="1", precision="int8", threads=1, tta="d4")}, 1024),
    ],
)  # fmt: skip
def test_int8_has_larger_tiles_of_large_images(tiny_package: Path, options: Any, core: int) -> None:
    """But where logits are kept, which are as large as ever."""
    image: Any = SimpleNamespace(height=9000, width=8500)
    assert segment._plan(image, load_package(tiny_package).spec, options).core == core


@pytest.mark.parametrize("engine", ["torch", *NATIVE])
@pytest.mark.parametrize("shape", [(1, 1), (3, 130), (64, 64), (65, 67)])
def test_small_images(tmp_path: Path, tissue: Pixels, tiny_package: Path, shape: tuple[int, int], engine: str) -> None:
    pixels = np.ascontiguousarray(tissue[: shape[0], : shape[1]])
    options = {**OPTIONS, "engine": engine}
    labels = run_all(prepare_job(save_png(tmp_path / "i.png", pixels), tmp_path / "o", tiny_package, **options))
    expected, sure = whole_image(tiny_package, pixels)
    assert labels.shape == shape and np.array_equal(labels[sure], expected[sure])


def test_nodata_stays_255_and_the_network_sees_the_mean_there(
    tmp_path: Path, tissue: Pixels, tiny_package: Path
) -> None:
    pixels = np.maximum(tissue, 1)
    pixels[40:200, 100:300] = 0
    pixels[:, 400:] = 0
    invalid = (pixels == 0).all(-1)
    job = prepare_job(save_scene(tmp_path / "scene.tif", pixels), tmp_path / "out", tiny_package, **OPTIONS)
    labels = run_all(job)
    filled = np.where(invalid[..., None], np.array([170, 150, 180], np.uint8), pixels)
    expected, sure = whole_image(tiny_package, filled)
    assert np.array_equal(labels == 255, invalid)
    assert np.array_equal(labels[sure & ~invalid], expected[sure & ~invalid])
    assert progress(job).valid_px == (~invalid).sum()


def test_an_image_without_a_valid_pixel_is_empty_and_writes_no_shard(tmp_path: Path, tiny_package: Path) -> None:
    scene = save_scene(tmp_path / "scene.tif", np.zeros((200, 210, 3), np.uint8))
    job = prepare_job(scene, tmp_path / "out", tiny_package, **OPTIONS)
    assert (run_all(job) == 255).all()
    state = progress(job)
    assert (state.status, state.committed, state.empty, state.valid_px) == ("empty", 4, 4, 0)
    assert not any(job.store.shard_object(shard).exists() for shard in job.plan.shards())
    assert commit.verify(job.store, job.key) == {} and pending(job) == []


def test_the_users_mask_hides_labels_but_not_context(
    tmp_path: Path, image: Path, tissue: Pixels, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.zeros(tissue.shape[:2], np.uint8)
    mask[20:100, 70:120] = 255
    mask[250:, 300:] = 255
    job = prepare_job(image, tmp_path / "out", tiny_package, mask=save_png(tmp_path / "mask.png", mask), **OPTIONS)
    calls = count_tiles(monkeypatch)
    reads: list[Box] = []
    read = GridReader.read
    monkeypatch.setattr(GridReader, "read", lambda self, box: reads.append(box) or read(self, box))
    labels = run_all(job)
    expected, sure = whole_image(tiny_package, tissue)
    assert np.array_equal(labels == 255, mask == 0)
    seen = sure & (mask > 0)
    assert np.array_equal(labels[seen], expected[seen])
    assert len(calls) == 2 + 6, "tiles whose write box the mask hides must not be computed"
    assert len(reads) <= len(calls), "nor read"
    assert (tmp_path / "out" / "validity.png").is_file() and job.validity is not None


def count_tiles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    from unetpp.engine.torch import TorchEngine

    calls: list[tuple[int, ...]] = []
    labels = TorchEngine.labels

    def counted(self: TorchEngine, tile: Pixels, margins: Margins) -> Pixels:
        calls.append(tile.shape)
        return labels(self, tile, margins)

    monkeypatch.setattr(TorchEngine, "labels", counted)
    return calls


@pytest.mark.parametrize("engine", ["torch", *NATIVE])
def test_tiles_of_one_kind_follow_each_other(
    tmp_path: Path, image: Path, tiny_package: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine allocates its buffers anew wherever the kind of tiles changes."""
    from unetpp.engine.native import NativeEngine
    from unetpp.engine.torch import TorchEngine

    kind = NativeEngine if engine == "native" else TorchEngine
    monkeypatch.setattr(tiling, "LEAST_SPARED", 1)  # every kind is one of its own
    kinds: list[Margins] = []
    labels = kind.labels

    def noted(self: Any, tile: Pixels, margins: Margins) -> Pixels:
        kinds.append(margins)
        return labels(self, tile, margins)

    monkeypatch.setattr(kind, "labels", noted)
    options = {**OPTIONS, "core": 32, "shard": 128, "engine": engine}
    job = prepare_job(image, tmp_path / "out", tiny_package, **options)
    worker, last, mixed, continued, seen = ShardWorker(job), None, 0, 0, Counter[Margins]()
    for shard in job.plan.shards():
        kinds.clear()
        worker.run(shard)
        seen.update(kinds)
        changes = sum(a != b for a, b in pairwise(kinds))
        assert changes == len(set(kinds)) - 1
        assert last not in kinds or kinds[0] == last
        mixed, continued, last = mixed + (changes > 0), continued + (last in kinds), kinds[-1]
    assert mixed >= 8 and continued >= 6
    assert seen == job.plan.margin_kinds(exact=engine == "native")


def test_rows_are_read_once_and_never_a_whole_shard(
    tmp_path: Path, image: Path, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes: list[Box] = []
    read = GridReader.read
    monkeypatch.setattr(GridReader, "read", lambda self, box: boxes.append(box) or read(self, box))
    job = prepare_job(image, tmp_path / "out", tiny_package, **{**OPTIONS, "core": 32, "shard": 256})
    for shard in job.plan.shards()[1:3]:
        boxes.clear()
        ShardWorker(job).run(shard)
        window = job.plan.shard_read_box(shard).clip(job.plan.height, job.plan.width)
        for x0 in {box.x0 for box in boxes}:
            assert sum(box.height for box in boxes if box.x0 == x0) == window.height
        assert max(box.width for box in boxes) <= job.plan.tile_shape[1] < window.width


def test_a_second_run_computes_nothing(
    tmp_path: Path, image: Path, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    job = prepare_job(image, out, tiny_package, **OPTIONS)
    first, second = job.plan.shards()[:2]
    worker = ShardWorker(job)
    for shard in (first, second):
        worker.run(shard)
    worker.close()
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (out / "commits").glob("*.json")}
    again = prepare_job(image, out, tiny_package, **OPTIONS)
    assert again == job and [s.id for s in pending(again)] == [s.id for s in job.plan.shards()[2:]]
    run_all(again)
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in before} == before
    calls = count_tiles(monkeypatch)
    run_all(prepare_job(image, out, tiny_package, **OPTIONS))
    assert calls == []


def test_a_damaged_shard_is_made_again(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    job = prepare_job(image, tmp_path / "out", tiny_package, **OPTIONS)
    run_all(job)
    first, second, third = job.plan.shards()[:3]
    wanted = {shard.id: file_sha256(job.store.shard_object(shard)) for shard in job.plan.shards()}
    job.store.shard_object(first).write_bytes(b"")
    job.store.shard_object(second).unlink()
    path = job.store.shard_object(third)
    path.write_bytes(path.read_bytes()[:-9])
    assert [s.id for s in pending(job)] == [first.id, second.id, third.id]
    run_all(job)
    assert {shard.id: file_sha256(job.store.shard_object(shard)) for shard in job.plan.shards()} == wanted


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "core": lambda o: {**o, "core": 32},
    "shard": lambda o: {**o, "shard": 64},
    "threads": lambda o: {**o, "threads": 2},
    "precision": lambda o: {**o, "precision": "bf16"},
    "engine": lambda o: {**o, "engine": "openvino"},
    "tta": lambda o: {**o, "tta": "flips"},
    "spacing": lambda o: {**o, "spacing": Spacing(0.5, 0.5, "um")},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_can_change_the_bytes_changes_the_key(
    tmp_path: Path, image: Path, tiny_package: Path, change: str
) -> None:
    plain, _ = plan_job(image, tmp_path, tiny_package, **OPTIONS)
    other, _ = plan_job(image, tmp_path, tiny_package, **CHANGES[change](OPTIONS))
    assert plain.key != other.key


def test_key_follows_the_input_and_the_mask_but_not_the_folder(
    tmp_path: Path, image: Path, tissue: Pixels, tiny_package: Path
) -> None:
    def key(**more: Any) -> str:
        return plan_job(image, more.pop("out", tmp_path), tiny_package, **OPTIONS, **more)[0].key

    plain = key()
    everywhere = np.full(tissue.shape[:2], 255, np.uint8)
    mask = save_png(tmp_path / "mask.png", everywhere)
    masked = key(mask=mask)
    assert key(out=tmp_path / "elsewhere", model_ref={"version": "4"}) == plain != masked
    everywhere[100, 100] = 0
    save_png(mask, everywhere)
    assert key(mask=mask) != masked
    os.utime(image, ns=(1, 1))
    assert key() != plain


def test_another_key_redoes_everything_and_leaves_nothing_behind(
    tmp_path: Path, image: Path, tiny_package: Path
) -> None:
    out = tmp_path / "out"
    old = prepare_job(image, out, tiny_package, **OPTIONS)
    run_all(old)
    finalize(old)
    (out / "notes.txt").write_text("the user's own")
    job = prepare_job(image, out, tiny_package, **{**OPTIONS, "shard": 256})
    assert len(pending(job)) == len(job.plan.shards()) == 4
    assert not (out / "commits").exists() and (job.store.read(Box(0, 0, 9, 9)) == 255).all()
    labels = run_all(job)
    fresh = run_all(prepare_job(image, tmp_path / "fresh", tiny_package, **{**OPTIONS, "shard": 256}))
    assert np.array_equal(labels, fresh) and len(list((out / "commits").glob("*.json"))) == 4
    assert sorted(p.name for p in out.iterdir()) == [".lock", "commits", "job.json", "labels.ome.zarr", "notes.txt"]


@pytest.mark.parametrize("killed_after", ["job", "commits", "store"])
def test_a_change_of_key_that_was_killed_half_way_is_finished(
    tmp_path: Path, image: Path, tiny_package: Path, monkeypatch: pytest.MonkeyPatch, killed_after: str
) -> None:
    from unetpp import segment

    out = tmp_path / "out"
    old = run_all(prepare_job(image, out, tiny_package, **OPTIONS))
    discard = segment.discard_folder

    def killed(folder: Path) -> None:
        if killed_after == "job" or (killed_after == "commits" and folder.name != "commits"):
            raise KeyboardInterrupt
        discard(folder)
        if folder.name == "labels.ome.zarr":
            raise KeyboardInterrupt

    monkeypatch.setattr(segment, "discard_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_job(image, out, tiny_package, **{**OPTIONS, "shard": 256})
    monkeypatch.undo()
    job = prepare_job(image, out, tiny_package, **OPTIONS)
    assert len(pending(job)) == 12
    assert np.array_equal(run_all(job), old)


def test_a_folder_that_is_not_ours_is_refused_and_kept(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    for name, content in ((JOB, '{"mine": 1}'), (JOB, "not json"), ("labels.ome.zarr", "x"), ("commits/a.json", "{}")):
        out = tmp_path / f"{name}-{len(content)}".replace("/", "-")
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text(content)
        with pytest.raises(StoreError, match="move it away"):
            prepare_job(image, out, tiny_package, **OPTIONS)
        assert (out / name).read_text() == content


def test_files_of_the_user_in_the_images_folder_are_named_and_kept(
    tmp_path: Path, image: Path, tiny_package: Path
) -> None:
    out = tmp_path / "out"
    for name in ("classes.tif", "polygons.gpkg", "labels-0.4.ome.zarr", "finalize", "validity.png", "region.json"):
        out.mkdir()
        (out / name).write_text("drawn by hand")
        with pytest.raises(StoreError, match=rf"out/{name} exists .* move it away") as caught:
            prepare_job(image, out, tiny_package, **OPTIONS)
        assert "\n" not in str(caught.value) and (out / name).read_text() == "drawn by hand"
        assert {path.name for path in out.iterdir()} == {name, ".lock"}
        shutil.rmtree(out)


def test_a_job_is_found_again_in_a_folder_that_moved(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    assert SegmentJob.load(tmp_path) is None
    job = prepare_job(image, tmp_path / "out", tiny_package, model_ref={"version": "3", "alias": "champion"}, **OPTIONS)
    run_all(job)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    found = SegmentJob.load(moved)
    assert found is not None and found == replace(job, out=moved)
    assert found.model_ref["version"] == "3" and found.model_ref["name"] == "tiny" and found.model_ref["digest"]
    assert progress(found).status == "done" and commit.verify(found.store, found.key) == {}


def test_bands_and_sample_type_must_be_the_models(tmp_path: Path, tissue: Pixels, tiny_package: Path) -> None:
    five = save_scene(tmp_path / "five.tif", np.dstack([tissue, tissue[..., :2]]), nodata=None)
    deep = save_scene(tmp_path / "deep.tif", tissue.astype(np.uint16), nodata=None)
    with pytest.raises(BandsError, match=r"five\.tif: 5 bands of uint8 .* needs 3 bands of uint8 \(red, green, blue\)"):
        prepare_job(five, tmp_path / "out", tiny_package, **OPTIONS)
    with pytest.raises(BandsError, match=r"3 bands of uint16 .* needs 3 bands of uint8"):
        prepare_job(deep, tmp_path / "out", tiny_package, **OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [("Blue", "Green", "Red"), ("nir", "red", "green")])
def test_bands_that_say_they_stand_in_another_order_are_refused(
    tmp_path: Path, tissue: Pixels, tiny_package: Path, names: tuple[str, str, str]
) -> None:
    path = save_scene(tmp_path / "other.tif", tissue, nodata=None)
    with rasterio.open(path, "r+") as file:
        file.descriptions = names
    with pytest.raises(BandsError, match=r"other\.tif: its bands are .*, model 'tiny' needs red, green, blue in this"):
        prepare_job(path, tmp_path / "out", tiny_package, **OPTIONS)
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("B4", "B3", "B2")
    prepare_job(path, tmp_path / "out", tiny_package, **OPTIONS)


def test_a_missing_mask_is_an_error(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    with pytest.raises((MaskError, FileNotFoundError)):
        prepare_job(image, tmp_path / "out", tiny_package, mask=tmp_path / "none.png", **OPTIONS)


def test_a_photo_that_viewers_turn_says_so_and_takes_no_mask_that_may_be_turned(
    tmp_path: Path, tissue: Pixels, tiny_package: Path
) -> None:
    photo, mask = Image.fromarray(tissue), save_png(tmp_path / "mask.png", np.full(tissue.shape[:2], 255, np.uint8))
    exif = photo.getexif()
    exif[274] = 3
    photo.save(tmp_path / "photo.png", exif=exif)
    assert plan_job(tmp_path / "photo.png", tmp_path, tiny_package, **OPTIONS)[0].image["orientation"] == 3
    with pytest.raises(MaskError, match=r"orientation 3.* or on the turned one"):
        plan_job(tmp_path / "photo.png", tmp_path, tiny_package, mask=mask, **OPTIONS)
    photo.save(tmp_path / "photo.png")
    assert "orientation" not in plan_job(tmp_path / "photo.png", tmp_path, tiny_package, mask=mask, **OPTIONS)[0].image


def test_a_corrupt_tile_fails_its_shard_only(tmp_path: Path, tissue: Pixels, tiny_package: Path) -> None:
    import tifffile

    scene = save_scene(tmp_path / "scene.tif", np.maximum(tissue, 1))
    with tifffile.TiffFile(scene) as tiff:
        start, size = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    with scene.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * size)
    job = prepare_job(scene, tmp_path / "out", tiny_package, **OPTIONS)
    worker = ShardWorker(job)
    with pytest.raises(CorruptImageError, match=r"scene\.tif") as caught:
        worker.run(job.plan.shards()[0])
    assert "\n" not in str(caught.value)
    for shard in job.plan.shards()[3:]:
        worker.run(shard)
    assert progress(job).committed == 9 and job.plan.shards()[0] in pending(job)


def test_a_package_that_changed_is_not_used(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    import shutil

    package = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    job = prepare_job(image, tmp_path / "out", package, **OPTIONS)
    text = (package / "model.json").read_text()
    (package / "model.json").write_text(text.replace('"blue"', '"green"'))
    with pytest.raises(ModelPackageError, match="changed after"):
        ShardWorker(job)


def test_two_runs_never_share_a_folder(
    tmp_path: Path, image: Path, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "WAIT_S", 0.2)
    job = prepare_job(image, tmp_path / "out", tiny_package, **OPTIONS)
    first, second = ShardWorker(job), ShardWorker(job)
    other = {**OPTIONS, "shard": 256}
    with pytest.raises(StoreError, match="in use by another run"):
        prepare_job(image, tmp_path / "out", tiny_package, **other)
    first.run(job.plan.shards()[0])
    first.close()
    second.close()
    prepare_job(image, tmp_path / "out", tiny_package, **other)
    with pytest.raises(StoreError, match="another job"):
        ShardWorker(job)


def test_engines_are_made_once_per_process(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    job = prepare_job(image, tmp_path / "out", tiny_package, **OPTIONS)
    workers = [ShardWorker(job) for _ in range(2)]
    assert (
        workers[0]._engine
        is workers[1]._engine
        is shard_worker.shared_engine(load_package(tiny_package), name="torch", precision="fp32")
    )
    for worker in workers:
        worker.close()


def test_a_validity_mask_that_changed_is_not_used(
    tmp_path: Path, image: Path, tissue: Pixels, tiny_package: Path
) -> None:
    mask = save_png(tmp_path / "mask.png", np.full(tissue.shape[:2], 255, np.uint8))
    job = prepare_job(image, tmp_path / "out", tiny_package, mask=mask, **OPTIONS)
    save_png(tmp_path / "out" / "validity.png", np.zeros(tissue.shape[:2], np.uint8))
    with pytest.raises(StoreError, match="not the mask"):
        ShardWorker(job)
    for content in (b"", b"no image", mask.read_bytes()[:60]):
        (tmp_path / "out" / "validity.png").write_bytes(content)
        with pytest.raises(StoreError, match="cannot be read"):
            ShardWorker(job)
    (tmp_path / "out" / "validity.png").unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        ShardWorker(job)
    prepare_job(image, tmp_path / "out", tiny_package, mask=mask, **OPTIONS)
    ShardWorker(job).close()


def test_a_mask_past_pillows_limit_is_read_back(
    tmp_path: Path, image: Path, tissue: Pixels, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = save_png(tmp_path / "mask.png", np.full(tissue.shape[:2], 255, np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(mask)
    found = prepare_job(image, tmp_path / "out", tiny_package, mask=mask, **OPTIONS).validity_mask()
    assert found is not None and found.mask.shape == tissue.shape[:2] and found.mask.all()


def test_finalize_waits_for_workers(
    tmp_path: Path, image: Path, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "WAIT_S", 0.2)
    job = prepare_job(image, tmp_path / "out", tiny_package, **OPTIONS)
    worker = ShardWorker(job)
    with pytest.raises(StoreError, match="in use by another run"):
        finalize(job)
    worker.close()
    finalize(job)


def test_results_from_before_maps_regions_and_places_are_kept_and_completed(
    tmp_path: Path, tissue: Pixels, tiny_package: Path
) -> None:
    """Fields that came later are missing in older results of the same format: nothing is computed again for that."""
    scene, out = save_scene(tmp_path / "scene.tif", np.maximum(tissue, 1)), tmp_path / "out"
    job = prepare_job(scene, out, tiny_package, **OPTIONS)
    labels = run_all(job)
    before = {path: path.read_bytes() for path in (out / "labels.ome.zarr").rglob("*") if path.is_file()}
    for path, later in ((out / JOB, ("maps", "region", "region_hash")), *((p, ("maps",)) for p in commits(out))):
        values = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in values.items() if name not in later}))
    shutil.rmtree(out / "labels.ome.zarr/classes/spatial_ref")
    level = out / "labels.ome.zarr/classes/0/zarr.json"
    level.write_text(json.dumps({**json.loads(level.read_text()), "attributes": {}}))
    older = SegmentJob.load(out)
    assert older is not None and (older.key, older.maps, older.region) == (job.key, (), None)
    again = prepare_job(scene, out, tiny_package, **OPTIONS)
    assert pending(again) == [] and commit.verify(again.store, again.key) == {}
    assert np.array_equal(run_all(again), labels)
    assert {path: path.read_bytes() for path in before} == before, "the place of the scene is added"


def commits(out: Path) -> list[Path]:
    return sorted((out / commit.COMMITS).glob("*.json"))
