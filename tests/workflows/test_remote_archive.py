"""A remote archive on a real S3 server with faults in between: every byte of output is that of the local archive."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from PIL import Image
from rasterio.transform import from_origin
from rich.console import Console

from tests.object_store import BUCKET, ObjectStore
from unetpp.errors import ConfigError
from unetpp_workflows import pipeline
from unetpp_workflows.config import load_config
from unetpp_workflows.inputs import expand
from unetpp_workflows.pipeline import start_call
from unetpp_workflows.plan import print_plan

FAST = ("tracking.enabled=false", "engine.name=torch", "engine.precision=fp32", "tiling.core=64", "executor.workers=2")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A COG-like scene, a Zarr image in a folder, a picture, and what is none."""
    folder = tmp_path / "archive"
    (folder / "north").mkdir(parents=True)
    pixels = np.kron(np.random.default_rng(3).choice([20, 220], (3, 30, 40)), np.ones((1, 8, 8))).astype(np.uint8)
    place = {"crs": "EPSG:32636", "transform": from_origin(450_000, 40_000, 0.5, 0.5)}
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    with rasterio.open(folder / "scene.tif", "w", "GTiff", 320, 240, 3, dtype="uint8", **place, **options) as file:
        file.write(pixels)
    zarr.create_array(folder / "north/chunks.zarr", data=pixels, chunks=(3, 64, 64), shards=(3, 128, 128))
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(folder / "picture.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every result that does not name its input, by path; ids of objects come from the ETag."""
    kept = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    suffixes = (".geojson", ".tif", ".png")
    kept = [file for file in kept if ".zarr/" in file.as_posix() or file.suffix in suffixes]
    plain = {file: re.sub(rb'"id": ?"[0-9a-f-]{36}"', b"", file.read_bytes()) for file in kept}
    return {file.relative_to(folder).as_posix(): hashlib.sha256(data).hexdigest() for file, data in plain.items()}


def faults(*items: str | Path) -> list[str]:
    """Return why inputs name no image, of those that do not."""
    return list(expand(items)[1].values())


@pytest.fixture
def run(ink_package: Path, tmp_path: Path) -> Callable[..., Any]:
    def call(item: str, output: str) -> Any:
        console = Console(file=io.StringIO())
        return pipeline.segment(
            [item], ink_package, tmp_path / output, config=load_config(sets=list(FAST)), console=console
        )

    return call


def test_a_remote_archive_gives_the_bytes_of_the_local_one(
    run: Any, archive: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    local = run(str(archive), "local")
    object_store.put(archive, "slides/2026")
    object_store.proxy.misbehave("error", "cut", "reset", "short")
    uri = f"s3://{BUCKET}/slides/2026/"
    remote = run(uri, "remote")
    assert local.exit_code == remote.exit_code == 0
    assert [image.uri.removeprefix(uri) for image in remote.images] == [
        Path(image.uri).relative_to(archive).as_posix() for image in local.images
    ]
    assert sum(object_store.proxy.seen.values()) > 20
    hashes = _hashes(tmp_path / "local")
    assert any("/c/" in name for name in hashes) and hashes == _hashes(tmp_path / "remote")

    again = run(uri, "remote")
    assert [image.reused for image in again.images] == [True] * 3, "ETags have not changed"
    shutil.copy(archive / "picture.png", tmp_path / "picture.png")
    with (tmp_path / "picture.png").open("ab") as file:
        file.write(b"\0")
    object_store.put(tmp_path / "picture.png", "slides/2026/picture.png")
    assert [image.reused for image in run(uri, "remote").images] == [True, False, True]


def test_a_remote_collection_whose_bands_are_files_of_their_own(
    run: Any, archive: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    """Two STAC items with an asset per band, one of them with pixels twice as large, beside the stacked image."""
    with rasterio.open(archive / "scene.tif") as file:
        planes, place = file.read(), {"crs": file.crs, "transform": file.transform}
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "dtype": "uint16", **place}
    (tmp_path / "items").mkdir()
    for name, plane in zip(("red", "green", "blue"), planes, strict=True):
        # Every block of the picture is 8 x 8 px: half of the pixels say as much.
        half = {"transform": from_origin(450_000, 40_000, 1, 1)} if name == "blue" else {}
        stored = (plane[::2, ::2] if half else plane).astype(np.uint16) * 10 + 1000
        size = {"width": stored.shape[1], "height": stored.shape[0], "count": 1, **options, **half}
        with rasterio.open(tmp_path / f"items/{name}.tif", "w", "GTiff", **size) as file:
            file.write(stored, 1)
    assets = {
        name: {"href": f"./{name}.tif", "type": "image/tiff", "roles": ["data"],
               "bands": [{"name": name, "raster:scale": 1e-4, "raster:offset": -0.1}]}
        for name in ("red", "green", "blue")
    }  # fmt: skip
    items = [{"type": "Feature", "stac_version": "1.1.0", "id": key, "assets": assets} for key in ("May", "June")]
    (tmp_path / "items/search.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    object_store.put(tmp_path / "items", "sentinel")
    object_store.proxy.misbehave("error", "cut", "short")
    path = tmp_path / "sentinel.bands.toml"
    bands = ", ".join(f'{{ asset = "{name}", scale = 1000 }}' for name in assets)
    path.write_text(
        f'items = "s3://{BUCKET}/sentinel/search.json"\nphysical = true\ndtype = "uint8"\nbands = [{bands}]\n'
    )
    run(str(archive / "scene.tif"), "alone")
    summary = run(str(path), "remote")
    assert [(image.name, image.status) for image in summary.images] == [("May", "done"), ("June", "done")]
    wanted = {name: data for name, data in _hashes(tmp_path / "alone/scene").items() if "/c/" in name}
    for name in ("May", "June"):
        found = _hashes(tmp_path / "remote" / name)
        assert wanted and {part: found[part] for part in wanted} == wanted
    assert [image.reused for image in run(str(path), "remote").images] == [True, True]
    [fault] = faults(f"s3://{BUCKET}/sentinel/search.json")
    assert "'May' has several images (red, green, blue)" in fault


def test_an_image_that_never_comes_fails_alone(run: Any, archive: Path, object_store: ObjectStore) -> None:
    uri = object_store.put(archive, "flaky") + "/"
    object_store.proxy.misbehave("error", times=10_000, ending="scene.tif")
    summary = run(uri, "flaky")
    states = {image.name: image.status for image in summary.images}
    assert states == {"chunks": "done", "picture": "done", "scene": "failed"} and summary.exit_code == 1
    assert "scene.tif: no complete answer after 8 attempts" in str(summary.images[-1].message)


def test_remote_manifests(archive: Path, object_store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri,name\n./scene.tif,One\ns3://other/two.tif,\n")
    uri = object_store.put(tmp_path / "list.csv", "lists/list.csv")
    assert [(entry.uri, entry.name) for entry in expand([uri])[0]] == [
        (f"s3://{BUCKET}/lists/scene.tif", "One"),
        ("s3://other/two.tif", ""),
    ]
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": "S2",
        "assets": {"v": {"href": "../v.tif", "type": "image/tiff"}},
    }
    (tmp_path / "item.json").write_text(json.dumps(item))
    uri = object_store.put(tmp_path / "item.json", "lists/deep/item.json")
    assert [(entry.uri, entry.name) for entry in expand([uri])[0]] == [(f"s3://{BUCKET}/lists/v.tif", "S2")]


def test_a_remote_mask_counts_as_a_local_one_does(
    run: Any, archive: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[:12] = 1
    Image.fromarray(mask).save(archive / "mask.png")
    (archive / "list.csv").write_text("uri,mask\nscene.tif,mask.png\n")
    object_store.put(archive, "masked")
    uri = f"s3://{BUCKET}/masked/list.csv"
    local, remote = run(str(archive / "list.csv"), "local"), run(uri, "remote")
    assert local.images[0].record.figures["valid_px"] == remote.images[0].record.figures["valid_px"] == 120 * 320
    assert _hashes(tmp_path / "local") == _hashes(tmp_path / "remote")
    assert run(uri, "remote").images[0].reused
    Image.fromarray(mask[::-1]).save(archive / "mask.png")
    object_store.put(archive / "mask.png", "masked/mask.png")
    assert not run(uri, "remote").images[0].reused
    with pytest.raises(ConfigError, match=r"mask s3://archive/masked/none.png: no such object"):
        start_call(load_config(sets=[f"input.mask=s3://{BUCKET}/masked/none.png", "model=nuclei"]), None, {})
    (archive / "list.csv").write_text("uri,mask\nscene.tif,https://host/m.png?signature=hunter2\n")
    assert "with a password or a query" in faults(archive / "list.csv")[0]


def test_prefixes_without_images_and_uris_with_secrets(object_store: ObjectStore, run: Any, tmp_path: Path) -> None:
    prefix, scheme = faults(f"s3://{BUCKET}/nowhere/", "ftp://host/a.tif")
    assert "no image below this prefix" in prefix and "cannot be read; give a path, or a URI of" in scheme
    summary = run("https://host/a.tif?signature=hunter2", "secret")
    assert summary.exit_code == 1
    written = [file.read_text(errors="ignore") for file in (tmp_path / "secret").rglob("*") if file.is_file()]
    assert not any("hunter2" in text for text in [*written, str(summary.images)])


def test_the_plan_of_a_remote_archive(archive: Path, object_store: ObjectStore, ink_package: Path) -> None:
    uri = object_store.put(archive, "planned") + "/"
    text = io.StringIO()
    config = load_config(sets=list(FAST)).model_copy(update={"model": str(ink_package)})
    assert print_plan([uri], config, None, Console(file=text, width=200)) == 0
    assert "3 images" in text.getvalue() and "scene" in text.getvalue()
