"""What a data set's description may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unetpp.errors import ConfigError
from unetpp_workflows.prepare.dataset import Dataset, load_dataset
from unetpp_workflows.recipe import RECIPES


@pytest.mark.parametrize("name", ["nuclei", "landcover"])
def test_a_bundled_recipe_describes_a_data_set(name: str) -> None:
    dataset = load_dataset(name)
    assert [info.value for info in dataset.infos()] == ([0, 1] if name == "nuclei" else [1, 2, 3, 4, 5])
    assert dataset.background == (0 if name == "nuclei" else None)


def test_what_training_would_refuse_is_refused_before_preparing(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text((RECIPES / "nuclei.toml").read_text().replace("steps =", "stepz ="))
    with pytest.raises(ConfigError, match=r"r.toml: unknown key 'train.stepz'; did you mean 'train.steps'"):
        load_dataset(file)


def test_marks_are_values_names_or_colours(tmp_path: Path) -> None:
    file = tmp_path / "d.toml"
    file.write_text(
        '[data]\nimages = "*.png"\nlabels = "{stem}.png"\nno_data = [9, "Artifact", [1, 2, 3]]\n'
        '[[classes]]\nname = "a"\ncolor = [0, 0, 0]\nlabels = [[4, 5, 6]]\n'
        '[[classes]]\nname = "b"\ncolor = [0, 0, 1]\nlabels = [1, "B"]\n'
    )
    dataset = load_dataset(file, ["data.side=64"])
    assert dataset.data.side == 64
    assert dataset.data.no_data == (9, "Artifact", (1, 2, 3))
    assert [c.labels for c in dataset.classes] == [((4, 5, 6),), (1, "B")]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"sharse": {"train": 1.0}}, "sharse"),
        ({"shares": {"train": 0.7, "val": 0.2}}, "parts of 1"),
        ({"shares": {"train": 1.0, "val": float("nan")}}, "parts of 1"),
        ({"spacing": "0.5"}, "unit"),
        ({"images": "*.png"}, "belong together"),
        ({"images": "", "labels": "", "table": None}, "name the images"),
        ({"label_map": {3: 7}}, "indices 0..2"),
        ({"table": None, "images": "*.png", "labels": "masks/{name}.png"}, r"data.labels = .*write \{stem\}"),
        ({"table": None, "images": "*.png", "labels": "a.png", "ignore": "{stem"}, r"data.ignore = .*write \{stem\}"),
        ({"table": None, "images": "/data/*.png", "labels": "{stem}.png"}, "data.images = .*below the data folder"),
        *(
            ({"table": None, "images": "*.png", "labels": "{stem}.png", name: "a"}, f"{name} names a column, and there")
            for name in ("split", "group", "stratum")
        ),
        ({"images": "*.png", "labels": "{stem}.png", "group_pattern": "^(p)"}, "group_pattern is for images without"),
        *(({name: "masks/{stem}.png"}, f"{name} is a pattern beside images") for name in ("mask", "ignore")),
        ({"group_pattern": "(s"}, "data.group_pattern = .*no regular expression"),
    ],
)
def test_a_wrong_key_or_value_is_named(described: Callable[..., Dataset], wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        described(**{"table": "t.csv", **wrong})
    assert "\n" not in str(caught.value)


def test_two_backgrounds_are_refused(described: Callable[..., Dataset]) -> None:
    two = [{"name": name, "color": [0, 0, 0], "background": True} for name in "ab"]
    with pytest.raises(ConfigError, match="two classes are background"):
        described(two, table="t.csv")


def test_of_two_classes_the_background_comes_first(described: Callable[..., Dataset]) -> None:
    """What models are chosen by is the second one's IoU."""
    two = [{"name": "nucleus", "color": [0, 0, 0]}, {"name": "rest", "color": [1, 1, 1], "background": True}]
    with pytest.raises(ConfigError, match="list 'rest' before 'nucleus'"):
        described(two, table="t.csv")
    assert described(two[::-1], table="t.csv").only_foreground == 1
