"""MLflow runs on a real SQLite store: what they hold, that a resumed job keeps its run, and what may never be there."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from unetpp.errors import RegistryError
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.package import ClassInfo, ModelSpec, Package, save_package
from unetpp_workflows.mlflow_store import init_store
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.registry import model_id, register_package
from unetpp_workflows.tracking import SEGMENTATION, flat, log, log_segmentation, numbers

CLASSES = (
    ClassInfo(value=0, name="background", color=(0, 0, 0), background=True),
    ClassInfo(value=1, name="tumour (invasive)", color=(200, 0, 0)),
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    torch.manual_seed(0)
    config = GridConfig(bands=3, classes=1, filters=(2, 4))
    spec = ModelSpec(
        name="toy",
        architecture=config,
        classes=CLASSES,
        bands=("R", "G", "B"),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        training={"data": "toy set", "minutes": 3},
        metrics={"val": {"iou": 0.75}},
    )
    return save_package(tmp_path_factory.mktemp("package"), UNetPlusPlus(config), spec, "# toy")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, package: Package) -> str:
    """A store in which `toy` version 1 is registered."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    register_package(package.folder, tracking_uri=uri)
    return uri


def make_record(package: Package, key: str, **changes: Any) -> ImageRecord:
    return dataclasses.replace(
        ImageRecord(
            name="slide-1",
            status="done",
            key=key,
            input={"uri": "archive/slide-1.svs", "fingerprint": "f" * 64, "kind": "slide", "height": 96, "width": 128},
            model={"name": "toy", "version": "1", "digest": package.digest, "alias": "champion"},
            engine={"name": "torch", "version": "2.13", "precision": "fp32", "threads": 1},
            plan={"height": 96, "width": 128, "core": 64, "halo": 16, "tile_shape": [96, 96]},
            figures={
                "valid_px": 12_288,
                "classes": [
                    {"name": "background", "px": 12_000, "area": 0.012, "unit": "mm2", "objects": None},
                    {"name": "tumour (invasive)", "px": 288, "area": 0.000288, "unit": "mm2", "objects": 7},
                ],
            },
            iou={"tumour (invasive)": 0.8125},
            shards={"total": 4, "valid_px": 3_000_000},
            seconds={"read": 0.5, "compute": 1.5, "write": 1.0, "finalize": 9.0},
            started="2026-01-02T03:04:05+00:00",
            config_hash="c0ffee",
            software={"unetpp": "0.1.0"},
            executor={"kind": "ray"},
        ),
        **changes,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report.html").write_text("<html>report</html>")
    (tmp_path / "picture.jpg").write_bytes(b"picture")
    (tmp_path / "macro.jpg").write_bytes(b"macro photo")
    (tmp_path / "labels.ome.zarr").mkdir()
    (tmp_path / "labels.ome.zarr" / "zarr.json").write_text("{}")
    return tmp_path


def test_a_run_holds_model_input_configuration_figures_and_files(uri: str, package: Package, folder: Path) -> None:
    run_id = log_segmentation(make_record(package, "k1"), folder, tracking_uri=uri)
    client = init_store(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "slide-1"
    assert run.info.start_time == 1767323045000
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    assert params["model.name"] == "toy"
    assert params["model.version"] == "1"
    assert params["model.digest"] == package.digest
    assert params["engine.precision"] == "fp32"
    assert params["tile.core"] == "64"
    assert params["fingerprint"] == "f" * 64
    assert metrics["area.tumour _invasive_.mm2"] == 0.000288
    assert metrics["objects.tumour _invasive_"] == 7
    assert "objects.background" not in metrics
    assert metrics["iou.tumour _invasive_"] == 0.8125
    assert metrics["seconds.compute"] == 1.5
    assert metrics["mpx_per_worker_second"] == 1.0
    assert tags["unetpp.input.uri"] == "archive/slide-1.svs"
    assert tags["unetpp.model.alias"] == "champion"
    assert [link.model_id for link in run.inputs.model_inputs] == [model_id("toy", "1", client)]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("slide-1.svs", "f" * 36)
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["picture.jpg", "record.json", "report.html"]
    told = json.loads(Path(client.download_artifacts(run_id, "record.json")).read_text())
    assert told["tracking_run"] == run_id
    assert told["key"] == "k1"


def test_resuming_a_job_updates_its_run(uri: str, package: Package, folder: Path) -> None:
    client = init_store(uri)
    first = log_segmentation(make_record(package, "k2", status="partial", figures={}), folder, tracking_uri=uri)
    assert client.get_run(first).info.status == "FAILED"
    moved = {"uri": "elsewhere/slide-1.svs", "fingerprint": "f" * 64, "height": 96, "width": 128}
    again = log_segmentation(make_record(package, "k2", input=moved), folder, tracking_uri=uri)
    other = log_segmentation(make_record(package, "k3"), folder, tracking_uri=uri)
    assert again == first
    assert other != first
    run = client.get_run(first)
    assert run.info.status == "FINISHED"
    assert run.data.tags["unetpp.input.uri"] == "elsewhere/slide-1.svs"
    assert run.data.tags["unetpp.status"] == "done"
    assert run.data.metrics["valid_px"] == 12_288
    assert len(run.inputs.model_inputs) == 1
    assert len(run.inputs.dataset_inputs) == 1
    where = client.get_experiment_by_name(SEGMENTATION).experiment_id
    assert len(client.search_runs([where], "tags.`unetpp.key` = 'k2'")) == 1


def test_groups_of_any_name_are_recorded(uri: str) -> None:
    """A group is called by its image's URI where nothing else is known of it."""
    client = init_store(uri)
    run = client.create_run(client.create_experiment("names")).info.run_id
    groups = ["s3://bucket/a/x.tif", "a/./b", "../c", "/d/", "e" * 300, "f: (g)"]
    log(client, run, metrics=numbers(flat({f"val.iou.{group}": {"nucleus": 0.5} for group in groups})))
    found = client.get_run(run).data.metrics
    assert len(found) == len(groups) and set(found.values()) == {0.5}
    assert "val.iou.s3_/bucket/a/x.tif.nucleus" in found and "val.iou.f_ _g_.nucleus" in found


def test_a_model_from_a_folder_has_no_link_but_its_digest(uri: str, package: Package, folder: Path) -> None:
    model = {"name": "toy", "version": None, "digest": package.digest}
    run_id = log_segmentation(make_record(package, "k4", model=model), folder, tracking_uri=uri)
    run = init_store(uri).get_run(run_id)
    assert not run.inputs.model_inputs
    assert run.data.params["model.digest"] == package.digest
    assert "model.version" not in run.data.params


def test_nothing_of_the_user_or_the_machine_is_added(
    uri: str, package: Package, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here := tmp_path / "where the command was given").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("LOGNAME", "dr-who")
    monkeypatch.setenv("USER", "dr-who")
    run_id = log_segmentation(make_record(package, "k5"), folder, tracking_uri=uri)
    run = init_store(uri).get_run(run_id)
    text = json.dumps(run.to_dictionary()["data"]) + str(run.info.user_id)
    assert "dr-who" not in text
    assert here.name not in text
    assert not [name for name in run.data.tags if name.startswith("mlflow.source") or name == "mlflow.user"]


def test_the_output_is_found_from_every_folder(
    uri: str, package: Package, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    run_id = log_segmentation(make_record(package, "k7"), Path(folder.name), tracking_uri=uri)
    assert init_store(uri).get_run(run_id).data.tags["unetpp.output"] == str(folder)


def test_no_metadata_of_a_slide_reaches_the_store(uri: str, package: Package, folder: Path, data_dir: Path) -> None:
    import openslide

    slide = data_dir / "slides" / "CMU-1-Small-Region.svs"
    with openslide.OpenSlide(slide) as opened:
        private = [opened.properties[f"aperio.{name}"] for name in ("Filename", "ImageID", "Date", "ScanScope ID")]
    assert all(private)
    log_segmentation(
        make_record(package, "k6", input={"uri": str(slide), "fingerprint": "a" * 64}), folder, tracking_uri=uri
    )
    database = Path(uri.removeprefix("sqlite:///"))
    with sqlite3.connect(database) as connection:
        stored = "\n".join(connection.iterdump())
    stored += "".join(
        path.read_text(errors="replace")
        for path in database.parent.glob("mlartifacts/unetpp-seg*/**/*")
        if path.is_file()
    )
    assert str(slide) in stored
    for value in private:
        assert f"'{value}'" not in stored
        assert f'"{value}"' not in stored


def test_a_store_that_does_not_answer_is_one_line(
    package: Package, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match="check --tracking-uri"):
        log_segmentation(make_record(package, "k7"), folder, tracking_uri="http://127.0.0.1:9")
