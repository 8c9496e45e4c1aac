"""Maps beside the labels: equal to whole-image inference whatever the shards, quantized as documented, resumed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import jensenshannon

from tests.engines import ENGINES
from unetpp import commit
from unetpp.durable import file_sha256
from unetpp.errors import ArchitectureError
from unetpp.finalize import finalize
from unetpp.geometry import Box
from unetpp.maps import MapStore, dequantize
from unetpp.package import Package, load_package, save_package
from unetpp.segment import SegmentJob, ShardWorker, pending, prepare_job

Bytes = NDArray[np.uint8]
OPTIONS: dict[str, Any] = {"core": 64, "shard": 128, "engine": "torch", "precision": "fp32"}
BOTH = ("probabilities", "uncertainty")


@pytest.fixture(scope="module")
def pixels() -> Bytes:
    from skimage.data import immunohistochemistry

    return np.ascontiguousarray(immunohistochemistry()[:301, :413])


@pytest.fixture
def image(tmp_path: Path, pixels: Bytes) -> Path:
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def run(job: SegmentJob, count: int | None = None) -> None:
    worker = ShardWorker(job)
    for shard in pending(job)[:count]:
        worker.run(shard)
    worker.close()


def whole(package: Path, pixels: Bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (K, H, W) probabilities of the deepest head and (H, W) distances, by scipy, of one forward pass."""
    loaded = load_package(package)
    mean, std = (torch.tensor(v)[:, None, None] for v in (loaded.spec.mean, loaded.spec.std))
    with torch.inference_mode():
        x = (torch.from_numpy(np.moveaxis(pixels, -1, 0).astype(np.float32)) - mean) / std
        first, second = (torch.softmax(h[0].double(), 0).numpy() for h in loaded.load_model().heads(x[None]))
    return second, jensenshannon(first, second, axis=0, base=2)


def stored(job: SegmentJob, kind: str, level: int = 0) -> Bytes:
    store = next(store for store in job.map_stores if store.kind == kind)
    height, width = store.shape(level)[-2:]
    return store.read(Box(0, 0, height, width), level)


def test_maps_equal_whole_image_inference(tmp_path: Path, image: Path, pixels: Bytes, tiny_package: Path) -> None:
    job = prepare_job(image, tmp_path / "out", tiny_package, maps=BOTH, **OPTIONS)
    run(job)
    probabilities, distance = whole(tiny_package, pixels)
    for kind, expected in (("probabilities", probabilities), ("uncertainty", distance[None])):
        found = stored(job, kind)
        assert found.shape == expected.shape and np.ptp(found) > 60
        # Half a step, and what 1e-5 of a logit moves.
        assert np.abs(dequantize(found) - expected).max() <= 0.5 / 254 + 1e-4
    labels = job.store.read(Box(0, 0, 301, 413))
    top = np.sort(probabilities, axis=0)
    sure = top[-1] - top[-2] > 1e-4
    assert np.array_equal(labels[sure], np.array([0, 1, 7])[probabilities.argmax(0)][sure])
    assert commit.verify(job.store, job.key) == {}


