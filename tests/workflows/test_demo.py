"""The demo from registry to report, with networks of a few weights and small drawn images, on a real Ray session."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from unetpp.drawing import SCENE_CLASSES
from unetpp.package import ClassInfo, load_package, save_package
from unetpp_workflows import demo, samples
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.registry import list_models


@pytest.fixture
def bundled(ink_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the bundled models, with their class names: dark is nucleus, and dark is water."""
    ink = load_package(ink_package)
    names = {"nuclei": ("background", 0, "nucleus", 1), "landcover": ("land", SCENE_CLASSES["land"], "water", 5)}
    for name, (light, light_value, dark, dark_value) in names.items():
        classes = (
            ClassInfo(value=light_value, name=light, color=(0, 0, 0), background=name == "nuclei"),
            ClassInfo(value=dark_value, name=dark, color=(0, 0, 255)),
        )
        spec = replace(ink.spec, name=name, classes=classes)
        save_package(tmp_path / "bundled" / name, ink.load_model(), spec, "# stand-in\n")
    monkeypatch.setattr("unetpp.package.BUNDLED", tmp_path / "bundled")
    return tmp_path / "bundled"


@pytest.fixture
def nothing_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and no data folder; drawn images are small."""

    def absent(name: str) -> samples.Fetched:
        [sample] = [entry for entry in samples.catalogue() if entry.name == name]
        return samples.Fetched(sample, None, f"{name}: UNETPP_DATA is not set, and no network")

    monkeypatch.setattr(samples, "fetch", absent)
    monkeypatch.setattr(samples, "synthetic_slide", partial(samples.synthetic_slide, side=1024))
    monkeypatch.setattr(samples, "synthetic_scene", partial(samples.synthetic_scene, side=256))


def _run(output: Path) -> tuple[int, str]:
    file = io.StringIO()
    code = demo.run_demo(output, Console(file=file, width=200))
    return code, file.getvalue()


@pytest.mark.slow  # tests/wheel.py runs the demo, too
@pytest.mark.usefixtures("bundled", "nothing_public")
def test_the_demo_without_network_segments_drawn_images_and_a_second_run_reuses_them(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    code, text = _run(output)
    assert code == 0, text
    assert "cmu-1-small-region: UNETPP_DATA is not set, and no network" in text
    for part in ("SYNTHETIC slide", "SYNTHETIC scene", "stained tissue", "mlflow", "3 of 3 images segmented"):
        assert part in text
    slide = ImageRecord.read(output / "synthetic_slide")
    scene = ImageRecord.read(output / "synthetic_scene")
    assert slide is not None
    assert scene is not None
    assert slide.model["name"] == "nuclei"
    assert (slide.model["version"], slide.model["alias"], slide.executor["kind"]) == ("1", "champion", "ray")
    assert slide.figures["classes"][1]["unit"] == "mm2"
    assert {entry["unit"] for entry in scene.figures["classes"]} == {"m2"}
    assert slide.iou is not None
    assert slide.iou.keys() == {"nucleus"}
    assert scene.outputs.keys() >= {"labels", "polygons", "geopackage", "geotiff", "report"}
    assert f"IoU of nucleus against the known labels: {slide.iou['nucleus']:.3f}" in text
    uri = f"sqlite:///{output}/mlflow/mlflow.db"
    assert {(row.name, row.version, row.aliases) for row in list_models(tracking_uri=uri)} == {
        ("nuclei", "1", ("champion",)),
        ("landcover", "1", ("champion",)),
    }
    before = (output / "synthetic_slide/record.json").read_bytes()
    code, text = _run(output)
    assert code == 0, text
    assert "3 of them unchanged since an earlier run" in text
    assert (output / "synthetic_slide/record.json").read_bytes() == before


def test_real_images_are_taken_where_they_are(data_dir: Path, tmp_path: Path) -> None:
    choice = demo.choose_images(tmp_path)
    assert [image.path for image in choice.images] == [
        data_dir / "slides/CMU-1-Small-Region.svs",
        data_dir / "kampala/kampala_A_z19.tif",
    ]
    assert [image.model for image in choice.images] == ["nuclei", "landcover"]
    assert choice.images[1].truth is not None
    assert choice.images[1].truth.classes == {"building": 1}
    assert choice.missing == []
