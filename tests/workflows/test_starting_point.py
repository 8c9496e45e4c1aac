"""A training goes on from another model: its weights, its switches, its normalisation, and what it has seen."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from unetpp.errors import DataError, ModelNotFoundError
from unetpp.geometry import Box
from unetpp.package import ClassInfo, Package, load_package, save_package
from unetpp.train.store import export
from unetpp_workflows.cli import app
from unetpp_workflows.evaluation import shared_images
from unetpp_workflows.recipe import Recipe, load_recipe
from unetpp_workflows.registry import register_package
from unetpp_workflows.starting_point import START, open_started, starting_point, with_start
from unetpp_workflows.training import TIME_UP, TrainOptions, export_training, run_training
from unetpp_workflows.training_data import open_data, prepared_store

DATA = ["drawn.slides=2", "data.validation=['drawn_1']"]
STEPS = [
    "train.patch=32", "train.batch=4", "train.steps=6", "train.validate_every=3", "train.precision='fp32'",
    "train.threads=1",
]  # fmt: skip
_HOLE = slice(10, 20), slice(10, 30)
NETWORK = ["network.filters=[4, 8, 8]", "network.norm='none'", "result.level=1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_store(load_recipe("smoke", DATA), None, tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Package:
    """A model trained by a recipe with switches of its own, kept at level 1 of 2."""
    folder = tmp_path_factory.mktemp("older") / "older"
    train(folder, store, [*DATA, *STEPS, *NETWORK])
    return load_package(folder)


def train(output: Path, store: Path, sets: list[str], code: int = 0, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    asked = TrainOptions(store=store, **{"record": False, "register": False, **options})
    assert run_training("smoke", data=None, output=output, sets=sets, options=asked, console=console) == code
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def started(model: Path | str, *more: str) -> list[str]:
    return [*DATA, *STEPS, f"network.start='{model}'", *more]


def variant(package: Package, folder: Path, **facts: Any) -> Path:
    return save_package(folder, package.load_model(), replace(package.spec, **facts), "# card\n").folder


def renamed(package: Package) -> tuple[ClassInfo, ...]:
    """As many classes, by other names."""
    return tuple(replace(info, name=f"other {info.name}") for info in package.spec.classes)


def holed(store: Path, folder: Path) -> Path:
    """Return a copy of a store whose patches have no data in `_HOLE`."""
    export(store, folder)
    for name, value in (("valid", False), ("pixels", 0), ("labels", 255)):
        array = np.load(folder / f"{name}.npy", mmap_mode="r+")
        array[:, *_HOLE] = value
        array.flush()
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_package(folder).load_model().state_dict())


def test_with_no_learning_rate_the_weights_stay_the_older_models(older: Package, store: Path, tmp_path: Path) -> None:
    """Its pruned grid is the whole network now; a model that other pixels were normalised for keeps its own figures."""
    model = variant(older, tmp_path / "other-normalisation", mean=(1.0, 2.0, 3.0), std=(40.0, 50.0, 60.0))
    text = train(tmp_path / "out", store, started(model, "train.rate=0.0"))
    assert f"starts from {model}: unetplusplus pw_dw, filters [4, 8, 8] kept to level 1" in text
    new = load_package(tmp_path / "out")
    found, expected = weights(new.folder), weights(older.folder)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert new.spec.architecture == older.spec.architecture and new.spec.architecture.level == 1
    assert (new.spec.mean, new.spec.std) == ((1.0, 2.0, 3.0), (40.0, 50.0, 60.0)) != (older.spec.mean, older.spec.std)
    assert new.spec.training["start"] == {"name": "smoke", "uri": str(model), "digest": load_package(model).digest}
    assert f"**Started from** {model}" in (new.folder / "MODEL_CARD.md").read_text()


def test_the_first_loss_is_the_older_models(older: Package, store: Path, tmp_path: Path) -> None:
    """Steps of two recipes that differ in the start alone see the same patches."""
    longer = [*DATA, *STEPS, *NETWORK, "train.steps=60", "train.rate=0.02"]
    train(tmp_path / "champion", store, longer)
    for name, sets in (("fresh", [*DATA, *STEPS, *NETWORK]), ("on", started(tmp_path / "champion"))):
        train(tmp_path / name, store, [*sets, "train.steps=1"])
    first = {n: json.loads((tmp_path / n / "history.json").read_text())[0]["loss"] for n in ("fresh", "on", "champion")}
    assert first["on"] < 0.9 * first["fresh"]


def test_pixels_without_data_are_the_older_models_mean(older: Package, store: Path, tmp_path: Path) -> None:
    """They are so in its segmentations: the new one would learn from another picture of the same images."""
    model = variant(older, tmp_path / "model", mean=(9.0, 19.0, 29.0))
    recipe = with_start(load_recipe("smoke", started(model)), tmp_path / "out")
    data = open_started(holed(store, tmp_path / "holed"), starting_point(recipe, tmp_path / "out"))
    for source in (data.training, data.validation):
        pixels = source.read(0, Box(0, 0, 64, 64)).pixels
        assert (pixels[_HOLE] == (9, 19, 29)).all() and (pixels[:8] != (9, 19, 29)).any()


def test_other_classes_get_new_heads(older: Package, store: Path, tmp_path: Path) -> None:
    model = variant(older, tmp_path / "model", classes=renamed(older))
    text = train(tmp_path / "out", store, started(model, "train.rate=0.0"))
    assert "with new heads for other classes" in text
    found, expected = weights(tmp_path / "out"), weights(older.folder)
    for name in found:
        assert torch.equal(found[name], expected[name]) != name.startswith("head_convs"), name


def test_what_the_older_model_was_trained_on_counts_as_seen(older: Package, store: Path, tmp_path: Path) -> None:
    seen = {**older.spec.training, "training_fingerprint": "0" * 64}
    first = variant(older, tmp_path / "first", training={**seen, "training_content": ["0123456789abcdef"]})
    assert "not known" not in train(tmp_path / "told", store, started(first))
    content = load_package(tmp_path / "told").spec.training["training_content"]
    assert set(content) == {"0123456789abcdef", *older.spec.training["training_content"]} and len(content) == 3

    silent = variant(older, tmp_path / "silent", training={**seen, "training_content": None})
    assert "whether it was trained on validation images is not known" in train(tmp_path / "on", store, started(silent))
    spec = load_package(tmp_path / "on").spec
    data = type("Data", (), {"source": open_data(store).validation})()
    assert spec.training["training_content"] is None and shared_images(spec, data)["training"] is None
    assert shared_images(older.spec, data) == {"training": 0, "validation": 1}

    # Its best step was chosen on these: figures on them are too good for a model that goes on from it, too.
    assert set(load_package(tmp_path / "told").spec.training["validation_content"]) == set(
        validated := seen["validation_content"]
    )
    judged = variant(older, tmp_path / "judged", training={**seen, "validation_content": ["fedcba9876543210"]})
    train(tmp_path / "chosen", store, started(judged))
    chosen = load_package(tmp_path / "chosen").spec.training["validation_content"]
    assert set(chosen) == {"fedcba9876543210", *validated}

    # Seen by the model itself, or by one that it started from before it was trained on these very images.
    for known in (seen, older.spec.training):
        facts = {**known, "training_content": spec.training["validation_content"]}
        both = variant(older, tmp_path / "both", training=facts)
        with pytest.raises(DataError, match="1 of 1 validation images were trained on by"):
            train(tmp_path / f"refused-{known is seen}", store, started(both))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"bands": ("red", "green", "nir")}, "bands red, green, blue, but .* takes red, green, nir"),
        ({"dtype": "uint16"}, "samples uint8, but .* takes uint16"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    older: Package, store: Path, tmp_path: Path, facts: dict[str, Any], words: str
) -> None:
    model = variant(older, tmp_path / "model", **facts)
    with pytest.raises(DataError, match=words):
        train(tmp_path / "out", store, started(model))
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_a_model_that_is_not_there_is_named(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no model 'nuclie'"):
        train(tmp_path / "out", store, started("nuclie"))


def test_a_rerun_goes_on_from_the_same_weights_wherever_the_alias_points(
    older: Package, store: Path, tmp_path: Path
) -> None:
    """The alias moves between two slices of a training; the copy in its output says what it meant."""
    register_package(older.folder, "smoke", alias="challenger")
    sets = started("models:/smoke@challenger", "train.rate=0.0")
    train(tmp_path / "out", store, sets, code=TIME_UP, minutes=1e-6)
    other = tmp_path / "other"
    train(other, store, [*DATA, *STEPS, *NETWORK, "train.seed=5"])
    register_package(other, "smoke", alias="challenger")
    (tmp_path / "out" / "checkpoint.pt").unlink()  # as if it had been killed before the first one
    train(tmp_path / "out", store, sets)
    found = load_package(tmp_path / "out")
    assert found.spec.training["start"]["uri"] == "models:/smoke/1"
    expected, moved = weights(older.folder), weights(other)
    assert all(torch.equal(value, expected[name]) for name, value in weights(found.folder).items())
    assert not all(torch.equal(value, moved[name]) for name, value in expected.items())


def test_a_copy_that_was_not_finished_is_made_again(older: Package, store: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / START).mkdir(parents=True)
    (tmp_path / "out" / START / "model.json").write_text("{")
    train(tmp_path / "out", store, started(older.folder))
    assert load_package(tmp_path / "out" / START).digest == older.digest


def test_a_start_that_was_refused_leaves_the_training_there_as_it_was(
    older: Package, store: Path, tmp_path: Path
) -> None:
    """The folder holds a training from random weights, half done; somebody tries the same with a start."""
    plain = [*DATA, *STEPS, *NETWORK]
    train(tmp_path / "whole", store, plain)
    train(tmp_path / "out", store, plain, code=TIME_UP, minutes=1e-6)
    with pytest.raises(DataError, match="holds another training"):
        train(tmp_path / "out", store, [*plain, f"network.start='{older.folder}'"])
    train(tmp_path / "out", store, plain)
    found, expected = weights(tmp_path / "out"), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_bare_machine_starts_from_it_too(older: Package, store: Path, tmp_path: Path) -> None:
    """Other classes, so that heads are drawn: exported and trained there, the weights are those trained here."""
    model = variant(older, tmp_path / "model", classes=renamed(older), mean=(9.0, 9.0, 9.0), std=(70.0, 70.0, 70.0))
    whole, out, bare = tmp_path / "whole", tmp_path / "out", tmp_path / "bare"
    store = holed(store, tmp_path / "holed")
    train(whole, store, started(model))
    export_training("smoke", data=None, output=out, sets=started(model), store=store, folder=bare,
                    console=Console(quiet=True))  # fmt: skip
    script = "import sys; sys.modules['safetensors'] = None; from unetpp.train.__main__ import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(bare), "--device", "cpu"], env=environment, check=True)
    shutil.move(bare / "checkpoint.pt", out / "checkpoint.pt")
    train(out, store, started(model))
    assert (out / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


def test_the_option_is_the_setting(older: Package, store: Path, tmp_path: Path) -> None:
    sets = [part for setting in (*DATA, *STEPS) for part in ("--set", setting)]
    out, folder = tmp_path / "out", tmp_path / 'last "month" \N{MICROSCOPE}'
    shutil.copytree(older.folder, folder)
    command = ["train", "smoke", "-o", out, "--store", store, "--start", folder, "--no-register", *sets]
    done = CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    recipe = Recipe.model_validate_json((out / "recipe.json").read_text())
    assert recipe.network.start == str(folder) and recipe.network.filters == (4, 8, 8)
    # A shell's variable that is not set must not mean random weights.
    command[command.index("--start") + 1] = ""
    assert "network.start = ''" in CliRunner().invoke(app, [str(part) for part in command]).output
    lineage = CliRunner().invoke(app, ["lineage", str(out)], env={"COLUMNS": "200"})
    assert f"started   from {folder}, digest {older.digest[:16]}" in lineage.output