def test_maps_do_not_depend_on_shards_nor_on_an_interruption(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    found = {}
    for shard in (64, 128, 256):
        job = prepare_job(image, tmp_path / str(shard), tiny_package, maps=BOTH, **{**OPTIONS, "shard": shard})
        run(job, 2)
        job = prepare_job(image, tmp_path / str(shard), tiny_package, maps=BOTH, **{**OPTIONS, "shard": shard})
        assert len(pending(job)) == len(job.plan.shards()) - 2
        run(job)
        found[shard] = [stored(job, kind) for kind in BOTH]
    for kind in (0, 1):
        assert np.array_equal(found[64][kind], found[128][kind]) and np.array_equal(found[64][kind], found[256][kind])


@pytest.mark.parametrize("network", ["one logit", "pruned"])
def test_one_logit_and_pruned_networks(tmp_path: Path, pixels: Bytes, network: str) -> None:
    package = make_package(tmp_path / "model", one_logit=network == "one logit")
    from unetpp.engine import choose_engine

    for name in ENGINES:
        engine = choose_engine(package, name=name, precision="fp32")
        planes = engine.layers(pixels[:70, :90], BOTH)
        expected, distance = (
            whole(package.folder, pixels[:70, :90]) if network != "one logit" else sigmoids(package, pixels)
        )
        assert planes.shape == (4, 70, 90)
        assert np.abs(planes[1:3] / 254 - expected).max() <= 0.5 / 254 + 1e-4
        assert np.abs(planes[3] / 254 - distance).max() <= 0.5 / 254 + 1e-4
        assert (engine.layers(pixels[:70, :90], ("uncertainty",))[1] == planes[3]).all()
        assert (planes[0] == engine.labels(pixels[:70, :90])).mean() > 0.999


def sigmoids(package: Package, pixels: Bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean, std = (torch.tensor(v)[:, None, None] for v in (package.spec.mean, package.spec.std))
    with torch.inference_mode():
        x = (torch.from_numpy(np.moveaxis(pixels[:70, :90], -1, 0).astype(np.float32)) - mean) / std
        heads = [torch.sigmoid(h[0, 0].double()).numpy() for h in package.load_model().heads(x[None])]
    pairs = [np.stack([1 - p, p]) for p in heads]
    return pairs[-1], jensenshannon(*pairs, axis=0, base=2)


def make_package(folder: Path, *, one_logit: bool = False, heads: bool = True) -> Package:
    from unetpp.model import GridConfig, UNetPlusPlus
    from unetpp.package import ClassInfo, ModelSpec

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = GridConfig(classes=1 if one_logit else 2, filters=(4, 8, 8, 8), deep_supervision=heads)
        model = UNetPlusPlus(config).eval()
        model = model.prune(2) if heads else model
    for head in model.head_convs.values():
        head.weight.data *= 3
    classes = (
        ClassInfo(value=0, name="background", color=(0, 0, 0), background=True),
        ClassInfo(value=1, name="cell", color=(200, 0, 0)),
    )
    bands = ("red", "green", "blue")
    mean, std = (170.4, 150.0, 180.0), (60.0, 50.0, 40.0)
    spec = ModelSpec(name="m", architecture=model.config, classes=classes, bands=bands, mean=mean, std=std)
    return save_package(folder, model, spec, "Random.")


def test_one_head_cannot_disagree(tmp_path: Path, image: Path) -> None:
    package = make_package(tmp_path / "model", heads=False)
    with pytest.raises(ArchitectureError, match="has one head"):
        prepare_job(image, tmp_path / "out", package, maps=["uncertainty"], **OPTIONS)


def test_deployed_networks_have_the_same_heads(tmp_path: Path, pixels: Bytes) -> None:
    from unetpp.model.deploy import deploy

    package = make_package(tmp_path / "model")
    deployed = deploy(
        package.load_model(), mean=package.spec.mean, std=package.spec.std, values=[0, 1], dtype=torch.float32
    )
    mean, std = (torch.tensor(v) for v in (package.spec.mean, package.spec.std))
    x = torch.from_numpy(pixels[None, :64, :96])
    with torch.no_grad():
        expected = package.load_model().heads(((x - mean) / std).permute(0, 3, 1, 2))
    for found, truth in zip(deployed.heads(x), expected, strict=True):
        assert (found - truth).abs().max() < 1e-4 * truth.abs().max()


def test_a_map_that_is_damaged_or_missing_is_made_again(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    job = prepare_job(image, tmp_path / "out", tiny_package, maps=BOTH, **OPTIONS)
    run(job)
    before = stored(job, "uncertainty")
    first, second = job.plan.shards()[:2]
    store = job.map_stores[1]
    store.shard_object(first).unlink()
    damaged = store.shard_object(second)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert [shard.id for shard in pending(job)] == [first.id]
    faults = commit.verify(job.store, job.key)
    assert set(faults) == {first.id, second.id} and "uncertainty.ome.zarr changed" in faults[second.id]
    commit.revoke(job.store, second)
    run(job)
    assert np.array_equal(stored(job, "uncertainty"), before) and commit.verify(job.store, job.key) == {}


def test_asking_for_less_keeps_the_maps_and_asking_for_more_starts_anew(
    tmp_path: Path, image: Path, tiny_package: Path
) -> None:
    out = tmp_path / "out"
    plain = prepare_job(image, out, tiny_package, **OPTIONS)
    run(plain)
    job = prepare_job(image, out, tiny_package, maps=BOTH, **OPTIONS)
    assert job.key != plain.key and len(pending(job)) == 12
    run(job)
    assert pending(prepare_job(image, out, tiny_package, **OPTIONS)) == []
    assert pending(prepare_job(image, out, tiny_package, maps=BOTH[:1], **OPTIONS)) == []
    other = prepare_job(image, out, tiny_package, **{**OPTIONS, "core": 128})
    assert other.maps == () and not (out / "uncertainty.ome.zarr").exists()


def test_pyramids_are_means_of_what_is_valid(tmp_path: Path, pixels: Bytes, tiny_package: Path) -> None:
    large = np.tile(pixels, (2, 2, 1))[:601, :701]
    Image.fromarray(large).save(tmp_path / "large.png")
    mask = np.zeros(large.shape[:2], np.uint8)
    mask[:401, 101:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    job = prepare_job(
        tmp_path / "large.png", tmp_path / "out", tiny_package, maps=BOTH, mask=tmp_path / "mask.png", **OPTIONS
    )
    run(job)
    figures = finalize(job)
    assert figures.outputs["uncertainty"] == "uncertainty.ome.zarr"
    for kind in BOTH:
        below, above = stored(job, kind).astype(float), stored(job, kind, 1)
        below[below == 255] = np.nan
        assert above.shape == (len(below), 301, 351) and np.isnan(below[0]).sum() == (mask == 0).sum()
        padded = np.pad(below, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
        quads = padded.reshape(len(below), 301, 2, 351, 2)
        with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning, match="empty slice"):
            means = np.nanmean(quads, axis=(2, 4))
        expected = np.where(np.isnan(means), 255, np.floor(means + 0.5))
        assert np.array_equal(above, expected)
    attention = figures.attention
    assert attention is not None
    values = stored(job, "uncertainty")[0]
    valid = values != 255
    assert attention["mean"] == pytest.approx(values[valid].mean() / 254, abs=1e-6)
    best = attention["regions"][0]
    cells = {
        (x, y): values[y : y + 512, x : x + 512][valid[y : y + 512, x : x + 512]].mean() / 254
        for y in (0, 512)
        for x in (0, 512)
        if valid[y : y + 512, x : x + 512].mean() >= 0.25
    }
    assert (best["x"], best["y"]) == max(cells, key=lambda place: cells[place])
    assert [region["mean"] for region in attention["regions"]] == pytest.approx(sorted(cells.values())[::-1], abs=1e-6)


def test_other_readers_open_the_maps(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    from napari_ome_zarr import napari_get_reader
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    job = prepare_job(image, tmp_path / "out", tiny_package, maps=BOTH, **OPTIONS)
    run(job)
    finalize(job)
    folder = job.out / "probabilities.ome.zarr"
    node = next(iter(Reader(parse_url(folder))()))
    assert np.array_equal(np.asarray(node.data[0]), stored(job, "probabilities"))
    assert [axis["name"] for axis in node.metadata["axes"]] == ["c", "y", "x"]
    read = napari_get_reader(str(folder))
    assert read is not None
    ((levels, metadata, kind),) = read(str(folder))
    assert kind == "image" and metadata["channel_axis"] == 0
    assert np.array_equal(np.asarray(levels[0]), stored(job, "probabilities"))
    group = zarr.open_group(folder, mode="r")
    assert group.attrs["unetpp"]["quantization"] == {"scale": 1 / 254, "offset": 0.0, "no_data": 255}  # type: ignore[index]
    assert len([path for path in (folder / "0" / "c").rglob("*") if path.is_file()]) == 12


def test_instances_have_their_mean_probability(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    import json

    from skimage.draw import polygon2mask

    tables = []
    for shard in (64, 256):
        options = {**OPTIONS, "shard": shard}
        job = prepare_job(image, tmp_path / str(shard), tiny_package, maps=["probabilities"], **options)
        run(job)
        finalize(job, formats=["geojson"], instances=True)
        tables.append(pq.read_table(job.out / "instances.parquet").to_pylist())
    columns = ("centroid_y_px", "centroid_x_px", "class", "probability_mean")
    first, second = ({tuple(row[name] for name in columns) for row in table} for table in tables)
    assert first == second and len(first) > 5 and min(row[-1] for row in first) > 0.1
    probabilities = stored(job, "probabilities")
    features = json.loads((job.out / "polygons.geojson").read_text())["features"]
    for feature, row in zip(features, tables[1], strict=True):
        # Centres of pixels are at .5 of the polygon's lattice.
        shell, *holes = ([[y - 0.5, x - 0.5] for x, y in ring] for ring in feature["geometry"]["coordinates"])
        inside = polygon2mask((301, 413), shell)
        for hole in holes:
            inside &= ~polygon2mask((301, 413), hole)
        plane = {1: 1, 7: 2}[row["class"]]
        assert inside.sum() == row["area_px"]
        assert row["probability_mean"] == pytest.approx(probabilities[plane][inside].mean() / 254, abs=1e-9)
        assert feature["properties"]["measurements"]["Mean probability"] == row["probability_mean"]


def test_a_store_for_other_classes_is_another_shape(tmp_path: Path, image: Path, tiny_package: Path) -> None:
    job = prepare_job(image, tmp_path / "out", tiny_package, maps=["probabilities"], **OPTIONS)
    fewer = replace(job, classes=job.classes[:2]).map_stores[0]
    assert isinstance(fewer, MapStore) and fewer.planes == 2
    with pytest.raises(Exception, match="has shape"):
        fewer.read(Box(0, 0, 1, 1))


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import zarr, scipy.sparse.csgraph, skimage.measure
import unetpp.finalize.attention, unetpp.finalize.pieces, unetpp.finalize.pyramid, unetpp.finalize.vectors
from unetpp.finalize import finalize
from unetpp.segment import ShardWorker, pending, prepare_job

def start(folder):
    child = os.fork()
    if child:
        return child
    options = {"core": 64, "shard": 128, "engine": "torch", "precision": "fp32"}
    job = prepare_job(sys.argv[1], folder, Path(sys.argv[2]), maps=["probabilities", "uncertainty"], **options)
    worker = ShardWorker(job)
    for shard in pending(job):
        worker.run(shard)
    worker.close()
    finalize(job, formats=[])
    os._exit(0)

whole, killed = Path(sys.argv[3], "whole"), Path(sys.argv[3], "killed")
began = time.perf_counter()
assert os.waitpid(start(whole), 0)[1] == 0
duration = time.perf_counter() - began
chance, kills = random.Random(5), 0
for attempt in range(100):
    child = start(killed)
    if attempt < 6:
        time.sleep(chance.uniform(0.05, 0.4) * duration)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    kills += 1
print(kills)
"""


@pytest.mark.slow
def test_killed_at_random_points_maps_end_with_the_same_bytes(
    tmp_path: Path, pixels: Bytes, tiny_package: Path
) -> None:
    large = np.tile(pixels, (2, 2, 1))[:601, :551]
    Image.fromarray(large).save(tmp_path / "large.png")
    command = [sys.executable, "-c", KILLER, str(tmp_path / "large.png"), str(tiny_package), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1

    def written(folder: Path) -> dict[str, str]:
        files = (path for path in folder.glob("*.ome.zarr/**/*") if path.is_file())
        return {str(path.relative_to(folder)): file_sha256(path) for path in files}

    expected = written(tmp_path / "whole")
    assert "uncertainty.ome.zarr/1/c/0/0/0" in expected and "probabilities.ome.zarr/0/c/0/4/4" in expected
    assert written(tmp_path / "killed") == expected
    figures = [(tmp_path / name / "finalize/uncertainty.json").read_bytes() for name in ("whole", "killed")]
    assert figures[0] == figures[1]
