"""Labels in their source: other readers find them there, the image and foreign labels stay, nothing is done twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image

from unetpp.errors import ModelPackageError, StoreError
from unetpp.finalize import finalize
from unetpp.finalize.source_label import write_source_label
from unetpp.geometry import Box, Spacing
from unetpp.io.base import fingerprint
from unetpp.package import load_package
from unetpp.segment import SegmentJob, ShardWorker, pending, prepare_job

OPTIONS: dict[str, Any] = {"core": 64, "shard": 128, "engine": "torch", "precision": "fp32"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    from ome_zarr.writer import write_image, write_labels
    from skimage.data import immunohistochemistry

    pixels = np.moveaxis(immunohistochemistry()[:200, :260], -1, 0)
    root = tmp_path / "image.ome.zarr"
    group = zarr.open_group(root, mode="w", zarr_format=3)
    write_image(np.ascontiguousarray(pixels), group, axes="cyx", scale={"c": 1, "y": 0.5, "x": 0.5})
    write_labels(np.ones((200, 260), np.uint8), group, name="by hand", axes="yx")
    return root


def segmented(source: Path, out: Path, package: Path, **more: Any) -> SegmentJob:
    job = prepare_job(source, out, package, **OPTIONS, **more)
    worker = ShardWorker(job)
    for shard in pending(job):
        worker.run(shard)
    worker.close()
    finalize(job, formats=[])
    return job


def labels_of(job: SegmentJob) -> NDArray[np.uint8]:
    return job.store.read(Box(0, 0, job.plan.height, job.plan.width))


def test_readers_find_the_label_beside_those_of_others(tmp_path: Path, source: Path, tiny_package: Path) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader
    from ome_zarr_models.v05 import ImageLabel

    def kept() -> dict[Path, bytes]:
        own = source / "labels/unetpp-tiny"
        files = (path for path in source.rglob("*") if path.is_file() and own not in path.parents)
        return {path: path.read_bytes() for path in files if path != source / "labels/zarr.json"}

    job = segmented(source, tmp_path / "out", tiny_package)
    before, identity = kept(), fingerprint(source)
    group = write_source_label(job)
    assert group == source / "labels/unetpp-tiny" and kept() == before
    assert fingerprint(source) == identity, "the next run must not take its own label for a change of the image"
    found = {node.zarr.basename(): node for node in Reader(parse_url(source))() if node.data}
    assert "unetpp-tiny" in found and np.array_equal(np.asarray(found["unetpp-tiny"].data[0]), labels_of(job))
    label = ImageLabel.from_zarr(zarr.open_group(group, mode="r")).ome_attributes
    assert label.image_label.source.image == "../../"
    listed = json.loads((source / "labels/zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert listed == ["by hand", "unetpp-tiny"]
    assert pending(prepare_job(source, tmp_path / "out", tiny_package, **OPTIONS)) == []


@pytest.mark.parametrize("unit", [None, "nanometer"])
@pytest.mark.parametrize("step", [1, 2.5])
def test_the_label_lies_over_its_image(
    tmp_path: Path, source: Path, tiny_package: Path, unit: str | None, step: float
) -> None:
    """In the image's own units, whatever they are, and behind its translations."""
    document = json.loads((source / "zarr.json").read_text())
    multiscale = document["attributes"]["ome"]["multiscales"][0]
    for axis in multiscale["axes"][1:]:
        axis.pop("unit", None)
        axis.update({"unit": unit} if unit else {})
    multiscale["datasets"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [1, 250, 500]},
        {"type": "translation", "translation": [0, 7, 9]},
    ]
    multiscale["coordinateTransformations"] = [
        {"type": "scale", "scale": [1, 2, 1]},
        {"type": "translation", "translation": [0, 100, 0]},
    ]
    renamed = source.rename(tmp_path / "an image.ome.zarr")
    (renamed / "zarr.json").write_text(json.dumps(document))
    job = segmented(renamed, tmp_path / "out", tiny_package)
    job = replace(job, uri=renamed.as_uri(), grid=replace(job.grid, step_y=step, step_x=step))
    label = zarr.open_group(write_source_label(job), mode="r").attrs["ome"]["multiscales"][0]
    assert [axis.get("unit") for axis in label["axes"]] == [unit, unit]
    for level, dataset in enumerate(label["datasets"]):
        scale, shift = (np.array(t[t["type"]]) for t in dataset["coordinateTransformations"])
        for pixel in (np.array([0, 0]), np.array([30, 50])):
            of_image = (pixel + 0.5) * step * 2**level - 0.5
            assert pixel * scale + shift == pytest.approx((of_image * [250, 500] + [7, 9]) * [2, 1] + [100, 0])


