"""An evaluation has the figures computed by hand, is made once per weights and images, and is an MLflow run."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tests.engines import AUTO, WHOLES
from unetpp.engine import choose_engine
from unetpp.errors import DataError, EngineError, StoreError
from unetpp.geometry import Box, Spacing
from unetpp.metrics import Confusion
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.package import ClassInfo, ModelSpec, Package, load_package, save_package
from unetpp.train.store import PatchStore
from unetpp_workflows import evaluation_tracking
from unetpp_workflows.cases import draw_cases
from unetpp_workflows.cli import app
from unetpp_workflows.cli_evaluate import print_evaluation
from unetpp_workflows.config import validate
from unetpp_workflows.evaluation import Evaluation, EvaluationData, evaluate, mean_iou, shared_images
from unetpp_workflows.evaluation_tracking import evaluated, find_evaluation
from unetpp_workflows.mlflow_store import init_store, store_uri
from unetpp_workflows.prepare.build import prepare
from unetpp_workflows.prepare.dataset import Dataset
from unetpp_workflows.prepare.page import jpeg, overlay
from unetpp_workflows.registry import register_package, resolve
from unetpp_workflows.report import to_rgb
from unetpp_workflows.speed import measure_speed

PIXELS = 48 * 64


@pytest.fixture(autouse=True)
def no_bench(known_speed: dict[str, Any], ready_home: Path) -> None:
    """Speed has a test of its own, and so has a store's first use."""


@pytest.fixture
def data(ink_store: Callable[..., Path]) -> EvaluationData:
    """Three groups of 100 px of ink, of which the network with threshold 60 misses 0, 100 and 300 px of smudge."""
    return EvaluationData.open(ink_store(0, 100, 300), "test")


def run(folder: Path, data: EvaluationData) -> Evaluation:
    return evaluate(resolve(folder), load_package(folder), data)


def test_figures_are_those_computed_by_hand(
    data: EvaluationData, ink_variant: Callable[..., Path], tmp_path: Path
) -> None:
    found = run(ink_variant(tmp_path / "strict", 60), data)
    assert found.figures["iou"] == {
        "paper": round((3 * PIXELS - 700) / (3 * PIXELS - 300), 4),
        "ink": 0.4286,
    }  # 300/700
    assert found.figures["recall"]["ink"] == 0.4286 and found.figures["precision"]["ink"] == 1.0
    assert {name: round(mean_iou(m), 6) for name, m in found.confusions().items()} == {"a": 1.0, "b": 0.5, "c": 0.25}
    assert found.figures["iou_low"]["ink"] == 0.25 and found.figures["iou_high"]["ink"] == 1.0
    assert [row["name"] for row in found.images] == ["a", "b", "c"]
    assert found.images[2]["confusion"] == [[PIXELS - 400, 0], [300, 100]]
    assert found.data["shared"] == {"training": None, "validation": None}
    perfect = run(ink_variant(tmp_path / "loose", 112), data)
    assert perfect.figures["iou"] == {"paper": 1.0, "ink": 1.0} and perfect.figures["average_precision"]["ink"] == 1.0
    assert Evaluation.from_json(perfect.to_json()) == perfect


def test_pixels_without_data_are_shown_as_segmentation_shows_them(tiny_package: Path, tmp_path: Path) -> None:
    """The store's mean is far from the model's, and a network that looks around sees one or the other."""
    pixels = np.random.default_rng(0).integers(0, 60, (3, 96, 96), np.uint8)
    pixels[:, 30:60, 40:70] = 255
    for name, shown in (("t", pixels[:, ::-1]), ("a", pixels)):
        kind: Any = {"driver": "GTiff", "width": 96, "height": 96, "count": 3, "dtype": "uint8", "nodata": 255}
        place = rasterio.Affine(2, 0, 5e5, 0, -2, 5e6)
        with rasterio.open(tmp_path / f"{name}.tif", "w", transform=place, crs=32632, **kind) as file:
            file.write(shown)
        Image.fromarray(pixels[0] % 3).save(tmp_path / f"{name}.png")
    spec = load_package(tiny_package).spec
    classes = [{"name": info.name, "color": list(info.color), "background": info.background} for info in spec.classes]
    asked = {"images": "*.tif", "labels": "{stem}.png", "side": 32, "validation": [], "test": ["a"]}
    dataset = validate(Dataset, {"name": "n", "data": asked, "classes": classes}, source="test")
    prepared = prepare(dataset, tmp_path, tmp_path / "s.zarr")
    assert not prepared.errors, prepared.errors
    data = EvaluationData.open(prepared.store, "test")
    found = run(tiny_package, data)
    inputs = [str(tmp_path / "a.tif"), "-m", str(tiny_package), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["segment", *inputs, "--precision", "fp32"])
    assert done.exit_code == 0, done.output
    values = {255: 255, **{info.value: index for index, info in enumerate(spec.classes)}}
    with rasterio.open(tmp_path / "out/a/classes.tif") as file:
        labels = np.vectorize(values.get)(file.read(1)).astype(np.uint8)
    judged = Confusion(3)
    judged.update(np.where(labels == 255, 255, pixels[0] % 3).astype(np.uint8), labels)
    assert found.images[0]["confusion"] == judged.matrix.tolist()
    assert len(np.unique(labels)) == 4


