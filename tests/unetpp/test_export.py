"""Exported graphs compute what the package computes, at sizes they were not exported with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unetpp.engine.openvino import import_openvino
from unetpp.errors import ConfigError, SpacingError
from unetpp.export import Form, export_package
from unetpp.geometry import Spacing
from unetpp.package import Package, load_package, save_package


@pytest.fixture
def package(tiny_package: Path) -> Package:
    return load_package(tiny_package)


def expected(package: Package, image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (package.spec.mean, package.spec.std))
    with torch.no_grad():
        logits: torch.Tensor = package.load_model()((image - mean) / std)
    return logits


@pytest.mark.parametrize(("form", "name"), [("onnx", "m.onnx"), ("openvino", "m.xml"), ("torch-export", "m.pt2")])
def test_a_graph_gives_the_packages_logits(form: Form, name: str, package: Package, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnx", reason="needs onnx: pip install unetpp[export]")
    path = export_package(package, form, tmp_path / name)
    if form == "torch-export":
        run = torch.export.load(path).module()
    else:  # OpenVINO's reader of ONNX shares no code with torch's writer
        openvino = import_openvino()
        compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(compiled({"image": x.numpy()})["logits"])

    for shape in ((1, 3, 64, 48), (3, 3, 20, 100)):
        image = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float()
        torch.testing.assert_close(run(image), expected(package, image), rtol=1e-4, atol=1e-4)
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["digest"] == package.digest and told["input"]["multiple"] == 4 and told["input"]["halo"] == 28
    assert [info["value"] for info in told["output"]["classes"]] == [0, 1, 7]


@pytest.mark.parametrize(("form", "name"), [("onnx", "model.onnx"), ("openvino", "model.xml")])
def test_an_export_into_a_model_package_leaves_it_whole(
    form: Form, name: str, package: Package, tmp_path: Path
) -> None:
    folder = save_package(tmp_path / "p", package.load_model(), package.spec, "").folder
    with pytest.raises(ConfigError, match=rf"{name} would replace the model package's own model\.json; choose another"):
        export_package(package, form, folder / name)
    assert load_package(folder).spec == package.spec and not (folder / name).exists()
    assert export_package(package, "openvino", folder / "mine.xml").is_file()
    assert load_package(folder).spec == package.spec


def test_wsinfer_gets_class_shares_of_patches(package: Package, tmp_path: Path) -> None:
    with pytest.raises(SpacingError, match="trained at no known pixel size, and WSInfer needs micrometres"):
        export_package(package, "wsinfer", tmp_path / "no")
    spec = replace(package.spec, spacing=Spacing(0.5, 0.5, "um"))
    slide = save_package(tmp_path / "p", package.load_model(), spec, "")
    folder = export_package(slide, "wsinfer", tmp_path / "zoo")
    config = json.loads((folder / "config.json").read_text())
    # The required keys of the WSInfer model zoo's schema.
    assert {"num_classes", "patch_size_pixels", "spacing_um_px", "class_names", "transform"} <= config.keys()
    assert (config["num_classes"], config["spacing_um_px"]) == (3, 0.5)
    side = config["patch_size_pixels"]
    image = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).float()
    arguments = {step["name"]: step.get("arguments", {}) for step in config["transform"]}["Normalize"]
    mean, std = (torch.tensor(arguments[key])[:, None, None] for key in ("mean", "std"))
    shares = torch.jit.load(str(folder / "torchscript_model.pt"))((image / 255 - mean) / std).softmax(1)
    torch.testing.assert_close(shares, expected(slide, image).softmax(1).mean((2, 3)), rtol=1e-3, atol=1e-4)
