"""Fixtures of the workflow tests: a network whose answer is known, and a home folder that is not the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unetpp.geometry import Spacing

INK, PAPER = 20, 220


@pytest.fixture(scope="session")
def ink_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of 3 uint8 bands and the classes paper (0) and ink (1): a pixel is ink where its red is below 112.

    Only the path of red along the centre taps has weights, so every engine and precision finds the same labels.
    """
    import torch

    from unetpp.model import GridConfig, UNetPlusPlus
    from unetpp.package import ClassInfo, ModelSpec, save_package

    config = GridConfig(bands=3, classes=1, filters=(2, 2), norm="none", deep_supervision=False)
    model = UNetPlusPlus(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.zero_()
            if name.startswith("nodes.0_"):
                centre = weight.view(-1)[weight.shape[-1] ** 2 // 2 : weight.shape[-1] ** 2 // 2 + 1]
                centre.fill_(0.0 if name.endswith("bias") else -1.0 if name.endswith("0_0.first.standard") else 1.0)
            elif name.startswith("head_convs"):
                weight.view(-1)[0] = -0.25 if name.endswith("bias") else 1.0
    spec = ModelSpec(
        name="ink",
        architecture=config,
        classes=(
            ClassInfo(value=0, name="paper", color=(240, 240, 230), background=True),
            ClassInfo(value=1, name="ink", color=(200, 30, 60)),
        ),
        bands=("red", "green", "blue"),
        mean=(128.0, 128.0, 128.0),
        std=(64.0, 64.0, 64.0),
    )
    return save_package(tmp_path_factory.mktemp("packages") / "ink", model, spec, "# ink\n").folder


@pytest.fixture(scope="session")
def ink_package_with_spacing(ink_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network, said to be trained at 0.5 um per pixel."""
    from unetpp.package import load_package, save_package

    package = load_package(ink_package)
    spec = replace(package.spec, name="ink-um", spacing=Spacing(0.5, 0.5, "um"))
    return save_package(tmp_path_factory.mktemp("packages") / "ink-um", package.load_model(), spec, "# ink\n").folder


@pytest.fixture
def blots(tmp_path: Path) -> Callable[..., Path]:
    """Draw an RGB PNG of paper with two square blots of ink (10 x 10 and 20 x 30 px)."""
    from PIL import Image

    def draw(name: str, height: int = 96, width: int = 128) -> Path:
        pixels = np.full((height, width, 3), PAPER, np.uint8)
        pixels[5:15, 5:15] = INK
        pixels[40:60, 60:90] = INK
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return draw


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test's MLflow store out of the user's home folder."""
    monkeypatch.setenv("UNETPP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"