def test_orientations_make_another_evaluation(
    data: EvaluationData, ink_variant: Callable[..., Path], tmp_path: Path
) -> None:
    model = resolve(ink_variant(tmp_path / "strict", 60))
    plain, turned = (evaluated(model, data, tta=tta, output=tmp_path / tta) for tta in ("none", "d4"))  # type: ignore[arg-type]
    assert turned.evaluation.key != plain.evaluation.key and not turned.found
    assert (plain.evaluation.tta, turned.evaluation.tta) == ("none", "d4")
    assert turned.evaluation.figures["iou"] == plain.evaluation.figures["iou"], "ink is ink from all sides"
    assert "mean over 8 orientations (d4)" in turned.page and "mean over 8" not in plain.page
    assert evaluated(model, data, tta="d4").found
    text = io.StringIO()
    print_evaluation(turned.evaluation, Console(file=text, width=200))
    assert "3 images in 3 groups, mean over 8 orientations (d4)" in text.getvalue()


def unsure(spec: ModelSpec, folder: Path) -> Package:
    """A network of random weights, whose logit is near zero in many pixels: rounding tells there."""
    spec = replace(spec, architecture=GridConfig(classes=1, filters=(4, 8)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10)
        return save_package(folder, UNetPlusPlus(spec.architecture).eval(), spec, "")


@pytest.mark.parametrize("precision", WHOLES)
def test_whole_numbers_are_judged_by_the_engine_that_segments(
    data: EvaluationData, ink_package: Path, tmp_path: Path, known_speed: dict[str, Any], precision: str
) -> None:
    package = unsure(load_package(ink_package).spec, tmp_path / "model")
    spec = package.spec
    model = resolve(package.folder)
    exact, rounded = (evaluated(model, data, precision=name) for name in ("fp32", precision))
    assert rounded.evaluation.key != exact.evaluation.key and not rounded.found
    assert f"by the native engine in {precision}" in rounded.page and "in plain torch, fp32" in exact.page
    engine = choose_engine(package, precision=precision)
    worst, best = draw_cases(rounded.evaluation, package, data)
    drawn = {case.name: case for case in (*worst, *best)}
    colors, plain = zip(*((info.color, info.background) for info in spec.classes), strict=True)
    for index, row in enumerate(rounded.evaluation.images):
        image = data.source.images[index]
        crop = data.source.read(index, Box(0, 0, image.height, image.width))
        labels = (engine.labels(crop.pixels) == spec.classes[1].value).astype(np.uint8)
        judged = Confusion(2)
        judged.update(crop.labels, labels)
        assert row["confusion"] == judged.matrix.tolist()
        case = drawn[row["name"]]
        x, y = map(int, re.findall(r"\d+", case.place))
        width, height = Image.open(io.BytesIO(b64decode(case.prediction.partition(",")[2]))).size
        here = slice(y, y + height), slice(x, x + width)
        rgb = to_rgb(crop.pixels[here], np.ones((height, width), bool))
        assert case.prediction == jpeg(overlay(rgb, labels[here], colors, plain)), "the picture is of other labels"
    if precision == "int8":
        assert exact.evaluation.images != rounded.evaluation.images, "the network is too sure to be told by"


def test_pictures_show_what_bf16_sees(data: EvaluationData, ink_package: Path, tmp_path: Path) -> None:
    package = unsure(load_package(ink_package).spec, tmp_path / "model")
    found = run(package.folder, data)
    exact, rounded = (draw_cases(replace(found, precision=name), package, data)[0] for name in ("fp32", "bf16"))
    assert [case.picture for case in exact] == [case.picture for case in rounded]
    assert any(a.prediction != b.prediction for a, b in zip(exact, rounded, strict=True))


def test_pictures_show_the_mean_over_orientations(
    data: EvaluationData, ink_package: Path, tiny_package: Path, tmp_path: Path
) -> None:
    found = run(ink_package, data)
    package = load_package(tiny_package)  # unlike ink, its random weights see another class in a turned image
    plain, turned = (draw_cases(dataclasses.replace(found, tta=tta), package, data)[0] for tta in ("none", "d4"))  # type: ignore[arg-type]
    assert [case.picture for case in plain] == [case.picture for case in turned]
    assert all(a.prediction != b.prediction for a, b in zip(plain, turned, strict=True))


@pytest.mark.slow
def test_speed_is_measured_in_a_process_of_its_own(ink_package: Path, tmp_path: Path) -> None:
    found = measure_speed(ink_package)
    assert found["mpx_per_second"] > 0 and found["engine"] == AUTO and found["tile"] == 512
    with pytest.raises(EngineError, match=r"cannot be measured: .*no model package"):
        measure_speed(tmp_path / "nothing")


def test_the_page_shows_the_worst_image_and_loads_nothing(
    data: EvaluationData, ink_variant: Callable[..., Path], tmp_path: Path
) -> None:
    folder = ink_variant(tmp_path / "strict", 60)
    result = evaluated(resolve(folder), data, output=tmp_path / "out")
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert page == result.page
    captions = re.findall(r"<figcaption>(\w+) \(", page)
    assert captions == ["c", "b", "a"]  # the two worst, worst first, then the best
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("data:image/jpeg;base64,") == 12 and page.count("<svg") == 4
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page)


