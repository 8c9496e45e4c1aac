"""Reviews become training data: exported, prepared, and compared with what was drawn."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import zarr
from numpy.typing import NDArray
from rasterio.transform import from_origin
from typer.testing import CliRunner

from unetpp.errors import ConfigError
from unetpp.geometry import Box, Spacing
from unetpp_workflows.cli import app
from unetpp_workflows.pipeline import segment
from unetpp_workflows.prepare.build import discard_work, prepare
from unetpp_workflows.prepare.dataset import load_dataset
from unetpp_workflows.viewer import corrections, review
from unetpp_workflows.viewer.catalogue import Catalogue, Result

from .conftest import Archives


def test_corrected_and_accepted_regions_reach_the_training_store(archives: Archives, tmp_path: Path) -> None:
    result = next(r for r in Catalogue([archives.second]).results() if r.name == "plain")
    log = archives.second / review.LOG
    log.unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="no region"):
        corrections.export([result], tmp_path / "none")
    # The darker network misses the grey blot (400..460, 100..180): a reviewer says that it is ink.
    blot = ((100.0, 400.0), (180.0, 400.0), (180.0, 460.0), (100.0, 460.0))
    accepted = ((590.0, 150.0), (700.0, 150.0), (700.0, 250.0), (590.0, 250.0))
    wrong = ((0.0, 0.0), (50.0, 0.0), (50.0, 50.0))
    review.add(result, review.Statement(verdict="to correct", label="ink", region=blot, note="missed"))
    review.add(result, review.Statement(verdict="accepted", region=accepted))
    review.add(result, review.Statement(verdict="rejected", region=wrong))
    try:
        dataset, images, polygons = corrections.export([result], tmp_path / "fixes")
        assert (images, polygons) == (1, 3) and not corrections.left_out([result])
        done = prepare(load_dataset(str(dataset), ()), tmp_path / "fixes", tmp_path / "fixes.zarr")
        assert not done.errors, done.errors
        discard_work(done.store)
    finally:
        log.unlink()
    truth = np.full((700, 1100), 255, np.uint8)
    truth[400:460, 100:180] = 1
    predicted = np.asarray(zarr.open_array(archives.second / "plain" / "labels.ome.zarr/classes/0", mode="r"))
    truth[150:250, 590:700] = predicted[150:250, 590:700]
    assert np.array_equal(_labels(done.store, truth.shape), truth) and (truth == 0).any() and (truth == 1).any()


@pytest.fixture
def copied(archives: Archives, tmp_path: Path) -> Path:
    """An output of one image of its own, without reviews."""
    return Path(shutil.copytree(archives.second, tmp_path / "copied", ignore=shutil.ignore_patterns(review.LOG)))


def test_regions_without_an_area_are_left_out_and_said_to_be(copied: Path, tmp_path: Path) -> None:
    (result,) = Catalogue([copied]).results()
    line = ((10.0, 10.0), (60.0, 10.0), (30.0, 10.0))
    point = ((10.0, 10.0),) * 3
    review.add(result, review.Statement(verdict="to correct", label="ink", region=line))
    review.add(result, review.Statement(verdict="accepted", region=point))
    with pytest.raises(ConfigError, match="no region with an area"):
        corrections.export([result], tmp_path / "none")
    spur = ((100.0, 400.0), (180.0, 400.0), (180.0, 460.0), (180.0, 600.0), (180.0, 460.0), (100.0, 460.0))
    review.add(result, review.Statement(verdict="to correct", label="ink", region=spur))
    found = corrections.collection(result)
    (shape,) = (shapely.geometry.shape(feature["geometry"]) for feature in found["features"])
    assert shape.equals(shapely.box(100, 400, 180, 460)) and found["note"].startswith("2 region(s) without an area")
    said = CliRunner().invoke(app, ["view", str(copied), "--corrections", str(tmp_path / "fixes")])
    assert said.exit_code == 0 and "2 region(s) without an area left out" in said.stdout


def test_a_class_of_any_name_is_read_back(copied: Path, tmp_path: Path) -> None:
    (result,) = Catalogue([copied]).results()
    paper, ink = result.job.classes
    name = '=ink "\\ \n\t <b> Tumor: 🧫'
    renamed = replace(result, job=replace(result.job, classes=(paper, replace(ink, name=name))))
    square = ((590.0, 90.0), (810.0, 90.0), (810.0, 210.0), (590.0, 210.0))
    review.add(renamed, review.Statement(verdict="to correct", label=name, region=square))
    dataset, _, _ = corrections.export([renamed], tmp_path / "fixes")
    assert [info.name for info in load_dataset(dataset).classes] == ["paper", name]


def test_what_is_wrong_inside_an_accepted_region_is_no_training_data(copied: Path, tmp_path: Path) -> None:
    (result,) = Catalogue([copied]).results()
    square = ((590.0, 90.0), (810.0, 90.0), (810.0, 210.0), (590.0, 210.0))
    paper = ((640.0, 120.0), (740.0, 120.0), (740.0, 170.0), (640.0, 170.0))
    cut = ((590.0, 190.0), (810.0, 190.0), (810.0, 210.0), (590.0, 210.0))
    review.add(result, review.Statement(verdict="to correct", label="paper", region=paper))
    review.add(result, review.Statement(verdict="rejected", region=cut))
    review.add(result, review.Statement(verdict="accepted", region=square))
    review.add(result, review.Statement(verdict="accepted", region=cut))
    shapes: dict[str, list[shapely.Geometry]] = {"ink": [], "paper": []}
    for feature in corrections.features(result):
        shapes[feature["properties"]["classification"]["name"]].append(shapely.geometry.shape(feature["geometry"]))
    found = {name: shapely.union_all(parts) for name, parts in shapes.items()}
    correct, rejected = shapely.Polygon(paper), shapely.Polygon(cut)
    ink = shapely.box(600, 100, 800, 190) - correct
    assert found["ink"].equals(ink) and found["paper"].equals(shapely.Polygon(square) - rejected - ink)


def test_of_two_classes_for_the_same_pixels_the_later_counts(copied: Path, tmp_path: Path) -> None:
    (result,) = Catalogue([copied]).results()

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[tuple[float, float], ...]:
        return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))

    for label, region in (
        ("ink", box(20, 20, 60, 40)),  # gone: all of it is said to be paper later, with a larger region
        ("paper", box(0, 0, 100, 100)),
        ("ink", box(80, 0, 300, 100)),  # larger and later again
    ):
        review.add(result, review.Statement(verdict="to correct", label=label, region=region))
    dataset, _, polygons = corrections.export([result], tmp_path / "fixes")
    assert polygons == 2
    done = prepare(load_dataset(str(dataset), ()), tmp_path / "fixes", tmp_path / "fixes.zarr")
    assert not done.errors, done.errors
    discard_work(done.store)
    truth = np.full((700, 1100), 255, np.uint8)
    truth[:100, :80], truth[:100, 80:300] = 0, 1
    assert np.array_equal(_labels(done.store, truth.shape), truth)


def _labels(store: Path, shape: tuple[int, ...], image: int = 0) -> NDArray[np.uint8]:
    """Return the labels of one image of a training store; 255 where it has none."""
    group, found = zarr.open_group(store, mode="r"), np.full(shape, 255, np.uint8)
    its = np.asarray(group["image"]) == image
    for box, labels in zip(np.asarray(group["box"])[its], np.asarray(group["labels"])[its], strict=True):
        part = Box(*map(int, box)).clip(*shape)
        found[part.slices()] = labels[: part.height, : part.width]
    return found


def test_a_verdict_is_of_one_segmentation_and_a_right_class_of_the_image(
    copied: Path, ink_variant: Callable[..., Path], tmp_path: Path
) -> None:
    blot = ((100.0, 400.0), (180.0, 400.0), (180.0, 460.0), (100.0, 460.0))
    (first,) = Catalogue([copied]).results()
    review.add(first, review.Statement(verdict="accepted"))
    review.add(first, review.Statement(verdict="accepted", region=blot))
    assert review.verdicts([first]) == {first.id: "accepted"}
    brighter = ink_variant(tmp_path / "brighter", threshold=120, name="brighter")
    assert segment([first.job.uri], model=str(brighter), output=copied).exit_code == 0
    (second,) = Catalogue([copied]).results()
    assert review.current(second) == [] and review.verdicts([second]) == {}
    with pytest.raises(ConfigError, match=r"1 accepted region\(s\) of another segmentation"):
        corrections.export([second], tmp_path / "none")
    corner = ((0.0, 0.0), (50.0, 0.0), (50.0, 50.0), (0.0, 50.0))
    fixed = review.add(second, review.Statement(verdict="to correct", label="ink", region=corner))
    said = CliRunner().invoke(app, ["view", str(copied), "--corrections", str(tmp_path / "fixes")])
    assert said.exit_code == 0 and said.stdout.startswith("1 polygon(s)"), said.stdout
    assert "1 accepted region(s) of another segmentation of the image left out" in said.stdout
    # Under the labels that were accepted both count again; what is withdrawn stays so under all labels.
    assert [stored["verdict"] for stored in review.current(first)] == ["accepted", "accepted", "to correct"]
    review.add(second, review.Statement(id=fixed["id"], verdict="withdrawn"))
    assert [stored["verdict"] for stored in review.current(first)] == ["accepted", "accepted"]


def test_what_was_said_of_two_results_of_an_image_becomes_one_row_of_it(archives: Archives, tmp_path: Path) -> None:
    outputs = [
        Path(shutil.copytree(output, tmp_path / output.name, ignore=shutil.ignore_patterns(review.LOG)))
        for output in (archives.first, archives.second)
    ]
    other, first, second = Catalogue(outputs).results()
    assert (first.name, first.job.uri) == (second.name, second.job.uri) and other.job.uri != first.job.uri

    def say(result: Result, verdict: review.Verdict, x0: int, y0: int, x1: int, y1: int, label: str = "") -> None:
        region = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        review.add(result, review.Statement(verdict=verdict, label=label or None, region=region))
        time.sleep(0.002)  # `when` is in whole milliseconds

    say(other, "to correct", 0, 0, 40, 30, "ink")
    # The grey blot (400..460, 100..180) is ink to the first model alone.
    say(first, "accepted", 90, 390, 140, 470)
    say(second, "accepted", 120, 390, 190, 470)
    say(second, "to correct", 590, 90, 650, 150, "ink")
    say(first, "to correct", 630, 90, 700, 150, "paper")
    say(second, "accepted", 620, 140, 710, 180)  # in part it was corrected, in the other output
    say(second, "accepted", 100, 410, 110, 420)
    say(second, "rejected", 90, 440, 120, 470)  # labels of the second model, which is not the one accepted there
    fixes = tmp_path / "fixes"
    said = CliRunner().invoke(app, ["view", *map(str, outputs), "--corrections", str(fixes)])
    assert said.exit_code == 0 and "of 2 image(s)" in said.stdout, said.stdout
    done = prepare(load_dataset(str(fixes / corrections.DATASET), ()), fixes, tmp_path / "fixes.zarr")
    assert done.facts is not None, done.errors
    discard_work(done.store)
    splits = {image["name"]: image["split"] for image in done.facts["images"]}
    assert splits == {"other": "train", "plain": "val"}
    left, right = (
        np.asarray(zarr.open_array(output / "plain" / "labels.ome.zarr/classes/0", mode="r")) for output in outputs
    )
    truth = np.full((700, 1100), 255, np.uint8)
    truth[390:470, 90:140] = left[390:470, 90:140]
    truth[390:470, 120:190] = right[390:470, 120:190]
    truth[410:420, 100:110] = right[410:420, 100:110]
    truth[140:180, 620:710] = right[140:180, 620:710]
    truth[90:150, 590:630], truth[90:150, 630:700] = 1, 0
    assert (left != right)[truth != 255].any()
    assert np.array_equal(_labels(done.store, truth.shape, list(splits).index("plain")), truth)


def test_results_of_a_file_that_changed_between_them_are_no_one_data_set(copied: Path, tmp_path: Path) -> None:
    later = Path(shutil.copytree(copied, tmp_path / "later"))
    job = later / "plain" / "job.json"
    job.write_text(json.dumps({**json.loads(job.read_text()), "fingerprint": "f" * 64}))
    results = Catalogue([copied, later]).results()
    for result in results:
        region = ((10.0, 10.0), (60.0, 10.0), (60.0, 60.0), (10.0, 60.0))
        review.add(result, review.Statement(verdict="to correct", label="ink", region=region))
    with pytest.raises(ConfigError, match=r"^plain: the file changed between the outputs"):
        corrections.export(results, tmp_path / "fixes")


def test_two_images_of_one_name_are_in_one_split(copied: Path, tmp_path: Path) -> None:
    namesake = Path(shutil.copytree(copied, tmp_path / "namesake"))
    job = namesake / "plain" / "job.json"
    facts = json.loads(job.read_text())
    (tmp_path / "in").mkdir()
    shutil.copyfile(facts["uri"], tmp_path / "in" / "plain.png")
    job.write_text(json.dumps({**facts, "uri": str(tmp_path / "in" / "plain.png")}))
    results = Catalogue([copied, namesake]).results()
    for result in results:
        region = ((10.0, 10.0), (60.0, 10.0), (60.0, 60.0), (10.0, 60.0))
        review.add(result, review.Statement(verdict="to correct", label="ink", region=region))
    dataset, images, _ = corrections.export(results, tmp_path / "fixes")
    done = prepare(load_dataset(str(dataset), ()), tmp_path / "fixes", tmp_path / "fixes.zarr")
    assert images == 2 and done.facts is not None, done.errors
    assert {image["split"] for image in done.facts["images"]} == {"train"}


def test_the_table_names_a_remote_image_by_its_uri(copied: Path, tmp_path: Path) -> None:
    job = copied / "plain" / "job.json"
    uri = "s3://bucket/slides/plain.png"
    job.write_text(json.dumps({**json.loads(job.read_text()), "uri": uri}))
    (result,) = Catalogue([copied]).results()
    blot = ((100.0, 400.0), (180.0, 400.0), (180.0, 460.0), (100.0, 460.0))
    review.add(result, review.Statement(verdict="to correct", label="ink", region=blot))
    corrections.export([result], tmp_path / "fixes")
    with (tmp_path / "fixes" / corrections.TABLE).open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [uri]


def test_corrections_of_a_scene_are_prepared_on_the_grid_that_the_model_saw(
    ink_variant: Callable[..., Path], tmp_path: Path
) -> None:
    model = ink_variant(tmp_path / "model", spacing=Spacing(1, 1, "m"))
    # In Web Mercator at 60 degrees 3 nominal metres are 1.5 on the ground; a degree is twice as high as it is wide.
    places = {"EPSG:3857": from_origin(1e6, 8399737, 3, 3), "EPSG:4326": from_origin(10, 60, 1e-5, 1e-5)}
    for number, (crs, transform) in enumerate(places.items()):
        scene, out, fixes = tmp_path / f"{number}.tif", tmp_path / f"out{number}", tmp_path / f"fixes{number}"
        with rasterio.open(scene, "w", driver="GTiff", height=120, width=150, count=3, dtype="uint8", crs=crs,
                           transform=transform, photometric="rgb") as file:  # fmt: skip
            file.write(np.full((3, 120, 150), 220, np.uint8))
        assert segment([str(scene)], model=str(model), output=out).exit_code == 0
        (result,) = Catalogue([out]).results()
        region = ((10.0, 10.0), (60.0, 10.0), (60.0, 60.0), (10.0, 60.0))
        review.add(result, review.Statement(verdict="to correct", label="ink", region=region))
        dataset, _, _ = corrections.export([result], fixes)
        done = prepare(load_dataset(str(dataset), ()), fixes, tmp_path / f"fixes{number}.zarr")
        assert done.facts is not None, done.errors
        seen, (image,) = result.job.grid, done.facts["images"]
        assert (image["height"], image["width"]) == (seen.height, seen.width) and seen.height != 120, crs
        assert abs(done.facts["spacing"]["x"] - 1) < 1e-6 and done.facts["spacing"]["unit"] == "m"


def test_corrections_of_a_model_without_a_pixel_size_are_of_pixels_as_they_are(
    ink_variant: Callable[..., Path], tmp_path: Path
) -> None:
    model = ink_variant(tmp_path / "model", spacing=None)
    for size in (1, 2):
        place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 6e6, size, size)}
        with rasterio.open(tmp_path / f"{size}.tif", "w", driver="GTiff", height=120, width=150, count=3, dtype="uint8",
                           photometric="rgb", **place) as file:  # fmt: skip
            file.write(np.full((3, 120, 150), 220, np.uint8))
    assert segment([str(tmp_path / f"{size}.tif") for size in (1, 2)], str(model), tmp_path / "out").exit_code == 0
    results = Catalogue([tmp_path / "out"]).results()
    for result in results:
        region = ((10.0, 10.0), (60.0, 10.0), (60.0, 60.0), (10.0, 60.0))
        review.add(result, review.Statement(verdict="to correct", label="ink", region=region))
    dataset, _, _ = corrections.export(results, tmp_path / "fixes")
    done = prepare(load_dataset(str(dataset), ()), tmp_path / "fixes", tmp_path / "fixes.zarr")
    assert done.facts is not None, done.errors
    assert [(image["height"], image["width"]) for image in done.facts["images"]] == [(120, 150)] * 2