def test_another_result_replaces_ours_and_the_same_one_is_left(
    tmp_path: Path, source: Path, tiny_package: Path
) -> None:
    first = segmented(source, tmp_path / "out", tiny_package)
    group = write_source_label(first)
    inode = (group / "zarr.json").stat().st_ino
    write_source_label(first)
    assert (group / "zarr.json").stat().st_ino == inode
    second = segmented(source, tmp_path / "other", tiny_package, region="0,0,90,90")
    write_source_label(second)
    found = np.asarray(zarr.open_array(group / "0", mode="r")[:])
    assert write_source_label(replace(second, uri=f"file://{source}")) == group
    assert np.array_equal(found, labels_of(second)) and not np.array_equal(found, labels_of(first))
    assert sorted(path.name for path in (source / "labels").iterdir()) == ["by hand", "unetpp-tiny", "zarr.json"]


def test_a_killed_copy_is_no_change_of_the_image(
    tmp_path: Path, source: Path, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(source / "labels")
    job = segmented(source, tmp_path / "out", tiny_package)
    copy = shutil.copytree

    def killed(*paths: Path) -> None:
        copy(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copytree", killed)
    with pytest.raises(KeyboardInterrupt):
        write_source_label(job)
    monkeypatch.undo()
    assert fingerprint(source) == job.fingerprint and zarr.open_group(source / "labels", mode="r").attrs["ome"]
    write_source_label(job)
    assert fingerprint(source) == job.fingerprint
    assert sorted(path.name for path in (source / "labels").iterdir()) == ["unetpp-tiny", "zarr.json"]


def test_a_name_that_is_a_path_is_refused(tmp_path: Path, source: Path, tiny_package: Path) -> None:
    spec = load_package(tiny_package).spec
    for name in ("x/../../../escaped", "../x", ".", "..", ".x", "", "x/y", "x\\y", "x\n"):
        with pytest.raises(ModelPackageError, match="cannot name files") as caught:
            replace(spec, name=name)
        assert "\n" not in str(caught.value)
    assert replace(spec, name="Nuclei_v1.2-b").name == "Nuclei_v1.2-b"
    job = segmented(source, tmp_path / "out", tiny_package)
    for name in ("x/../../../escaped", "x/y"):
        with pytest.raises(StoreError, match="is a path; rename the model"):
            write_source_label(replace(job, model_ref={**job.model_ref, "name": name}))
    assert not (tmp_path / "escaped").exists()
    assert [path.name for path in (source / "labels").iterdir() if path.is_dir()] == ["by hand"]


def test_readers_of_consolidated_metadata_find_the_label(tmp_path: Path, source: Path, tiny_package: Path) -> None:
    zarr.consolidate_metadata(source)
    job = segmented(source, tmp_path / "out", tiny_package)
    identity = fingerprint(source)
    for other in (job, segmented(source, tmp_path / "part", tiny_package, region="0,0,100,100")):
        write_source_label(other)
        assert fingerprint(source) == identity
        group = zarr.open_group(source, mode="r")
        assert group.metadata.consolidated_metadata is not None
        found: Any = group["labels/unetpp-tiny/0"]
        assert np.array_equal(found[:], labels_of(other))
        assert group["labels"].attrs["ome"]["labels"] == ["by hand", "unetpp-tiny"]  # type: ignore[call-overload, index]
    before = (source / "zarr.json").read_bytes()
    document = json.loads(before)
    copies = document["consolidated_metadata"]["metadata"]
    document["consolidated_metadata"]["metadata"] = {n: c for n, c in copies.items() if "unetpp" not in n}
    (source / "zarr.json").write_text(json.dumps(document))  # as a call that was killed leaves it
    write_source_label(other)
    assert json.loads((source / "zarr.json").read_bytes()) == json.loads(before)
    zarr.consolidate_metadata(source / "labels")
    write_source_label(job)
    found = zarr.open_group(source / "labels", mode="r")["unetpp-tiny/0"]
    assert np.array_equal(found[:], labels_of(job))


def test_the_only_image_of_a_bioformats2raw_folder_takes_the_label(
    tmp_path: Path, source: Path, tiny_package: Path
) -> None:
    root = tmp_path / "raw.zarr"
    zarr.open_group(root, mode="w", zarr_format=3).attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    source.rename(root / "0")
    job = segmented(root, tmp_path / "out", tiny_package)
    before = fingerprint(root)
    assert write_source_label(job) == root / "0/labels/unetpp-tiny" and fingerprint(root) == before
    found: Any = zarr.open_group(root, mode="r")["0/labels/unetpp-tiny/0"]
    assert np.array_equal(found[:], labels_of(job))


def test_sources_that_take_no_label_are_one_line(tmp_path: Path, source: Path, tiny_package: Path) -> None:
    Image.fromarray(np.full((70, 70, 3), 9, np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(StoreError, match=r"no OME-Zarr 0\.5 image"):
        write_source_label(segmented(tmp_path / "photo.png", tmp_path / "photo", tiny_package))
    other = segmented(source, tmp_path / "other", tiny_package, spacing=Spacing(0.25, 0.25, "um"))
    with pytest.raises(StoreError, match="another pixel size"):
        write_source_label(other)
    zarr.open_group(source / "labels/unetpp-tiny", mode="w")
    with pytest.raises(StoreError, match="did not write"):
        write_source_label(segmented(source, tmp_path / "out", tiny_package))
