"""Model packages: what is saved comes back, and damaged or foreign folders are refused in one line."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.disk import fill
from unetpp.durable import write_file
from unetpp.errors import ModelNotFoundError, ModelPackageError, OutputError
from unetpp.geometry import Spacing
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.package import ClassInfo, ModelSpec, bundled_names, bundled_package, load_package, save_package

CLASSES = (
    ClassInfo(value=0, name="background", color=(0, 0, 0), background=True),
    ClassInfo(value=1, name="nucleus", color=(0, 200, 0)),
)
SPEC = ModelSpec(
    name="tiny",
    architecture=GridConfig(filters=(4, 6, 8)),
    classes=CLASSES,
    bands=("red", "green", "blue"),
    mean=(100.0, 110.0, 120.0),
    std=(50.0, 51.0, 52.0),
    spacing=Spacing(0.5, 0.5, "um"),
    metrics={"iou": 0.9},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_package(tmp_path / "tiny", UNetPlusPlus(SPEC.architecture), SPEC, "# tiny\n")
    return tmp_path / "tiny"


def test_round_trip(folder: Path) -> None:
    torch.manual_seed(0)
    original = UNetPlusPlus(SPEC.architecture).eval()
    package = load_package(folder)
    assert package.spec == SPEC
    x = torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(package.load_model()(x), original(x))
    assert (folder / "MODEL_CARD.md").read_text() == "# tiny\n"


def test_a_package_is_whole_where_its_model_json_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written anew and interrupted at any file, a folder holds no mix of two models that would load."""
    from unetpp import package as module

    def write(path: Path, content: bytes) -> None:
        if path.name in full:
            raise OutputError(f"cannot write {path}: no space left")
        write_file(path, content)

    monkeypatch.setattr(module, "write_file", write)
    for name in ("weights.safetensors", "MODEL_CARD.md", "model.json"):
        full = {name}
        with pytest.raises(OutputError):
            save_package(folder, UNetPlusPlus(SPEC.architecture), SPEC, "# other\n")
        with pytest.raises(ModelPackageError, match=r"has no model.json"):
            load_package(folder)


def test_a_disk_that_gets_full_leaves_no_package_and_the_next_call_makes_it(
    folder: Path, small_disk: Callable[[int], Path]
) -> None:
    disk, network = small_disk(256), UNetPlusPlus(SPEC.architecture)
    pages = -(-(folder / "weights.safetensors").stat().st_size // 4096)
    for left, name in ((0, "weights.safetensors"), (pages, "MODEL_CARD.md"), (pages + 1, "model.json")):
        ballast = fill(disk, 4 * left)
        with pytest.raises(OutputError, match=f"{name}: No space left on device; free disk space") as caught:
            save_package(disk / name, network, SPEC, "# tiny\n")
        assert "\n" not in str(caught.value) and not list(disk.rglob("*.tmp"))
        with pytest.raises(ModelPackageError, match=r"has no (weights.safetensors|model.json)"):
            load_package(disk / name)
        ballast.unlink()
        assert save_package(disk / name, network, SPEC, "# tiny\n").spec == SPEC


def test_digest_follows_weights_and_spec_but_not_the_card(folder: Path) -> None:
    before = load_package(folder).digest
    (folder / "MODEL_CARD.md").write_text("another card\n")
    assert load_package(folder).digest == before
    (folder / "model.json").write_text((folder / "model.json").read_text().replace("100.0", "101.0"))
    assert load_package(folder).digest != before


def test_missing_and_foreign_folders_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        load_package(tmp_path / "nowhere")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelPackageError, match=r"no weights\.safetensors"):
        load_package(folder)


def _drop_mean(values: dict[str, object]) -> None:
    del values["mean"]


@pytest.mark.parametrize(
    "damage,words",
    [
        (lambda v: v.update(format=99), "format"),
        (lambda v: v.update(surprise=1), "surprise"),
        (lambda v: v["architecture"].update(conv="magic"), "magic"),
        (lambda v: v.update(mean=[1.0]), "means"),
        (lambda v: v.update(std=[0.0, 1.0, 1.0]), "positive"),
        (lambda v: v.update(mean=[math.nan, 1.0, 1.0]), "finite"),
        (lambda v: v.update(std=[1.0, math.nan, 1.0]), "finite"),
        (lambda v: v["classes"][1].update(name=v["classes"][0]["name"]), "share a name"),
        (lambda v: v["classes"][1].update(color=[300, 0, 0]), "colour"),
        (lambda v: v["classes"][1].update(color=[30, 0]), "colour"),
        (lambda v: v["classes"].pop(), "classes described"),
        (_drop_mean, "mean"),
    ],
)
def test_bad_specs_are_refused(folder: Path, damage: object, words: str) -> None:
    values = json.loads((folder / "model.json").read_text())
    damage(values)  # type: ignore[operator]
    (folder / "model.json").write_text(json.dumps(values))
    with pytest.raises(ModelPackageError, match=words):
        load_package(folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    values = json.loads((folder / "model.json").read_text())
    values["architecture"]["filters"] = [4, 6, 9]
    (folder / "model.json").write_text(json.dumps(values))
    with pytest.raises(ModelPackageError, match="does not fit"):
        load_package(folder).load_model()


def test_widths_that_the_weights_cannot_hold_are_refused_before_memory_is_taken(folder: Path) -> None:
    values = json.loads((folder / "model.json").read_text())
    values["architecture"]["filters"] = [10**6] * len(values["architecture"]["filters"])
    (folder / "model.json").write_text(json.dumps(values))
    with pytest.raises(ModelPackageError, match="too small for the widths"):
        load_package(folder).load_model()


def test_every_level_of_a_wide_network_loads(tmp_path: Path) -> None:
    """A pruned package keeps the widths of levels that it has no weights of."""
    network = UNetPlusPlus(GridConfig(filters=(32, 64, 128, 256, 512), conv="pw_dw")).eval()
    for level in (1, 2, 3, 4):
        pruned = network.prune(level)
        package = save_package(tmp_path / str(level), pruned, dataclasses.replace(SPEC, architecture=pruned.config), "")
        weights = package.load_model().state_dict()
        assert weights and all(torch.equal(weights[name], value) for name, value in pruned.state_dict().items())


@pytest.mark.parametrize("text", ["null", "[]", "3"])
def test_a_description_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(ModelPackageError, match="not of format"):
        load_package(folder)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_of_a_diverged_training_are_refused(folder: Path, number: float) -> None:
    network = load_package(folder).load_model()
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = number
    save_package(folder, network, SPEC, "# x\n")
    with pytest.raises(ModelPackageError, match="not finite"):
        load_package(folder).load_model()


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelPackageError, match="does not fit"):
        load_package(folder).load_model()


def test_class_values_keep_255_for_no_data() -> None:
    with pytest.raises(ModelPackageError, match="255 means no data"):
        ClassInfo(value=255, name="x", color=(0, 0, 0))
    with pytest.raises(ModelPackageError, match="share a value"):
        dataclasses.replace(SPEC, classes=(CLASSES[0], dataclasses.replace(CLASSES[1], value=0)))


def test_bundled_names_cannot_walk_out(folder: Path) -> None:
    for name in bundled_names():
        spec = load_package(bundled_package(name)).spec
        assert spec.name == name
        assert [row["level"] for row in spec.training["levels"] if row["kept"]] == [spec.architecture.last], name
    with pytest.raises(ModelNotFoundError):
        bundled_package("../model")
