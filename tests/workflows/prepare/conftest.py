"""Fixtures of the preparation tests: small labelled images whose every pixel is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from unetpp_workflows.config import validate
from unetpp_workflows.prepare.dataset import Dataset

CLASSES = [
    {"name": "ground", "color": [10, 20, 30], "background": True},
    {"name": "tree", "color": [0, 200, 0]},
    {"name": "roof", "color": [200, 0, 0]},
]


@pytest.fixture
def described() -> Callable[..., Dataset]:
    """Build a data set's description from the keys of [data]."""

    def describe(classes: list[dict[str, Any]] | None = None, **data: Any) -> Dataset:
        values = {"name": "test", "data": {"side": 32, **data}, "classes": classes or CLASSES}
        return validate(Dataset, values, source="test")

    return describe


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]]:
    """Draw RGB images with masks of the values 0, 1, 2 into images/ and masks/, and return both by name."""

    def draw(sizes: dict[str, tuple[int, int]], seed: int = 0) -> dict[str, tuple[Any, Any]]:
        random = np.random.default_rng(seed)
        drawn = {}
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for name, (height, width) in sizes.items():
            pixels = random.integers(0, 256, (height, width, 3), np.uint8)
            labels = random.integers(0, 3, (height, width)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
            Image.fromarray(labels).save(tmp_path / "masks" / f"{name}.png")
            drawn[name] = pixels, labels
        return drawn

    return draw


GLOBS = {"images": "images/*.png", "labels": "masks/{stem}.png", "group_pattern": "^([a-z]+)", "validation": ["v"]}
