"""Networks, images and numbers that cannot be trained together are refused before the first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unetpp.train.shapes import squares
from tests.unetpp.train.test_loop import CONFIG, MEAN, STD, run
from unetpp.errors import ConfigError, DataError
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.train import ArraySource, Ranks, fit


def picture(label: int = 1, side: int = 32) -> tuple[str, str, Any, Any, None]:
    return ("a", "g", np.full((side, side, 3), 9, np.uint8), np.full((side, side), label, np.uint8), None)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"training": ArraySource([picture(2)], 3)},
            DataError,
            "training images have the label 2, and the network has 2",
        ),
        (
            {"validation": ArraySource([picture(2)], 3)},
            DataError,
            "validation images have the label 2, and the network",
        ),
        ({"training": ArraySource([], 2)}, DataError, "the training images have no labelled pixel; label some"),
        ({"validation": ArraySource([], 2)}, DataError, "the validation images have no labelled pixel; label some"),
        ({"training": ArraySource([picture(255)], 2)}, DataError, "the training images have no labelled pixel"),
        ({"mean": (1.0,), "std": (1.0,)}, ConfigError, "give 3 finite numbers each, and std above 0"),
        ({"std": (1.0, 0.0, 1.0)}, ConfigError, "give 3 finite numbers each, and std above 0"),
        ({"std": (1.0, -1.0, 1.0)}, ConfigError, "give 3 finite numbers each, and std above 0"),
        ({"mean": (1.0, float("nan"), 1.0)}, ConfigError, "give 3 finite numbers each, and std above 0"),
    ],
)
def test_images_that_the_network_cannot_learn_from_are_refused(
    given: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """One logit would have been trained on a label of 2 without a word, and a deviation of 0 blamed on the rate."""
    data = {"training": squares(2, 0), "validation": squares(2, 1), "mean": MEAN, "std": STD, **given}
    for classes in (1, 2):
        with pytest.raises(error, match=message):
            fit(UNetPlusPlus(GridConfig(filters=(8, 12), classes=classes)), config=CONFIG, folder=tmp_path, **data)


def test_a_patch_of_one_pixel_at_the_lowest_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"patch = 4 is one pixel .* give patch = 8"):
        run(tmp_path, replace(CONFIG, batch=1, patch=4))
    assert run(tmp_path, replace(CONFIG, batch=1, patch=8)).finished


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    absent = ["tpu"] if torch.cuda.is_available() else ["tpu", "cuda"]
    for device in absent:
        with pytest.raises(ConfigError, match=f"^device {device}: .*; give cpu or cuda$"):
            run(tmp_path, device=device)


def test_more_workers_than_patches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch = 2 for 3 workers"):
        run(tmp_path, ranks=Ranks(0, 3))
    with pytest.raises(ConfigError, match="not a multiple"):
        replace(CONFIG, accumulate=3)