def test_the_same_weights_on_the_same_images_are_measured_once(
    data: EvaluationData, ink_variant: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ink_variant(tmp_path / "strict", 60)
    version = register_package(folder, "ink", alias="challenger")
    first = evaluated(resolve("models:/ink@challenger"), data)
    assert not first.found and first.evaluation.run
    client = init_store(store_uri())
    row = client.get_run(first.evaluation.run)
    assert row.info.status == "FINISHED" and row.data.metrics["iou.ink"] == 0.4286
    assert row.data.tags["unetpp.model.version"] == version
    (dataset,) = row.inputs.dataset_inputs
    assert dataset.dataset.digest == data.source.fingerprint[:36]
    assert {tag.value for tag in dataset.tags} == {"evaluation"}
    (linked,) = row.inputs.model_inputs
    assert client.get_model_version("ink", version).source == f"models:/{linked.model_id}"
    monkeypatch.setattr(evaluation_tracking, "evaluate", None)  # computing anything would now fail
    again = evaluated(resolve("models:/ink/1"), data, output=tmp_path / "out")
    assert again.found and again.evaluation.run == first.evaluation.run and again.page == first.page
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["key"] == first.evaluation.key
    client.set_tag(first.evaluation.run, evaluation_tracking.STATE_TAG, "open")  # as a killed recording leaves it
    assert find_evaluation(first.evaluation.key) is None
    here = evaluated(resolve(folder), data, output=tmp_path / "out")  # the folder still has it
    assert here.found and here.evaluation.model["uri"] == str(folder)
    (tmp_path / "out" / "evaluation.json").write_text("{")
    with pytest.raises(TypeError, match="NoneType"):
        evaluated(resolve(folder), data, output=tmp_path / "out")


def test_a_killed_evaluation_goes_on_with_the_same_counts(
    ink_variant: Callable[..., Path], ink_store: Callable[..., Path], ready_home: Path, tmp_path: Path
) -> None:
    model, store = ink_variant(tmp_path / "strict", 60), ink_store(*range(0, 90, 5))
    command = [sys.executable, "-m", "unetpp_workflows", "evaluate", str(model), "--data", str(store)]
    journals = ready_home / "evaluations"
    for attempt in range(5):  # on a busy machine the kill may come after the last image
        place = tmp_path / str(attempt)
        place.mkdir()
        options = ["--tracking-uri", f"sqlite:///{place / 'runs.db'}", "--output", str(place / "page")]
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while not list(journals.glob("*.jsonl")) and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        output = process.communicate()[0]
        lines = b"".join(journal.read_bytes() for journal in journals.glob("*.jsonl")).splitlines(keepends=True)
        judged = sum(line.endswith(b"}\n") for line in lines)
        if 0 < judged < 18:
            break
        shutil.rmtree(journals, ignore_errors=True)
    assert 0 < judged < 18, output
    (journal,) = journals.glob("*.jsonl")
    with journal.open("ab") as file:
        file.write(b'\n{"image": 17, "counts": {"confu')  # as a kill in the middle of a line leaves it
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert f"{judged} images were judged before an interruption" in done.stdout
    assert not list(journals.glob("*.jsonl"))
    resumed = json.loads((place / "page/evaluation.json").read_text())
    whole = json.loads(run(model, EvaluationData.open(store, "test")).to_json())
    for counts in ("figures", "groups", "images", "totals", "key", "data"):
        assert resumed[counts] == whole[counts]


def test_a_home_that_cannot_be_written_costs_only_the_resuming(
    data: EvaluationData, ink_package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = store_uri()
    monkeypatch.setenv("UNETPP_HOME", "/proc/unetpp")
    found = evaluated(resolve(ink_package), data, tracking_uri=uri)
    assert found.evaluation.data["images"] == 3 and found.evaluation.run and not found.resumed
    assert caplog.text.count("would begin anew") == 1


def test_a_model_that_does_not_fit_the_images_is_refused(
    data: EvaluationData, ink_variant: Callable[..., Path], tmp_path: Path
) -> None:
    spec = load_package(ink_variant(tmp_path / "p")).spec
    other = replace(spec, classes=(spec.classes[0], ClassInfo(value=1, name="blood", color=(1, 2, 3))))
    for wrong, words in (
        (other, "has classes paper, ink, model 'ink' paper, blood"),
        (replace(spec, dtype="uint16"), "sample type uint8, model 'ink' uint16"),
        (replace(spec, spacing=Spacing(0.5, 0.5, "um")), "pixels of an unknown size, or of several, model 'ink' was"),
    ):
        folder = ink_variant(
            tmp_path / words[:5], **{f.name: getattr(wrong, f.name) for f in dataclasses.fields(wrong)}
        )
        with pytest.raises(DataError, match=words):
            run(folder, data)
    with pytest.raises(StoreError, match="no split 'val'; it has train, test"):
        EvaluationData.open(data.store.path, "val")


def test_a_found_evaluation_knows_images_of_which_a_part_was_trained_on(
    data: EvaluationData, ink_variant: Callable[..., Path], tmp_path: Path
) -> None:
    """Older versions did not, and left 0 in the evaluation: a leak that a gate would let pass for ever."""
    seen = {"training_content": [f"part of {data.source.images[0].picture[:16]}"], "validation_content": []}
    model = resolve(ink_variant(tmp_path / "p", training=seen))
    made = evaluated(model, data, output=tmp_path / "out")
    assert made.evaluation.data["shared"] == {"training": 1, "validation": 0}
    older = replace(made.evaluation, data={**made.evaluation.data, "shared": {"training": 0, "validation": 0}})
    (tmp_path / "out/evaluation.json").write_text(older.to_json())
    again = evaluated(model, data, output=tmp_path / "out")
    assert again.found and again.evaluation.data["shared"] == {"training": 1, "validation": 0}


def test_images_known_from_training_are_counted(
    data: EvaluationData, ink_store: Callable[..., Path], ink_variant: Callable[..., Path], tmp_path: Path
) -> None:
    from unetpp.train.content import image_digests

    digests = image_digests(data.source)
    assert len(set(digests)) == 3
    # The first image lies in another store too, beside others and with another split fingerprint.
    other = PatchStore.open(ink_store(0, 7)).source("test")
    assert set(image_digests(other)) & set(digests) == {digests[0]}
    spec = load_package(
        ink_variant(tmp_path / "p", training={"training_content": [digests[0]], "validation_content": []})
    ).spec
    assert shared_images(spec, data) == {"training": 1, "validation": 0}
    whole = replace(spec, training={"training_fingerprint": "0", "validation_fingerprint": data.source.fingerprint})
    assert shared_images(whole, data) == {"training": 0, "validation": 3}


def test_the_command_prints_figures_and_warns_without_a_store(
    data: EvaluationData, ink_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    command = ["evaluate", str(ink_package), "--data", str(data.store.path), "-o", str(tmp_path / "out")]
    dead = CliRunner().invoke(app, [*command, "--tracking-uri", "http://127.0.0.1:9"])
    assert dead.exit_code == 1 and "not recorded in MLflow" in dead.output and "ink" in dead.output
    fine = CliRunner().invoke(app, command)
    assert fine.exit_code == 0, fine.output
    assert "measured before" in fine.output and "MLflow run" in fine.output  # made up for what was not recorded
    assert "3 images in 3 groups" in fine.output and "1.000" in fine.output
    assert CliRunner().invoke(app, [*command, "--precision", "int4"]).exit_code == 2
