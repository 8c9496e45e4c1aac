"""Recipes: the bundled ones are valid, wrong keys are explained, and one runs to a package that loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetpp.errors import ConfigError, DataError
from unetpp.package import load_package
from unetpp_workflows.recipe import load_recipe, recipe_names, train


def test_bundled_recipes_are_valid() -> None:
    assert recipe_names() == ["landcover", "nuclei"]
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"train\.stepz.*train\.steps"):
        load_recipe("nuclei", ["train.stepz=3"])
    with pytest.raises(ConfigError, match="landcover, nuclei"):
        load_recipe("nucleii")


def test_overrides_win() -> None:
    recipe = load_recipe("nuclei", ["train.steps=7", "network.conv='dw_pw'"])
    assert (recipe.train.steps, recipe.network.conv) == (7, "dw_pw")


def _dataset(folder: Path) -> None:
    random = np.random.default_rng(0)
    rows = ["id,split,type"]
    for sub in ("images", "labels"):
        (folder / "dsb2018" / sub).mkdir(parents=True)
    for index, split in enumerate(("train", "train", "val")):
        instances = np.zeros((40, 40), np.uint16)
        instances[5:20, 8:30], instances[25:35, 5:15] = 1, 2
        pixels = random.integers(0, 50, (40, 40)) + (instances > 0) * 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"dsb2018/images/i{index}.png")
        Image.fromarray(instances).save(folder / f"dsb2018/labels/i{index}.png")
        rows.append(f"i{index},{split},fluorescence")
    (folder / "dsb2018/manifest.csv").write_text("\n".join(rows) + "\n")


def test_a_recipe_runs_to_a_package(tmp_path: Path) -> None:
    _dataset(tmp_path / "data")
    small = ["network.filters=[4, 6, 8]", "train.steps=4", "train.validate_every=2", "train.patch=32", "train.batch=2"]
    steps: list[int] = []
    package = train(
        "nuclei",
        data=tmp_path / "data",
        output=tmp_path / "out",
        overrides=small,
        on_step=lambda step, of, loss: steps.append(step),
    )
    assert steps == [1, 2, 3, 4]
    spec = load_package(tmp_path / "out").spec
    assert spec == package.spec and spec.name == "nuclei" and spec.training["training_images"] == 2
    assert [c.name for c in spec.classes] == ["background", "nucleus"]
    history = json.loads((tmp_path / "out/history.json").read_text())
    assert [e["step"] for e in history] == [2, 4]
    best = next(e for e in history if e["step"] == spec.training["best_step"])
    assert spec.metrics["iou"]["nucleus"] == round(best["iou"][1], 4)
    card = (tmp_path / "out/MODEL_CARD.md").read_text()
    assert "CC0" in card and spec.training["command"] in card and str(tmp_path) not in card


def test_without_data_it_says_how_to_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNETPP_DATA", raising=False)
    with pytest.raises(DataError, match="--data"):
        train("nuclei", output=tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        train("nuclei", data=tmp_path / "none", output=tmp_path)
